"""What several methods are made of: a tower that learns, its layer decay, dense features, and prompts that rest."""

import copy

import torch
from torch import Tensor, nn

from hrcf_lib.labels import check_names


def image_tower(vlp, blocks: int) -> tuple[nn.Sequential, nn.Module, nn.Linear]:
    """Trainable copies of the last ``blocks`` blocks, the final norm and the projection, which starts as the VLP's."""
    visual = vlp.model.visual
    last = list(visual.transformer.resblocks)[vlp.depth - blocks :]
    head = nn.Linear(vlp.C, vlp.D, bias=False)
    with torch.no_grad():
        head.weight.copy_(visual.proj.T)
    parts = nn.Sequential(*copy.deepcopy(last)), copy.deepcopy(visual.ln_post)
    return *(part.requires_grad_(True) for part in parts), head


def layer_decay(name: str, blocks: int, decay: float) -> float:
    """``decay ** (blocks - i)`` for a parameter of ``block.i``, the last of them at ``decay``; 1 for all others."""
    words = name.split(".")
    return decay ** (blocks - int(words[1])) if words[0] == "block" else 1.0


def patches(vlp, trunk: Tensor) -> Tensor:
    """The VLP's dense features, in the space of e_p: tokens (B, 1 + N^2, C) after the last block -> (B, N^2, D)."""
    return vlp.model.visual.ln_post(trunk[:, 1:]) @ vlp.model.visual.proj  # (B, N*N, D)


@torch.no_grad()
def fixed_prompts(vlp, names, template: str) -> Tensor:
    """(K, D) embeddings of names in a template. Raises ``ValueError`` for names that the text tower cannot take."""
    return vlp.encode_text([template.format(name) for name in check_names(names)])
