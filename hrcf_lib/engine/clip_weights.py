r"""Weights of CLIP as people have them, under the names that open_clip gives them.

============================  ==========================================================================================
OpenAI's ``ViT-B-16.pt``      a TorchScript archive (``torchscript.py``) with open_clip's names
Hugging Face's ``CLIPModel``  ``model.safetensors`` or ``pytorch_model.bin``: other names, the three projections of an
                              attention layer apart, and projections to the joint space transposed
open_clip's                   ``open_clip_model.safetensors``, ``open_clip_pytorch_model.bin``, checkpoints of training;
                              models with a text tower of their own call its weights ``text.*``
============================  ==========================================================================================

Sources: the state dicts of openai/CLIP, mlfoundations/open_clip (``model.py``) and huggingface/transformers
(``convert_clip_original_pytorch_to_hf.py``).
"""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hrcf_lib.engine import torchscript
from hrcf_lib.engine.files import read_json
from hrcf_lib.engine.weights import read_tensors, unwrapped

SIZES = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI keeps beside its weights
NOT_WEIGHTS = re.compile(r"(.*\.)?(attn_mask|position_ids)")  # buffers that follow from the sizes
TEXT = re.compile(r"text\.(text_projection|positional_embedding|token_embedding\.|transformer\.|ln_final\.)")

# Hugging Face's names -> open_clip's, in the order of the model
HUGGING_FACE = [
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # their spelling
    (r"vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
]
IN_A_BLOCK = {
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
}
TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
PROJECTION = re.compile(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)")


class Weights(NamedTuple):
    """What a file holds."""

    state: dict[str, Tensor]  # name -> tensor, under open_clip's names
    quick_gelu: bool | None  # whether it says that the activation is QuickGELU; None: it does not say
    maybe_openai: bool  # whether it may be OpenAI's, who trained with QuickGELU


def read(path: str | Path) -> Weights:
    r"""The weights in a file of any of the three kinds, and what it says of the activation.

    They are not checked against a model: ``weights.load_into`` does it. Raises what ``weights.read_tensors`` raises.
    """
    path = Path(path)
    state = unwrapped(read_tensors(path))
    quick_gelu = _quick_gelu(path, state)
    theirs = quick_gelu is None and is_hugging_face(state) or "openai" in str(path).lower() or bool({*SIZES} & {*state})
    return Weights(open_clip_names(state), quick_gelu, theirs)


def open_clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of any of the three under open_clip's names; what is no weight is left out, and what has a name of
    none of them stays, for ``weights.load_into`` to tell."""
    state = {name: value for name, value in state.items() if name not in SIZES and not NOT_WEIGHTS.fullmatch(name)}
    if is_hugging_face(state):
        return _from_hugging_face(state)
    return {name.removeprefix("text.") if TEXT.match(name) else name: value for name, value in state.items()}


def is_hugging_face(state: dict[str, Tensor]) -> bool:
    """Whether names are those of Hugging Face's ``CLIPModel``."""
    return any(name.startswith(("vision_model.", "text_model.")) for name in state)


def _from_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found, parts = {}, {}
    for name, value in state.items():
        if part := PROJECTION.fullmatch(name):
            block, which, kind = part.groups()
            parts.setdefault(f"{_renamed(block)}.attn.in_proj_{kind}", {})[which] = (name, value)
        elif name in TRANSPOSED:
            found[TRANSPOSED[name]] = value.T  # (D, C) -> (C, D)
        else:
            found[_renamed(name)] = value
    for name, three in parts.items():
        if set(three) == set("qkv"):
            found[name] = torch.cat([three[which][1] for which in "qkv"])  # (3 C, C) or (3 C,)
        else:
            found |= dict(three.values())  # one of the three is missing: told by their own names
    return found


def _renamed(name: str) -> str:
    for theirs, ours in HUGGING_FACE:
        name = re.sub(f"^{theirs}", ours, name)
    for theirs, ours in IN_A_BLOCK.items():
        name = name.replace(theirs, ours)
    return name


def _quick_gelu(path: Path, state: dict[str, Tensor]) -> bool | None:
    """What a file says of the activation.

    An archive names the classes of its modules, and only OpenAI's have ``SIZES``; beside Hugging Face's weights a
    ``config.json`` has ``hidden_act``, which is QuickGELU where it is left out. Other files say nothing.
    """
    if torchscript.is_archive(path):
        return bool({*SIZES} & {*state}) or "QuickGELU" in torchscript.class_names(path) or None
    beside = path.parent / "config.json"
    if not is_hugging_face(state) or not beside.is_file():
        return None
    try:
        config = read_json(beside)
        named = {config[tower].get("hidden_act", "quick_gelu") for tower in ("vision_config", "text_config")}
    except (ValueError, LookupError, TypeError, AttributeError):  # of another kind, or cut: it says nothing
        return None
    return named == {"quick_gelu"} if len(named) == 1 else None
