r"""Where a label was seen: each region's share of the label's score, put where the region came from. No gradients.

Of HRCF a region's share is its vote of Eq. 13; of MKT, whose regions are the patches, the map is that of the patch
scores s_jk; of a method with ``maps``, which weighs patches for each label by a softmax, it is these weights. (Maps by
gradients, for any method: ``grad_cam.py``.) B pictures, J regions on L levels, K labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hrcf_lib.apply.vocabulary import beside_reference
from hrcf_lib.engine.messages import check_known
from hrcf_lib.scores import region_scores, regions_to_keep, relevance, take_best, votes


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
    return _stretched(torch.stack(maps).sum(0))  # (B, K, size, size)


@torch.no_grad()
def score_map(region_scores: Tensor, sides: list[int], size: int) -> Tensor:
    """Scores s_jk (B, J, K) -> maps (B, K, size, size): each level enlarged, their sum stretched to 0..1."""
    maps = level_maps(region_scores, sides)
    return _stretched(sum(F.interpolate(m, size=(size, size), mode="bilinear", align_corners=False) for m in maps))


def _stretched(maps: Tensor) -> Tensor:
    """Each map (B, K, size, size) to 0..1; a flat one, whose differences are rounding errors, to 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    return torch.where(span > 1e-5 * high.abs(), (maps - low) / span, 0)


@torch.no_grad()
def maps_for(model, images: Tensor, labels) -> Tensor:
    r"""Maps (B, K, side, side) of pictures (B, 3, side, side) for the K given label names.

    The softmax runs over the model's reference labels and the user's; only the user's columns come back. All regions
    take part: RSS leaves some out of the score, not out of the picture. Of HRCF these are votes (``region_map``), of
    MKT patch scores (``score_map``), of a method with ``maps`` its attention, drawn as scores are. Raises
    ``ValueError`` as ``predict.classify``, for any other method, and as ``maps``.
    """
    words = beside_reference(model, labels)
    return torch.stack(maker(model, words)(images, [words.labels] * len(images)))


def maker(model, names, level: int | None = None, kind: str | None = None) -> Callable:
    r"""A function (pictures, B lists of names) -> B maps (k, side, side): each picture has labels of its own.

    The maps of ``maps_for``, or those of one ``level`` of regions (1 is the finest), or of another ``kind``: ``votes``
    (``region_map``) or ``scores`` (``score_map``); a method with ``maps`` has ``attention`` alone. Labels that are
    asked for are among ``names``, and all of these and the reference vocabulary are scored together. Their embeddings
    are computed here, once. Raises as ``maps_for``, and ``ValueError`` for a level or a kind that is not there.
    """
    _way(model, level, kind)  # refused before the work
    words = beside_reference(model, names)
    with torch.no_grad():
        t = model.label_embeddings(words.names)  # (V, D)

    @torch.no_grad()
    def make(images: Tensor, asked) -> list[Tensor]:
        columns = [words.columns_of(own) for own in asked]
        _, regions = model.embed(images)  # (B, J, D)
        pairs = zip(regions.split(1), columns, strict=True)
        return [region_maps(model, part, t, ks, level, kind)[0].cpu() for part, ks in pairs]

    return make


@torch.no_grad()
def region_maps(
    model, regions: Tensor, t: Tensor, columns, level: int | None = None, kind: str | None = None
) -> Tensor:
    r"""Maps (B, k, side, side) in 0..1 of k columns of ``t``, from regions (B, J, D) that ``embed`` gave.

    ``t`` (K, D) are all labels that are scored together; ``columns`` are numbers among them, as a list or a tensor.
    ``level``, ``kind`` and errors as for ``maker``.
    """
    kind, own_sides, part = _way(model, level, kind)
    regions, side = regions[:, part], model.vlp.side
    if not len(columns):
        return regions.new_empty(len(regions), 0, side, side)
    if kind == "votes":
        return region_map(region_shares(regions, t)[..., columns], own_sides, side)  # softmax over all K
    if kind == "attention":
        return score_map(model.maps(regions, t[columns]).transpose(1, 2), own_sides, side)  # (B, J, k)
    return score_map(region_scores(regions, t[columns]), own_sides, side)


def _way(model, level: int | None, kind: str | None) -> tuple[str, list[int], slice]:
    """The kind of map, sides of its levels, and which of the J regions form them. Raises as ``maker``."""
    own = kind_of(model)
    kind = own if kind is None else kind
    check_known([kind], ["attention"] if own == "attention" else ["votes", "scores"], "unknown kind of map")
    return kind, *_level(sides(model), level)


