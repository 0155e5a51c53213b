r"""The frozen vision-language pre-trained model (VLP), loaded through open_clip: image trunk, teacher, text tower.

The mini VLP is an open_clip model like any other: its config is ``assets/hrcf-mini.json``, its weights
``assets/hrcf-mini.safetensors``. The only thing it adds is a small convolutional stem in the place of the patch
convolution, because a stem of three strided convolutions learns much faster than one 8 x 8 patch projection.
"""

import hashlib
import logging
from functools import cache
from importlib.resources import files
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

MINI = "hrcf-mini"
ASSETS = files("hrcf_lib") / "assets"


class VLP(nn.Module):
    r"""A CLIP-like model with its tokenizer and picture statistics. Frozen: no parameter ever takes a gradient.

    Attributes: ``C`` width of the ViT, ``D`` embedding width, ``N`` side of the patch grid, ``side`` pixels of a picture,
    ``trained`` the set of token ids that the text tower ever saw, or ``None`` if it knows them all.
    """

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

    def freeze(self) -> "VLP":
        """Switch gradients off for good, and to evaluation mode."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True):
        """A frozen VLP stays in evaluation mode, whatever the module around it does."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, side, side), uint8 in 0..255 or float in 0..1 -> float with the VLP's own mean and deviation."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[-1] != self.side or images.shape[-2] != self.side:
            raise ValueError(
                f"{self.name} takes pictures (B, 3, {self.side}, {self.side}), got {tuple(images.shape)}; resize them"
            )
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        return (images - self.mean) / self.std

    def trunk(self, images: Tensor) -> Tensor:
        """All blocks but the last, shared by teacher and student: pictures -> (B, 1 + N^2, C)."""
        v = self.model.visual
        x = v.conv1(self.normalise(images)).flatten(2).transpose(1, 2)  # (B, N*N, C)
        cls = v.class_embedding.expand(len(x), 1, -1)  # (B, 1, C)
        x = v.ln_pre(torch.cat([cls, x], dim=1) + v.positional_embedding)  # (B, 1 + N*N, C)
        for block in v.transformer.resblocks[:-1]:
            x = block(x)
        return x

    def teacher(self, trunk: Tensor) -> Tensor:
        """The VLP's own global embedding e_p, from trunk tokens: (B, 1 + N^2, C) -> (B, D), not of unit length."""
        v = self.model.visual
        return v.ln_post(v.transformer.resblocks[-1](trunk)[:, 0]) @ v.proj  # (B, D)

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
        """Embeddings (K, D) of whole sentences. Raises ``ValueError`` for an unknown token or a sentence too long."""
        ids = [self.token_ids(text) for text in texts]
        for text, i in zip(texts, ids, strict=True):
            check_length(text, len(i) + 2, self.context_length)
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        length = max(map(len, ids)) + 2
        tokens = torch.tensor([[start, *i, end] + [0] * (length - len(i) - 2) for i in ids], device=self.mean.device)
        last = torch.tensor([len(i) + 1 for i in ids], device=tokens.device)
        return encode_tokens(self.model, self.model.token_embedding(tokens), last)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 over names and values of all weights."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def check_length(text: str, tokens: int, context_length: int) -> None:
    """Raise ``ValueError`` naming a text that does not fit the text tower (nothing is ever cut silently)."""
    if tokens > context_length:
        raise ValueError(
            f"{text[:60]!r} needs {tokens} tokens, the text tower takes {context_length}; shorten the label"
        )


def encode_tokens(model, embeddings: Tensor, last: Tensor) -> Tensor:
    """Token embeddings (K, L, C) and each row's end position (K,) -> (K, D). The tower is causal: what follows never matters."""
    L = embeddings.shape[1]
    x = embeddings + model.positional_embedding[:L]  # (K, L, C)
    x = model.transformer(x, attn_mask=model.attn_mask[:L, :L])
    x = model.ln_final(x[torch.arange(len(x), device=x.device), last])  # (K, C)
    return x @ model.text_projection  # (K, D)


class ConvStem(nn.Sequential):
    """Pictures (B, 3, S, S) -> (B, C, S/8, S/8): three strided 3 x 3 convolutions and a 1 x 1."""

    def __init__(self, width: int, channels=(24, 48, 96)):
        layers, previous = [], 3
        for c in channels:
            layers += [nn.Conv2d(previous, c, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c), nn.GELU()]
            previous = c
        super().__init__(*layers, nn.Conv2d(previous, width, 1))


