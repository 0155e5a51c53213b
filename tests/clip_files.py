"""The golden CLIP in the forms in which people have CLIP: OpenAI's archive, Hugging Face's names, open_clip's."""

import json
import re
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SIZES = {"input_resolution": 56, "context_length": 77, "vocab_size": 49408}


class Part(nn.Module):
    """A module of an archive, without code."""


class QuickGELU(nn.Module):
    """OpenAI's activation; an archive names its class."""

    def forward(self, x: Tensor):
        return x * torch.sigmoid(1.702 * x)


def openai(state: dict[str, Tensor], path: Path, half: bool = True, sizes: bool = True, gelu: str = "") -> Path:
    """An archive of ``torch.jit.save`` with the modules and names of OpenAI's, in half precision as theirs."""
    top = Part()
    for name, value in state.items():
        *above, last = name.split(".")
        at = top
        for part in above:
            if part not in dict(at.named_children()):
                at.add_module(part, Part())
            at = getattr(at, part)
        at.register_parameter(last, nn.Parameter(value.half() if half else value, requires_grad=False))
    for name, value in SIZES.items() if sizes else ():
        top.register_buffer(name, torch.tensor(value))
    if gelu:
        top.add_module("gelu", QuickGELU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        torch.jit.script(top).save(path)
    return path


def hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of ``CLIPModel``, with the buffers that older files have."""
    found = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    found["vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names |= {"attn.out_proj": "self_attn.out_proj"}
    heads = {
        "logit_scale": "logit_scale",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        **{f"ln_final.{kind}": f"text_model.final_layer_norm.{kind}" for kind in ("weight", "bias")},
        **{f"visual.ln_pre.{kind}": f"vision_model.pre_layrnorm.{kind}" for kind in ("weight", "bias")},
        **{f"visual.ln_post.{kind}": f"vision_model.post_layernorm.{kind}" for kind in ("weight", "bias")},
    }
    for name, value in state.items():
        if name in ("visual.proj", "text_projection"):
            found["visual_projection.weight" if "." in name else "text_projection.weight"] = value.T.contiguous()
        elif name in heads:
            found[heads[name]] = value
        else:
            tower, number, part, kind = re.fullmatch(
                r"(visual\.)?transformer\.resblocks\.(\d+)\.(.*?)[._](weight|bias)", name
            ).groups()
            block = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}"
            if part == "attn.in_proj":
                parts = zip("qkv", value.chunk(3), strict=True)
                found |= {f"{block}.self_attn.{which}_proj.{kind}": third.clone() for which, third in parts}
            else:
                found[f"{block}.{names[part]}.{kind}"] = value
    return found


def save_hugging_face(state: dict[str, Tensor], folder: Path, gelu: str | None = "quick_gelu", safe=True) -> Path:
    """``model.safetensors`` (or ``pytorch_model.bin``) and, unless ``gelu`` is None, the ``config.json`` beside it."""
    folder.mkdir(exist_ok=True)
    if gelu:
        towers = dict.fromkeys(("vision_config", "text_config"), {"hidden_act": gelu} if gelu != "default" else {})
        (folder / "config.json").write_text(json.dumps({"model_type": "clip", **towers}), encoding="utf-8")
    path = folder / ("model.safetensors" if safe else "pytorch_model.bin")
    save_file(hugging_face(state), path) if safe else torch.save(hugging_face(state), path)
    return path
