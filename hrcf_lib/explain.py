r"""Where a label was seen. HRCF's own maps need no gradient: each region's share of a label's score, put where it came from."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hrcf_lib.scores import region_scores


@torch.no_grad()
def region_shares(regions: Tensor, label_embeddings: Tensor) -> Tensor:
    r"""What each region adds to each label's RSA score, $w_{jk} s_{jk}$ of Eq. 13: (B, J, D), (K, D) -> (B, J, K)."""
    s = region_scores(regions, label_embeddings)  # (B, J, K)
    return s.softmax(dim=-1) * s


@torch.no_grad()
def level_maps(shares: Tensor, sides: list[int]) -> list[Tensor]:
    """Shares (B, J, K) -> a map (B, K, h, h) for each level (10 x 10, 6 x 6, 2 x 2)."""
    parts = shares.split([side**2 for side in sides], dim=1)
    return [part.transpose(1, 2).unflatten(2, (side, side)) for part, side in zip(parts, sides, strict=True)]


@torch.no_grad()
def region_map(shares: Tensor, sides: list[int], size: int) -> Tensor:
    """All levels in one map (B, K, size, size): each level enlarged bilinearly, divided by its cell's area, summed, in 0..1."""
    maps = [
        F.interpolate(m.clamp(min=0), size=(size, size), mode="bilinear", align_corners=False) * m.shape[-1] ** 2
        for m in level_maps(shares, sides)
    ]
    total = torch.stack(maps).sum(0)  # (B, K, size, size)
    low, high = total.amin((-2, -1), keepdim=True), total.amax((-2, -1), keepdim=True)
    return (total - low) / (high - low).clamp(min=1e-12)


def maps_for(model, images: Tensor, labels) -> Tensor:
    r"""Maps (B, K, side, side) of pictures (B, 3, side, side) for the given label names, inside the reference vocabulary.

    The softmax runs over the model's reference labels and the user's; only the user's columns come back.
    """
    names, columns = reference_columns(model, labels)
    with torch.no_grad():
        _, regions = model.image_embeddings(model.vlp.trunk(images))
        shares = region_shares(regions, model.label_embeddings(names))[..., columns]  # (B, J, K)
    sides = model.gather.sides if model.config.hcg else [model.vlp.N]
    return region_map(shares, sides, model.vlp.side)


def reference_columns(model, labels) -> tuple[list[str], list[int]]:
    """Reference vocabulary plus the user's labels, and the columns of the user's labels in it."""
    names = list(model.reference_labels) + [name for name in labels if name not in model.reference_labels]
    column = {name: k for k, name in enumerate(names)}
    return names, [column[name] for name in labels]
