r"""The frozen vision-language pre-trained model (VLP): its two towers step by step, and how it is loaded.

open_clip builds the model. Here its image tower is cut before the last block, because student and teacher share
everything before it (the trunk), and its text tower takes token *embeddings*, because prompts are learnt there.

Two kinds of image tower, with one interface: ``trunk`` -> tokens, ``teacher`` -> global embedding, ``dense`` ->
positions in the joint space.

``VLP``        a ViT. Its trunk may leave out last blocks, of which a method trains copies
``ResNetVLP``  CLIP's ResNet (RN50, RN101, RN50x4 ...), always whole: the trunk gives the last map

The mini VLP is an open_clip model too: config ``assets/hrcf-mini.json``, weights ``assets/hrcf-mini.safetensors``. It
adds a convolutional stem in place of the patch convolution: three strided convolutions learn much faster than one
8 x 8 patch projection.

B pictures, N side of the patch grid or of a ResNet's last map, K texts, L tokens of the longest, C width of the image
tower's tokens, D embedding width. Embeddings are at the VLP's own scale, not of unit length.
"""

import hashlib
import logging
import math
import warnings
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import huggingface_hub
import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub.utils import get_session
from open_clip.model import resize_pos_embed
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from hrcf_lib.engine import clip_weights
from hrcf_lib.engine.messages import did_you_mean, list_some, user_path
from hrcf_lib.engine.weights import load_into, read_tensors, write_tensors

MINI = "hrcf-mini"
FAR_ABOVE_ONE = 10  # a float picture in 0..1 may have been sharpened; one in 0..255 is far above
FIRST_MINI = "7866641dc5613fad"  # hash of the VLP of that name before MojiScenes had stuff and superordinate words
ASSETS = files("hrcf_lib") / "assets"


