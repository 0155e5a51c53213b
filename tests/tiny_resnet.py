"""A tiny CLIP with CLIP's ResNet for pictures, entered as a model of open_clip: widths all differ, weights are random.

At 64 pixels N = 2 and C = 256; D = 32, and tokens of the text tower are 48 wide.
"""

import open_clip
import torch
from safetensors.torch import save_file

from hrcf_lib import vlp as vlps

NAME = "tiny-resnet"
CONFIG = {  # as an open_clip model config; C = 32 * width, heads of the pool = C / head_width
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 64, "patch_size": None},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
}


def enter(patch) -> None:
    """Make open_clip know it, with GELU and with QuickGELU; ``patch`` is a ``MonkeyPatch``."""
    patch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, CONFIG)
    patch.setitem(open_clip.factory._MODEL_CONFIGS, f"{NAME}-quickgelu", CONFIG | {"quick_gelu": True})


@torch.no_grad()
def stir(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random statistics and weights of batch norms, some of which start at 0, and biases of the pool."""
    rng = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=rng)
            module.running_var.uniform_(0.15, 0.35, generator=rng)  # about what random convolutions give
            module.weight.uniform_(0.5, 1.5, generator=rng)
            module.bias.normal_(0, 0.1, generator=rng)
    for layer in (model.visual.attnpool.v_proj, model.visual.attnpool.c_proj):
        layer.bias.normal_(0, 0.1, generator=rng)
    return model


def load(name: str = NAME, side: int | None = None, seed: int = 0) -> vlps.VLP:
    """The frozen VLP; ``enter`` comes first."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vlp = vlps.load(name, pretrained=False, side=side)
    stir(vlp.model, seed)
    return vlp


def save(folder, name: str = NAME):
    """Path of a checkpoint of ``load``."""
    save_file(load(name).model.state_dict(), folder / "resnet.safetensors")
    return folder / "resnet.safetensors"
