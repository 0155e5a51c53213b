r"""The two towers of a frozen vision-language pre-trained model (VLP), walked through step by step.

open_clip builds the model; here its image tower is cut before the last block, because the student shares everything
before it (the trunk), and its text tower takes token *embeddings*, because prompts are learnt there.

B pictures, N side of the patch grid, K texts, L tokens of the longest, C width, D embedding width. Embeddings are at
the VLP's own scale, not of unit length.
"""

import hashlib

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn


class VLP(nn.Module):
    r"""A CLIP-like model with its tokenizer and picture statistics.

    Attributes: ``C`` width of the ViT, ``D`` embedding width, ``N`` side of the patch grid, ``side`` pixels of a
    picture, ``context_length`` most tokens of a text, start and end included, ``trained`` the set of token ids that the
    text tower ever saw, or ``None`` if it knows them all. ``free`` is the number of last blocks of the image tower that
    are not part of the trunk, because a method trains copies of them: 1 for HRCF.
    """

    free = 1

    def __init__(self, name, model, tokenizer, mean, std, trained: Tensor | None = None):
        super().__init__()
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.trained = None if trained is None else set(trained.tolist())
        visual = model.visual
        self.C, self.D = visual.proj.shape
        self.N = visual.grid_size[0]
        self.side = visual.image_size[0]
        self.context_length = model.positional_embedding.shape[0]

    @property
    def depth(self) -> int:
        """Number of blocks of the image tower."""
        return len(self.model.visual.transformer.resblocks)

    @property
    def quick_gelu(self) -> bool:
        """Whether the activation is OpenAI's x * sigmoid(1.702 x) and not GELU."""
        return any(isinstance(m, QuickGELU) for m in self.model.modules())

    def freeze(self) -> "VLP":
        """Switch gradients off for good, and to evaluation mode."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True):
        """A frozen VLP stays in evaluation mode, whatever the module around it does."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def normalise(self, images: Tensor) -> Tensor:
        r"""(B, 3, side, side), uint8 in 0..255 or float in 0..1 -> float with the VLP's own mean and deviation,
        on the VLP's device.

        Raises ``ValueError`` for another shape or another kind of number.
        """
        images = images.to(self.mean.device)
        if images.ndim != 4 or images.shape[1:] != (3, self.side, self.side):
            raise ValueError(
                f"{self.name} takes pictures (B, 3, {self.side}, {self.side}), got {tuple(images.shape)}; resize them"
            )
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif not images.is_floating_point():
            raise ValueError(f"pictures are uint8 in 0..255 or float in 0..1, got {images.dtype}; convert them")
        return (images - self.mean) / self.std

    def trunk(self, images: Tensor) -> Tensor:
        """All blocks but the last ``free``, shared by teacher and student: pictures -> (B, 1 + N^2, C)."""
        v = self.model.visual
        x = v.conv1(self.normalise(images)).flatten(2).transpose(1, 2)  # (B, N*N, C)
        cls = v.class_embedding.expand(x.shape[0], 1, -1)  # (B, 1, C); with len() a graph of it holds for one B
        x = v.ln_pre(torch.cat([cls, x], dim=1) + v.positional_embedding)  # (B, 1 + N*N, C)
        for block in v.transformer.resblocks[: self.depth - self.free]:
            x = block(x)
        return x

    def teacher(self, trunk: Tensor) -> Tensor:
        """The VLP's own global embedding e_p, from trunk tokens: (B, 1 + N^2, C) -> (B, D)."""
        v = self.model.visual
        for block in v.transformer.resblocks[self.depth - self.free :]:
            trunk = block(trunk)
        return v.ln_post(trunk[:, 0]) @ v.proj  # (B, D)

    def encode_image(self, images: Tensor) -> Tensor:
        """Global embeddings (B, D) of pictures, as open_clip computes them."""
        return self.teacher(self.trunk(images))

    def token_ids(self, text: str) -> list[int]:
        """Byte-pair tokens of a text, without start and end. Raises ``ValueError`` naming a token it never saw."""
        ids = self.tokenizer.encode(text)
        unknown = [i for i in ids if self.trained is not None and i not in self.trained]
        if unknown:
            parts = ", ".join(repr(self.tokenizer.decode([i]).strip()) for i in unknown)
            raise ValueError(
                f"{text!r}: the text tower of {self.name} was never trained on {parts}; use words of "
                "hrcf_lib.data.openmoji.names(), or a VLP with a full vocabulary such as ViT-B-16"
            )
        return ids

    def encode_text(self, texts) -> Tensor:
        r"""Embeddings (K, D) of whole sentences.

        Raises ``ValueError`` for no sentence, a bare string, an unknown token or a sentence too long.
        """
        if isinstance(texts, str) or not (texts := list(texts)):
            raise ValueError(f"texts is {texts!r}; give a list of at least one sentence")
        ids = [self.token_ids(text) for text in texts]
        for text, i in zip(texts, ids, strict=True):
            check_length(text, len(i) + 2, self.context_length)
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        rows = [torch.tensor([start, *i, end], device=self.mean.device) for i in ids]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (K, L)
        last = torch.tensor([len(row) - 1 for row in rows], device=tokens.device)  # (K,)
        return encode_tokens(self.model, self.model.token_embedding(tokens), last)

    @property
    def hash(self) -> str:
        r"""First 16 hex digits of the SHA-256 over all that an embedding depends on: names and values of the weights,
        the activation and the picture statistics (the same weights with another activation are another VLP)."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        digest.update(repr((self.quick_gelu, self.mean.flatten().tolist(), self.std.flatten().tolist())).encode())
        return digest.hexdigest()[:16]


def check_length(text: str, tokens: int, context_length: int) -> None:
    """Raise ``ValueError`` naming a text that does not fit the text tower (nothing is ever cut silently)."""
    if tokens > context_length:
        raise ValueError(f"{text[:60]!r} needs {tokens} tokens, the text tower takes {context_length}; shorten it")


def encode_tokens(model, embeddings: Tensor, last: Tensor) -> Tensor:
    r"""Token embeddings (K, L, C) and each row's end position (K,) -> (K, D).

    The tower is causal: what follows the end never matters, so rows may be padded with anything.
    """
    L = embeddings.shape[1]
    x = embeddings + model.positional_embedding[:L]  # (K, L, C)
    x = model.transformer(x, attn_mask=model.attn_mask[:L, :L])
    x = model.ln_final(x[torch.arange(len(x), device=x.device), last])  # (K, C)
    return x @ model.text_projection  # (K, D)