class VLP(nn.Module):
    r"""A CLIP-like model with its tokenizer and picture statistics; its image tower is a ViT.

    Attributes: ``C`` width of the image tower's tokens, ``D`` embedding width, ``text_width`` width of a text token,
    ``N`` side of the patch grid, ``side`` pixels of a picture, ``context_length`` most tokens of a text, start and end
    included, ``trained`` the set of token ids that the text tower ever saw, or ``None`` if it knows them all.
    ``trained_blocks`` is the number of last blocks of the image tower that are not part of the trunk, because a method
    trains copies of them: 1 for HRCF, always 0 for a ResNet.
    """

    is_vit = True
    trained_blocks = 1
    positions = "visual.positional_embedding"  # name of the weights with a row for each token of the image tower

    def __init__(self, name, model, tokenizer, mean, std, trained: Tensor | None = None):
        super().__init__()
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.trained = None if trained is None else set(trained.tolist())
        self.C, self.D, self.N, self.side = self._sizes()
        self.context_length, self.text_width = model.positional_embedding.shape

    def _sizes(self) -> tuple[int, int, int, int]:
        """C, D, N and side, from the image tower."""
        visual = self.model.visual
        return *visual.proj.shape, visual.grid_size[0], visual.image_size[0]

    @property
    def depth(self) -> int:
        """Number of the ViT's blocks; 0 of a ResNet."""
        return len(self.model.visual.transformer.resblocks)

    @property
    def quick_gelu(self) -> bool:
        """Whether the activation is OpenAI's x * sigmoid(1.702 x) and not GELU."""
        return any(isinstance(m, QuickGELU) for m in self.model.modules())

    def freeze(self) -> "VLP":
        """Switch gradients off and evaluation mode on, whatever ``train`` is called with later."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True):
        """A frozen VLP stays in evaluation mode, whatever the module around it does."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def normalise(self, images: Tensor) -> Tensor:
        r"""(B, 3, side, side), uint8 in 0..255 or float in 0..1 -> float with the VLP's own mean and deviation,
        on the VLP's device.

        Raises ``ValueError`` for another shape or another kind of number, and for a VLP that was cast to another
        precision.
        """
        cast = {self.mean.dtype, self.model.positional_embedding.dtype} - {torch.float32}
        if cast:
            raise ValueError(
                f"the weights of {self.name} are {cast.pop()}, and it computes in torch.float32 alone: call float() on "
                "the model (config.bf16 computes in bfloat16 where the device does it well)"
            )
        images = images.to(self.mean.device)
        if images.ndim != 4 or images.shape[1:] != (3, self.side, self.side):
            raise ValueError(
                f"{self.name} takes pictures (B, 3, {self.side}, {self.side}), got {tuple(images.shape)}; "
                + ("resize them" if images.ndim == 4 else "images[None] is a batch of one")
            )
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif not images.is_floating_point():
            raise ValueError(f"pictures are uint8 in 0..255 or float in 0..1, got {images.dtype}; convert them")
        elif (most := _largest(images)) > FAR_ABOVE_ONE:
            raise ValueError(f"pictures are float in 0..1 or uint8 in 0..255, got floats up to {most:g}; divide by 255")
        return (images - self.mean) / self.std

    def trunk(self, images: Tensor) -> Tensor:
        """All blocks but the last ``trained_blocks``, shared by teacher and student: pictures -> (B, 1 + N^2, C).

        Eq. 1 of HRCF, with the norm in front of the first block that CLIP's ViTs have.
        """
        v = self.model.visual
        x = v.conv1(self.normalise(images)).flatten(2).transpose(1, 2)  # (B, N*N, C)
        cls = v.class_embedding.expand(x.shape[0], 1, -1)  # (B, 1, C); with len() a graph of it holds for one B
        x = v.ln_pre(torch.cat([cls, x], dim=1) + v.positional_embedding)  # (B, 1 + N*N, C)
        for block in v.transformer.resblocks[: self.depth - self.trained_blocks]:
            x = block(x)
        return x

    def teacher(self, trunk: Tensor) -> Tensor:
        """The VLP's own global embedding e_p (Eq. 4 of HRCF), from trunk tokens: (B, 1 + N^2, C) -> (B, D)."""
        v = self.model.visual
        for block in v.transformer.resblocks[self.depth - self.trained_blocks :]:
            trunk = block(trunk)
        return v.ln_post(trunk[:, 0]) @ v.proj  # (B, D)

    def dense(self, trunk: Tensor) -> Tensor:
        r"""Positions of the picture in the joint space, behind the last block: (B, 1 + N^2, C) -> (B, N^2, D).

        The final norm and the projection, which CLIP applies to the class token alone, applied to each patch token.
        """
        v = self.model.visual
        for block in v.transformer.resblocks[self.depth - self.trained_blocks :]:
            trunk = block(trunk)
        return v.ln_post(trunk[:, 1:]) @ v.proj  # (B, N*N, D)

    def encode_image(self, images: Tensor) -> Tensor:
        """Global embeddings (B, D) of pictures, as open_clip computes them."""
        return self.teacher(self.trunk(images))

    def token_ids(self, text: str) -> list[int]:
        """Byte-pair tokens of a text, without start and end. Raises ``ValueError`` naming a token it never saw."""
        return self.spelt([text])[0]

    def spelt(self, texts) -> list[list[int]]:
        """``token_ids`` of each text. Raises ``ValueError`` naming the texts with tokens that it never saw."""
        rows, faults = [self.tokenizer.encode(text) for text in texts], []
        ends = {self.tokenizer.sot_token_id, self.tokenizer.eot_token_id}
        if marks := [repr(text) for text, ids in zip(texts, rows, strict=True) if ends & set(ids)]:
            raise ValueError(f"{list_some(marks, ', ')}: holds the mark of a text's start or end; leave it out")
        for text, ids in zip(texts, rows, strict=True):
            if self.trained is not None and (unknown := [i for i in ids if i not in self.trained]):
                parts = ", ".join(repr(self.tokenizer.decode([i]).strip()) for i in unknown)
                again = f"the text tower of {self.name} was never trained on " * (not faults)
                faults.append(f"{text!r}: {again}{parts}")
        if faults:
            raise ValueError(
                f"{list_some(faults, ', ')}; use words of hrcf_lib.data.mojiscenes.vocabulary.names(), or a VLP with a "
                "full vocabulary such as ViT-B-16"
            )
        return rows

    def encode_text(self, texts) -> Tensor:
        r"""Embeddings (K, D) of whole sentences.

        Raises ``ValueError`` for no sentence, a bare string, an unknown token or a sentence too long.
        """
        if isinstance(texts, str) or not (texts := list(texts)):
            raise ValueError(f"texts is {texts!r}; give a list of at least one sentence")
        ids = self.spelt(texts)
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


