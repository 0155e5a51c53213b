r"""Where a label was seen: each region's share of the label's score, put where the region came from. No gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hrcf_lib.labels import check_names
from hrcf_lib.scores import region_scores, votes


@torch.no_grad()
def region_shares(regions: Tensor, label_embeddings: Tensor) -> Tensor:
    r"""What each region adds to each label's RSA score, $w_{jk} s_{jk}$ of Eq. 13: (B, J, D), (K, D) -> (B, J, K)."""
    return votes(region_scores(regions, label_embeddings))


@torch.no_grad()
def level_maps(shares: Tensor, sides: list[int]) -> list[Tensor]:
    """Shares (B, J, K) -> a map (B, K, h, h) for each level (10 x 10, 6 x 6, 2 x 2)."""
    parts = shares.split([side**2 for side in sides], dim=1)
    return [part.transpose(1, 2).unflatten(2, (side, side)) for part, side in zip(parts, sides, strict=True)]


@torch.no_grad()
def region_map(shares: Tensor, sides: list[int], size: int) -> Tensor:
    """All levels in one map (B, K, size, size) in 0..1, from shares (B, J, K).

    A share becomes a density (divided by the area of its cell, negative ones count 0), each level is enlarged
    bilinearly, and the sum is stretched to 0..1 for each label; a map without any difference is 0.
    """
    maps = [
        F.interpolate(m.clamp(min=0), size=(size, size), mode="bilinear", align_corners=False) * m.shape[-1] ** 2
        for m in level_maps(shares, sides)
    ]
    total = torch.stack(maps).sum(0)  # (B, K, size, size)
    low, high = total.amin((-2, -1), keepdim=True), total.amax((-2, -1), keepdim=True)
    span = high - low
    return torch.where(span > 1e-5 * high, (total - low) / span, 0)  # rounding errors of a flat map are not stretched


@torch.no_grad()
def maps_for(model, images: Tensor, labels) -> Tensor:
    r"""Maps (B, K, side, side) of pictures (B, 3, side, side) for the K given label names.

    The softmax runs over the model's reference labels and the user's; only the user's columns come back. All regions
    take part: RSS leaves some out of the score, not out of the picture. Raises ``ValueError`` as ``predict.classify``.
    """
    names, columns = reference_columns(model, labels)
    _, regions = model.embed(images)
    shares = region_shares(regions, model.label_embeddings(names))[..., columns]  # (B, J, K)
    sides = model.gather.sides if model.config.hcg else [model.vlp.N]
    return region_map(shares, sides, model.vlp.side).cpu()


def reference_columns(model, labels) -> tuple[list[str], list[int]]:
    """Reference vocabulary plus the user's labels, and the columns of the user's labels in it.

    The text tower reads lower case, so a label that differs from a reference label in case only is that label. Raises
    ``ValueError`` for two labels of the user's that do.
    """
    labels, names = check_names(labels), list(model.reference_labels)
    column, own = {}, {}
    for k, name in enumerate(names):
        column.setdefault(name.casefold(), k)
    for label in labels:
        key = label.casefold()
        if key in own:
            raise ValueError(f"labels {own[key]!r} and {label!r} differ in case only; keep one of them")
        own[key] = label
        if key not in column:
            column[key] = len(names)
            names.append(label)
    return names, [column[key] for key in own]
