r"""The frozen vision-language pre-trained model (VLP): its two towers step by step, and how it is loaded.

open_clip builds the model. Here its image tower is cut before the last block, because student and teacher share
everything before it (the trunk), and its text tower takes token *embeddings*, because prompts are learnt there.

The mini VLP is an open_clip model too: config ``assets/hrcf-mini.json``, weights ``assets/hrcf-mini.safetensors``. It
adds a convolutional stem in place of the patch convolution: three strided convolutions learn much faster than one
8 x 8 patch projection.

B pictures, N side of the patch grid, K texts, L tokens of the longest, C width, D embedding width. Embeddings are at
the VLP's own scale, not of unit length.
"""

import hashlib
import logging
import warnings
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath

import huggingface_hub
import open_clip
import torch
from huggingface_hub.utils import get_session
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from hrcf_lib.engine.files import load_into, read_tensors, write_tensors
from hrcf_lib.engine.messages import did_you_mean

MINI = "hrcf-mini"
ASSETS = files("hrcf_lib") / "assets"


class VLP(nn.Module):
    r"""A CLIP-like model with its tokenizer and picture statistics.

    Attributes: ``C`` width of the ViT, ``D`` embedding width, ``N`` side of the patch grid, ``side`` pixels of a
    picture, ``context_length`` most tokens of a text, start and end included, ``trained`` the set of token ids that the
    text tower ever saw, or ``None`` if it knows them all. ``trained_blocks`` is the number of last blocks of the image
    tower that are not part of the trunk, because a method trains copies of them: 1 for HRCF.
    """

    trained_blocks = 1

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
        """Switch gradients off and evaluation mode on, whatever ``train`` is called with later."""
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
        """All blocks but the last ``trained_blocks``, shared by teacher and student: pictures -> (B, 1 + N^2, C)."""
        v = self.model.visual
        x = v.conv1(self.normalise(images)).flatten(2).transpose(1, 2)  # (B, N*N, C)
        cls = v.class_embedding.expand(x.shape[0], 1, -1)  # (B, 1, C); with len() a graph of it holds for one B
        x = v.ln_pre(torch.cat([cls, x], dim=1) + v.positional_embedding)  # (B, 1 + N*N, C)
        for block in v.transformer.resblocks[: self.depth - self.trained_blocks]:
            x = block(x)
        return x

    def teacher(self, trunk: Tensor) -> Tensor:
        """The VLP's own global embedding e_p, from trunk tokens: (B, 1 + N^2, C) -> (B, D)."""
        v = self.model.visual
        for block in v.transformer.resblocks[self.depth - self.trained_blocks :]:
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
                "hrcf_lib.data.mojiscenes.openmoji.names(), or a VLP with a full vocabulary such as ViT-B-16"
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