class ResNetVLP(VLP):
    r"""A CLIP whose image tower is CLIP's ResNet: its last map is pooled by one attention layer.

    $$x_0 = \frac{1}{N^2} \sum_j x_j, \qquad
      e_p = W_c \big[ \textstyle\sum_{j \ge 0} a^h_j\, W^h_v (x_j + p_j) \big]_h + b_c, \qquad
      d_j = W_c (W_v x_j + b_v) + b_c$$

    Tokens are the mean x_0 and the N^2 positions x_j of the last map, before the pool adds its position vectors p_j; C
    is the number of channels, 2,048 for RN50. a^h are the weights of head h, whose query is x_0 + p_0. Positions come
    into the joint space (``dense``) by the pool's value and output layers: what an attention that looks at position j
    alone would return, without p_j. N is ``side`` / 32. Nothing of it is trained.

    Source: ``AttentionPool2d`` of CLIP (Radford et al., ICML 2021); ``dense`` as in DenseCLIP and MaskCLIP.
    """

    is_vit, trained_blocks, depth = False, 0, 0
    positions = "visual.attnpool.positional_embedding"

    def _sizes(self) -> tuple[int, int, int, int]:
        visual = self.model.visual
        side = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
        N = math.isqrt(len(visual.attnpool.positional_embedding) - 1)
        return visual.attnpool.v_proj.in_features, visual.attnpool.c_proj.out_features, N, side

    def trunk(self, images: Tensor) -> Tensor:
        """The mean over the last map, and the map itself: pictures -> (B, 1 + N^2, C)."""
        v = self.model.visual
        x = v.stem(self.normalise(images))
        for layer in (v.layer1, v.layer2, v.layer3, v.layer4):
            x = layer(x)  # (B, C, N, N)
        return with_mean(x.flatten(2).transpose(1, 2))  # (B, 1 + N*N, C)

    def teacher(self, trunk: Tensor) -> Tensor:
        """The VLP's own global embedding e_p: the pool's first output alone, the only one used. -> (B, D)."""
        pool = self.model.visual.attnpool
        x = trunk + pool.positional_embedding  # (B, 1 + N*N, C)
        heads = lambda y: y.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)  # (B, n, C) -> (B, H, n, C / H)
        q, k, v = heads(pool.q_proj(x[:, :1])), heads(pool.k_proj(x)), heads(pool.v_proj(x))
        seen = F.scaled_dot_product_attention(q, k, v)  # (B, H, 1, C / H)
        return pool.c_proj(seen.flatten(1))  # (B, D)

    def dense(self, trunk: Tensor) -> Tensor:
        """Positions in the joint space, by the pool's value and output layers: (B, 1 + N^2, C) -> (B, N^2, D)."""
        pool = self.model.visual.attnpool
        return pool.c_proj(pool.v_proj(trunk[:, 1:]))  # (B, N*N, D)


def with_mean(positions: Tensor) -> Tensor:
    """Positions (B, N^2, C) of a map -> (B, 1 + N^2, C), their mean in front: what CLIP's attention pool asks with."""
    return torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1)


def check_length(text: str, tokens: int, context_length: int) -> None:
    """Raise ``ValueError`` naming a text that does not fit the text tower (nothing is ever cut silently)."""
    if tokens > context_length:
        raise ValueError(f"{text[:60]!r} needs {tokens} tokens, the text tower takes {context_length}; shorten it")


