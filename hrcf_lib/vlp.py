r"""The frozen vision-language pre-trained model (VLP), loaded through open_clip; its towers are in ``towers.py``.

The mini VLP is an open_clip model like any other: its config is ``assets/hrcf-mini.json``, its weights
``assets/hrcf-mini.safetensors``. The only thing it adds is a small convolutional stem in the place of the patch
convolution, because a stem of three strided convolutions learns much faster than one 8 x 8 patch projection.
"""

import logging
import warnings
from functools import cache
from importlib.resources import files
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

from hrcf_lib.names import did_you_mean
from hrcf_lib.towers import VLP, check_length, encode_tokens
from hrcf_lib.weights import find, fit, read, write

__all__ = ["ASSETS", "MINI", "VLP", "ConvStem", "check_length", "create_mini", "encode_tokens", "fit", "load"]
__all__ += ["load_mini_weights", "mini", "save_mini_weights"]

MINI = "hrcf-mini"
ASSETS = files("hrcf_lib") / "assets"


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
    if MINI not in open_clip.list_models():
        open_clip.add_model_config(str(ASSETS / f"{MINI}.json"))
    model = _quietly(open_clip.create_model, MINI, pretrained=None)
    model.visual.conv1 = ConvStem(model.visual.conv1.out_channels)
    return VLP(MINI, model, open_clip.get_tokenizer(MINI), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


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
    path = find(name, weights) if pretrained else None  # before the model is built: its errors come at once
    tag = open_clip.get_pretrained_cfg(name, str(weights)) or {}
    model = _quietly(open_clip.create_model, name, pretrained=None, force_quick_gelu=tag.get("quick_gelu", False))
    mean, std = tag.get("mean", open_clip.OPENAI_DATASET_MEAN), tag.get("std", open_clip.OPENAI_DATASET_STD)
    vlp = VLP(name, model, open_clip.get_tokenizer(name), mean, std)
    if path:
        sizes = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI keeps beside its weights
        fit(model, {n: v for n, v in read(path).items() if n not in sizes}, path)
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
        raise ValueError(f"{name} is no ViT with a class token beside CLIP's text tower ({reason}); take 'ViT-B-16'")


def load_mini_weights(vlp: VLP, path: str | Path) -> None:
    r"""Fill the mini VLP from a file of ``save_mini_weights``; rows of the token table that it lacks become zero.

    Raises ``FileNotFoundError``, or ``ValueError`` for a damaged file or one that does not fit.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no weights of the mini VLP; notebook 02 makes them, or reinstall hrcf")
    state = {name: value.float() if value.is_floating_point() else value for name, value in read(path).items()}
    rows, values = state.pop("token_rows", None), state.pop("token_embedding.rows", None)
    if rows is not None and values is not None:
        table = values.new_zeros(len(vlp.model.token_embedding.weight), values.shape[-1])
        table[rows] = values
        state["token_embedding.weight"] = table
    fit(vlp.model, state, path)
    vlp.trained = set(rows.tolist())


def save_mini_weights(vlp: VLP, path: str | Path, rows: Tensor) -> None:
    """Write fp16 weights; of the token table only start, end and ``rows``, the ids that occur in a caption."""
    ends = torch.tensor([vlp.tokenizer.sot_token_id, vlp.tokenizer.eot_token_id])
    rows = torch.cat([rows, ends]).unique()
    state = {n: v.half() if v.is_floating_point() else v for n, v in vlp.model.state_dict().items()}
    table = state.pop("token_embedding.weight")
    write(state | {"token_rows": rows, "token_embedding.rows": table[rows]}, path)


@cache
def mini() -> VLP:
    """The shipped mini VLP, loaded once a process."""
    return load(MINI)


def _quietly(function, *args, **kwargs):
    """open_clip warns of random weights through the root logger; here that is what was asked for."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        return function(*args, **kwargs)
    finally:
        root.setLevel(level)