def create_mini() -> VLP:
    """The mini VLP with random weights, trainable: what ``pretrain`` starts from."""
    open_clip.add_model_config(str(ASSETS / f"{MINI}.json"))
    model = _quietly(open_clip.create_model, MINI, pretrained=None)
    model.visual.conv1 = ConvStem(model.visual.conv1.out_channels)
    return VLP(MINI, model, open_clip.get_tokenizer(MINI), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def load(name: str, weights: str | None = None, pretrained: bool = True) -> VLP:
    r"""A frozen VLP by open_clip model name.

    Args:
        name: ``"hrcf-mini"`` or any ViT of open_clip, such as ``"ViT-B-16"``.
        weights: open_clip tag such as ``"openai"``, or the path of a checkpoint; for the mini ``None`` is what ships.
        pretrained: ``False`` gives random weights and needs no network.

    Raises:
        ValueError: unknown model name, or a model without ViT.
        OSError: the weights are neither here nor to be downloaded; the message says what to fetch and where to put it.
    """
    if name == MINI:
        vlp = create_mini()
        if pretrained:
            load_mini_weights(vlp, weights or ASSETS / f"{MINI}.safetensors")
        return vlp.freeze()
    if name not in open_clip.list_models():
        raise ValueError(f"open_clip knows no model {name!r}; see open_clip.list_models(), for example 'ViT-B-16'")
    quick_gelu = weights == "openai" or (weights is not None and "openai" in Path(str(weights)).name.lower())
    try:
        model = _quietly(
            open_clip.create_model,
            name,
            pretrained=weights if pretrained else None,
            force_quick_gelu=quick_gelu,
        )
    except Exception as error:
        if not pretrained or "pretrained" in str(error).lower() and "not found" in str(error).lower():
            raise
        raise OSError(
            f"the weights {weights!r} of {name} are not in the cache and could not be downloaded. Fetch them once where there is "
            f"a network (python -c \"import open_clip; open_clip.create_model('{name}', pretrained='{weights}')\"), or put a "
            "checkpoint on this machine and give its path as vlp_weights"
        ) from error
    if not hasattr(model.visual, "class_embedding"):
        raise ValueError(f"{name} is not a ViT with a class token; HRCF needs one, such as ViT-B-16")
    config = getattr(model.visual, "preprocess_cfg", {})
    mean, std = config.get("mean", open_clip.OPENAI_DATASET_MEAN), config.get("std", open_clip.OPENAI_DATASET_STD)
    return VLP(name, model, open_clip.get_tokenizer(name), mean, std).freeze()


def load_mini_weights(vlp: VLP, path: str | Path) -> None:
    """Fill the mini VLP from a file of ``save_mini_weights``. Raises ``FileNotFoundError`` or ``ValueError``."""
    path = Path(str(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no weights of the mini VLP; notebook 02 makes them, or reinstall hrcf")
    state = {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
    rows = state.pop("token_rows")
    table = torch.zeros_like(vlp.model.token_embedding.weight)
    table[rows] = state.pop("token_embedding.rows")
    state["token_embedding.weight"] = table
    fit(vlp.model, state, path)
    vlp.trained = set(rows.tolist())


def save_mini_weights(vlp: VLP, path: str | Path, rows: Tensor) -> None:
    """Write fp16 weights; of the token table only ``rows``, the ids that occur in a caption."""
    state = {n: v.half() if v.is_floating_point() else v for n, v in vlp.model.state_dict().items()}
    table = state.pop("token_embedding.weight")
    state |= {"token_rows": rows.clone(), "token_embedding.rows": table[rows].contiguous()}
    save_file({n: v.contiguous() for n, v in state.items()}, path)


def fit(module: nn.Module, state: dict, source) -> None:
    """``load_state_dict`` whose error lists every name and shape that does not fit, and changes nothing then."""
    own = module.state_dict()
    faults = [f"missing {n} {tuple(v.shape)}" for n, v in own.items() if n not in state]
    faults += [f"unexpected {n} {tuple(v.shape)}" for n, v in state.items() if n not in own]
    faults += [
        f"{n} is {tuple(v.shape)}, expected {tuple(own[n].shape)}"
        for n, v in state.items()
        if n in own and own[n].shape != v.shape
    ]
    if faults:
        raise ValueError(f"{source}: these weights do not fit the config:\n  " + "\n  ".join(faults))
    module.load_state_dict(state)


@cache
def mini() -> VLP:
    """The shipped mini VLP, loaded once a process."""
    return load(MINI)


def _quietly(function, *args, **kwargs):
    """open_clip warns of random weights through the root logger; here that is what was asked for."""
    root = logging.getLogger()
    level, root.level = root.level, logging.ERROR
    try:
        return function(*args, **kwargs)
    finally:
        root.level = level