def _largest(images: Tensor) -> float:
    """The largest number in pictures; 0 where they hold none, or none that is known, as while a graph is traced."""
    if images.is_meta or torch.compiler.is_compiling() or not images.numel():
        return 0.0
    return images.max().item()


def encode_tokens(model, embeddings: Tensor, last: Tensor) -> Tensor:
    r"""Token embeddings (K, L, C) and each row's end position (K,) -> (K, D).

    The tower is causal: what follows the end never matters, so rows may be padded with anything.
    """
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


def create_mini(side: int | None = None) -> VLP:
    """The mini VLP with random weights, trainable: what ``studies.pretrain_mini`` starts from."""
    if MINI not in open_clip.list_models():
        open_clip.add_model_config(str(ASSETS / f"{MINI}.json"))
    model = _quietly(open_clip.create_model, MINI, pretrained=None, force_image_size=_checked_side(MINI, side))
    model.visual.conv1 = ConvStem(model.visual.conv1.out_channels)
    return VLP(MINI, model, _tokenizer(MINI), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def load(name: str, weights: str | None = None, pretrained: bool = True, side: int | None = None) -> VLP:
    r"""A frozen VLP by open_clip model name.

    A tag brings its own activation and picture statistics. Of files, OpenAI's own archives (``ViT-B-16.pt``) say which
    activation they were trained with, and so does the ``config.json`` beside Hugging Face's weights. Others do not: for
    OpenAI's weights in another form choose the model name that ends in ``-quickgelu``.

    Args:
        name: ``"hrcf-mini"``, or any CLIP of open_clip whose image tower is a plain ViT or CLIP's own ResNet, such as
            ``"ViT-B-16"`` or ``"RN50"``.
        weights: open_clip tag such as ``"openai"``, or the path of a checkpoint: open_clip's, OpenAI's or Hugging
            Face's (``engine.clip_weights``), or of a folder that holds one; for the mini ``None`` is what ships.
        pretrained: ``False`` gives random weights and needs no network.
        side: pixels of a picture, a multiple of the patch or of 32 for a ResNet; ``None`` is the model's own. Position
            vectors of weights for another side are interpolated (bicubic, as open_clip does for its ViTs).

    Raises:
        ValueError: unknown model name, a model of another build, a side that does not divide into positions, no
            ``weights`` given, a file that is damaged or would have to be unpickled, or weights that do not fit the
            model (names and shapes listed).
        OSError: the weights are neither here nor to be downloaded; the message says what to fetch and where to put it.
    """
    if name == MINI:
        vlp = create_mini(side)
        if pretrained:
            load_mini_weights(vlp, weights or ASSETS / f"{MINI}.safetensors", resize=side is not None)
        return vlp.freeze()
    kind = VLP if is_vit(name) else ResNetVLP
    _checked_side(name, side)
    if pretrained and weights is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:6])
        raise ValueError(f"{name} without vlp_weights: give a tag ({tags or 'none known'}) or the path of a checkpoint")
    path = find_weights(name, weights) if pretrained else None  # its errors come before the model is built
    tag = open_clip.get_pretrained_cfg(name, str(weights)) or {}
    found = clip_weights.read(path) if path else None
    quick = bool(tag.get("quick_gelu") if tag else found and found.quick_gelu)
    how = {"pretrained": None, "force_quick_gelu": quick, "force_image_size": side}
    model = _quietly(open_clip.create_model, name, **how)
    mean, std = tag.get("mean", open_clip.OPENAI_DATASET_MEAN), tag.get("std", open_clip.OPENAI_DATASET_STD)
    vlp = kind(name, model, _tokenizer(name), mean, std)
    if found:
        load_into(model, found.state if side is None else interpolated(found.state, vlp), path)
        if not tag:
            _check_activation(vlp, found, path)
    return vlp.freeze()