class ConvStem(nn.Sequential):
    """Pictures (B, 3, S, S) -> (B, C, S/8, S/8): three strided 3 x 3 convolutions and a 1 x 1."""

    def __init__(self, width: int, channels=(24, 48, 96)):
        layers, previous = [], 3
        for c in channels:
            layers += [nn.Conv2d(previous, c, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(c), nn.GELU()]
            previous = c
        super().__init__(*layers, nn.Conv2d(previous, width, 1))


def create_mini() -> VLP:
    """The mini VLP with random weights, trainable: what ``studies.pretrain_mini`` starts from."""
    if MINI not in open_clip.list_models():
        open_clip.add_model_config(str(ASSETS / f"{MINI}.json"))
    model = _quietly(open_clip.create_model, MINI, pretrained=None)
    model.visual.conv1 = ConvStem(model.visual.conv1.out_channels)
    return VLP(MINI, model, _tokenizer(MINI), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def load(name: str, weights: str | None = None, pretrained: bool = True) -> VLP:
    r"""A frozen VLP by open_clip model name.

    A tag brings its own activation and picture statistics. A checkpoint on disk does not say which activation it was
    trained with: for OpenAI's weights choose the model name that ends in ``-quickgelu``.

    Args:
        name: ``"hrcf-mini"``, or any CLIP of open_clip whose image tower is a plain ViT, such as ``"ViT-B-16"``.
        weights: open_clip tag such as ``"openai"``, or the path of a checkpoint (``.safetensors``, or PyTorch's own
            format if it holds tensors only); for the mini ``None`` is what ships.
        pretrained: ``False`` gives random weights and needs no network.

    Raises:
        ValueError: unknown model name, a model of another build, no ``weights`` given, a file that is damaged or would
            have to be unpickled, or weights that do not fit the model (names and shapes listed).
        OSError: the weights are neither here nor to be downloaded; the message says what to fetch and where to put it.
    """
    if name == MINI:
        vlp = create_mini()
        if pretrained:
            load_mini_weights(vlp, weights or ASSETS / f"{MINI}.safetensors")
        return vlp.freeze()
    _check_build(name)
    if pretrained and weights is None:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:6])
        raise ValueError(f"{name} without vlp_weights: give a tag ({tags or 'none known'}) or the path of a checkpoint")
    path = find_weights(name, weights) if pretrained else None  # its errors come before the model is built
    tag = open_clip.get_pretrained_cfg(name, str(weights)) or {}
    model = _quietly(open_clip.create_model, name, pretrained=None, force_quick_gelu=tag.get("quick_gelu", False))
    mean, std = tag.get("mean", open_clip.OPENAI_DATASET_MEAN), tag.get("std", open_clip.OPENAI_DATASET_STD)
    vlp = VLP(name, model, _tokenizer(name), mean, std)
    if path:
        sizes = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI keeps beside its weights
        load_into(model, {n: v for n, v in read_tensors(path).items() if n not in sizes}, path)
        if not tag and "openai" in str(path).lower() and not vlp.quick_gelu:
            warnings.warn(f"{path}: OpenAI trained with QuickGELU, {name} has GELU; use {name}-quickgelu", stacklevel=2)
    return vlp.freeze()


def _check_build(name: str) -> None:
    """``VLP`` walks through the towers itself, so it takes plain CLIP only, and refuses what it would get wrong."""
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        hint = did_you_mean(name, open_clip.list_models(), "see open_clip.list_models(), for example 'ViT-B-16'")
        raise ValueError(f"open_clip knows no model {name!r}; {hint}")
    vision, text = config["vision_cfg"], config["text_cfg"]
    odd = {"custom_text", "multimodal_cfg"} & config.keys()
    odd |= {"timm_model_name", "attentional_pool", "pool_type", "final_ln_after_pool"} & vision.keys()
    odd |= {"hf_model_name", "hf_tokenizer_name", "no_causal_mask", "pool_type", "proj_type", "proj_bias"} & text.keys()
    if odd or not isinstance(vision["layers"], int):
        reason = ", ".join(sorted(odd)) or "ResNet"
        raise ValueError(f"{name} is not a ViT with a class token beside CLIP's text tower ({reason}); take 'ViT-B-16'")


def load_mini_weights(vlp: VLP, path: str | Path) -> None:
    r"""Fill the mini VLP from a file of ``save_mini_weights``; rows of the token table that it lacks become zero.

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
    load_into(vlp.model, state, path)
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

    A tag is looked up in the cache of the Hugging Face hub first; only what is not there is downloaded.

    Raises:
        FileNotFoundError: ``weights`` is neither a tag of this model nor a file.
        OSError: the tag's file is not in the cache and cannot be downloaded; says what to fetch and where to put it.
    """
    tag = open_clip.get_pretrained_cfg(name, str(weights))
    if not tag:
        if Path(weights).is_file():
            return Path(weights)
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


def online(seconds: float = 5.0) -> bool:
    """Whether the Hugging Face hub answers: one question, where the hub's own client would retry for a minute."""
    try:
        get_session().head(huggingface_hub.constants.ENDPOINT, timeout=seconds)
    except Exception:  # no name server, no route, a time-out, or HF_HUB_OFFLINE=1
        return False
    return True