def has_maps(model) -> bool:
    """Whether a method has maps of its own."""
    return model.map_kind is not None


def kind_of(model) -> str:
    """``votes``, ``scores`` or ``attention``. Raises ``ValueError`` for a method without maps of its own."""
    if model.map_kind != "attention":
        check_regions(model)
    return model.map_kind


def check_regions(model) -> None:
    """Raise ``ValueError`` for a method without regions that are scored one by one."""
    if model.map_kind not in ("votes", "scores"):
        raise ValueError(
            f"{model.title} does not score its regions one by one by t_k, so it has no region maps (its map_kind is "
            f"{model.map_kind!r}): take grad_cam.grad_cam, which is of any method"
        )


def sides(model) -> list[int]:
    """Sides of the maps that a model's regions form, level after level: [10, 6, 2], or [14] where they are patches."""
    return model.gather.sides if hasattr(model, "gather") else [model.vlp.N]


def _level(sides: list[int], level: int | None) -> tuple[list[int], slice]:
    """Sides of the maps that are asked for, and which of the J regions form them."""
    if level is None:
        return sides, slice(None)
    if not 1 <= level <= len(sides):
        raise ValueError(f"level = {level} of {len(sides)} level(s) of regions: choose from 1 to {len(sides)}")
    first = sum(side**2 for side in sides[: level - 1])
    return [sides[level - 1]], slice(first, first + sides[level - 1] ** 2)


@dataclass(frozen=True)
class Clues:
    """What each level of regions says of K labels; a level's map has the side h of ``sides``."""

    added: list[Tensor]  # a level: (B, K, h, h), what each region adds to the label's region score, any real number
    kept: list[Tensor]  # a level: (B, h, h) bool, the regions that RSS keeps; all of them without RSS
    scores: Tensor  # (B, K, L), the sum of ``added`` over the kept regions; over the levels the region score

    @property
    def shares(self) -> Tensor:
        """(B, K, L) in 0..1: each level's part of what the levels add or take away, of sum 1; NaN where none does."""
        amounts = self.scores.abs()
        return amounts / amounts.sum(dim=-1, keepdim=True)


@torch.no_grad()
def clues(model, images: Tensor, labels) -> Clues:
    r"""Level by level, how the region score of each label comes about, in evaluation mode: RSS and RSA as configured.

    Without RSA, and in MKT, the k best regions of a label add $s_{jk} / k$ each and the others nothing. Pictures
    (B, 3, side, side); labels as for ``maps_for``, whose errors it raises. The result is on the CPU.
    """
    check_regions(model)
    words = beside_reference(model, labels)
    t, (_, regions) = model.label_embeddings(words.names), model.embed(images)  # (V, D), (B, J, D)
    kept = _kept(model, regions, t)  # (B, J)
    s = region_scores(regions, t)  # (B, J, V)
    if model.map_kind == "votes" and model.config.rsa:
        added = votes(s)[..., words.columns]  # (B, J, K)  Eq. 13
    else:
        added = _of_best(s[..., words.columns], kept, model.config.topk)
    own = sides(model)
    parts = (added * kept.unsqueeze(-1)).split([side**2 for side in own], dim=1)
    scores = torch.stack([part.sum(dim=1) for part in parts], dim=-1)  # (B, K, L)
    masks = [m[:, 0] for m in level_maps(kept.unsqueeze(-1), own)]  # (B, h, h) each
    return Clues([m.cpu() for m in level_maps(added, own)], [m.cpu() for m in masks], scores.cpu())


def _kept(model, regions: Tensor, t: Tensor) -> Tensor:
    """(B, J) bool: the regions that RSS keeps, of a method that has it switched on."""
    B, J, _ = regions.shape
    if not (model.has_selection and model.config.rss):
        return torch.ones(B, J, dtype=torch.bool, device=regions.device)
    numbers = torch.arange(J, device=regions.device).expand(B, J).unsqueeze(-1)  # (B, J, 1)
    best = take_best(numbers, relevance(regions, t), regions_to_keep(model.config, J)).squeeze(-1)  # (B, keep)
    return torch.zeros(B, J, dtype=torch.bool, device=regions.device).scatter(1, best, True)


def _of_best(s: Tensor, kept: Tensor, k: int) -> Tensor:
    """What top-k mean pooling takes of each region: s_jk / k of the k best that are kept, 0 of others; (B, J, K)."""
    k = min(k, int(kept[0].sum()))
    best = s.masked_fill(~kept.unsqueeze(-1), -torch.inf).topk(k, dim=1).indices  # (B, k, K)
    return torch.zeros_like(s).scatter(1, best, s.gather(1, best) / k)