def _check_activation(vlp: VLP, found: clip_weights.Weights, path: Path) -> None:
    """Warn of a file whose weights were, or may have been, trained with another activation than the model has."""
    if found.quick_gelu is False and vlp.quick_gelu:
        plain = vlp.name.removesuffix("-quickgelu")
        warnings.warn(f"{path}: trained with GELU, {vlp.name} has QuickGELU; use {plain}", stacklevel=3)
    elif found.maybe_openai and found.quick_gelu is None and not vlp.quick_gelu:
        warnings.warn(
            f"{path}: OpenAI trained with QuickGELU, {vlp.name} has GELU; use {vlp.name}-quickgelu", stacklevel=3
        )


def is_vit(name: str) -> bool:
    r"""Whether the image tower of a model is a ViT; if not, it is CLIP's ResNet. Nothing is built or fetched.

    ``VLP`` walks through the towers itself, so it takes plain CLIP only. Raises ``ValueError`` for an unknown name, and
    for what it would get wrong.
    """
    if name == MINI:
        return True
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        hint = did_you_mean(name, open_clip.list_models(), "see open_clip.list_models(), for example 'ViT-B-16'")
        raise ValueError(f"open_clip knows no model {name!r}; {hint}")
    vision, text = config["vision_cfg"], config["text_cfg"]
    odd = {"custom_text", "multimodal_cfg"} & config.keys()
    odd |= {"timm_model_name", "attentional_pool", "pool_type", "final_ln_after_pool"} & vision.keys()
    odd |= {"hf_model_name", "hf_tokenizer_name", "no_causal_mask", "pool_type", "proj_type", "proj_bias"} & text.keys()
    if odd:
        raise ValueError(
            f"{name} is not a ViT with a class token, nor CLIP's own ResNet, beside CLIP's text tower "
            f"({', '.join(sorted(odd))}); take 'ViT-B-16' or 'RN50'"
        )
    return isinstance(vision["layers"], int)


def _checked_side(name: str, side: int | None) -> int | None:
    """``side`` itself. Raises ``ValueError`` if pictures of that side do not divide into patches or positions."""
    step = open_clip.get_model_config(name)["vision_cfg"].get("patch_size") or RESNET_STEP
    if side is not None and (side < step or side % step):
        what = "patches" if is_vit(name) else "positions"
        near = max(1, round(side / step)) * step
        raise ValueError(f"side = {side}: {name} cuts pictures into {what} of {step} pixels; give a multiple: {near}")
    return side


RESNET_STEP = 32  # pixels of the picture for one position of a ResNet's last map


def interpolated(state: dict[str, Tensor], vlp: VLP) -> dict[str, Tensor]:
    r"""Weights whose position vectors, one for each token of the image tower, are brought to the grid of ``vlp``.

    Bicubic with antialiasing, by open_clip's own function; the vector of the first token stays. A state without them,
    or with a number that is no square, comes back as it is, for ``load_into`` to name.
    """
    rows = state.get(vlp.positions)
    if rows is None or rows.ndim != 2 or math.isqrt(len(rows) - 1) ** 2 != len(rows) - 1:
        return state
    moved = {"visual.positional_embedding": rows.float()}  # the name of a ViT, which is all that the function knows
    resize_pos_embed(moved, SimpleNamespace(visual=SimpleNamespace(grid_size=(vlp.N, vlp.N))))
    return state | {vlp.positions: moved["visual.positional_embedding"]}


def load_mini_weights(vlp: VLP, path: str | Path, resize: bool = False) -> None:
    r"""Fill the mini VLP from a file of ``save_mini_weights``; rows of the token table that it lacks become zero.

    With ``resize``, position vectors of another picture side are ``interpolated``.

    Raises ``FileNotFoundError``, or ``ValueError`` for a damaged file or one that does not fit.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no weights of the mini VLP; notebook 02 makes them, or reinstall hrcf")
    state = {name: value.float() if value.is_floating_point() else value for name, value in read_tensors(path).items()}
    rows, values = state.pop("token_rows", None), state.pop("token_embedding.rows", None)
    if rows is not None and values is not None:
        table = values.new_zeros(len(vlp.model.token_embedding.weight), values.shape[-1])
        table[rows] = values
        state["token_embedding.weight"] = table
    load_into(vlp.model, interpolated(state, vlp) if resize else state, path)
    vlp.trained = set(rows.tolist())


def save_mini_weights(vlp: VLP, path: str | Path, rows: Tensor) -> None:
    """Write fp16 weights; of the token table only start, end and ``rows``, the ids that occur in a caption."""
    ends = torch.tensor([vlp.tokenizer.sot_token_id, vlp.tokenizer.eot_token_id])
    rows = torch.cat([rows, ends]).unique()
    state = {n: v.half() if v.is_floating_point() else v for n, v in vlp.model.state_dict().items()}
    table = state.pop("token_embedding.weight")
    write_tensors(state | {"token_rows": rows, "token_embedding.rows": table[rows]}, path)


@cache
def mini() -> VLP:
    """The shipped mini VLP, loaded once per process."""
    return load(MINI)


_tokenizer = cache(open_clip.get_tokenizer)  # of one name, read once: it has no state, and reading takes 0.2 s


def _quietly(function, *args, **kwargs):
    """open_clip warns of random weights through the root logger; here that is what was asked for."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        return function(*args, **kwargs)
    finally:
        root.setLevel(level)


def find_weights(name: str, weights: str) -> Path:
    r"""The file that holds ``weights`` of the open_clip model ``name``: a path on this machine, or a tag of open_clip.

    A tag is looked up in the cache of the Hugging Face hub first; only what is not there is downloaded. Of a folder it
    is the first of ``IN_A_FOLDER`` that is there.

    Raises:
        FileNotFoundError: ``weights`` is neither a tag of this model nor a file, nor a folder with one.
        OSError: the tag's file is not in the cache and cannot be downloaded; says what to fetch and where to put it.
    """
    tag = open_clip.get_pretrained_cfg(name, str(weights))
    if not tag:
        path = user_path(weights, "vlp_weights")
        if inside := [path / file for file in IN_A_FOLDER if (path / file).is_file()]:
            return inside[0]
        if path.is_file():
            return path
        if path.is_dir():
            raise FileNotFoundError(f"weights {str(weights)!r}: the folder has none of {', '.join(IN_A_FOLDER)}")
        known = open_clip.list_pretrained_tags_by_model(name)
        hint = did_you_mean(weights, known, f"tags: {', '.join(known) or 'none'}")
        raise FileNotFoundError(f"weights {str(weights)!r}: no such file, and no tag of open_clip's {name}; {hint}")
    repository, _, file = tag.get("hf_hub", "").rpartition("/")
    choices = [str(PurePosixPath(file).with_suffix(".safetensors")), file] if file else HUB_FILES
    for choice in choices:
        path = huggingface_hub.try_to_load_from_cache(repository, choice) if repository else None
        if isinstance(path, str):  # else None, or a mark that the repository has no such file
            return Path(path)
    reason = "huggingface.co does not answer"
    if online() or not repository:
        try:
            return Path(open_clip.download_pretrained(tag))
        except Exception as error:  # no access, no space, a broken download: every kind of its own
            reason = str(error)
    plain = name.removesuffix("-quickgelu")
    raise OSError(
        f"the weights {weights!r} of {name} are not on this machine and could not be downloaded ({reason}). Where "
        f"there is a network, run\n  hf download {repository or tag.get('url')} {choices[0]}\nand copy the cache to "
        f"{huggingface_hub.constants.HF_HUB_CACHE}, or copy that one file anywhere and set vlp_weights to its path "
        f"and vlp to {plain + '-quickgelu' if tag.get('quick_gelu') else plain!r}"
    )


HUB_FILES = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]  # where a tag of open_clip names no file
IN_A_FOLDER = [*HUB_FILES, "model.safetensors", "pytorch_model.bin"]  # the last two: Hugging Face's


def online(seconds: float = 5.0) -> bool:
    """Whether the Hugging Face hub answers: one question, where the hub's own client would retry for a minute."""
    try:
        get_session().head(huggingface_hub.constants.ENDPOINT, timeout=seconds)
    except Exception:  # no name server, no route, a time-out, or HF_HUB_OFFLINE=1
        return False
    return True
