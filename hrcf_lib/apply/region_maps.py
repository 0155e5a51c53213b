r"""Where a label was seen: each region's share of the label's score, drawn where the region came from. No gradients.

What a map shows depends on the method's ``map_kind``:

==============  ====================================================================================
``votes``       each region's vote of Eq. 13 (HRCF)
``scores``      the scores s_jk of the patches, which are the regions (MKT)
``attention``   the weights that the method's ``maps`` gives the patches, a softmax for each label
==============  ====================================================================================

``grad_cam.py`` makes maps of any method by gradients. B pictures, J regions on L levels, K labels, V labels that are
scored together.
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
    """Stretch each map (B, K, size, size) to 0..1; a flat one, whose differences are rounding errors, becomes 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    return torch.where(span > 1e-5 * high.abs(), (maps - low) / span, 0)


@torch.no_grad()
def maps_for(model, images: Tensor, labels) -> Tensor:
    r"""Maps (B, K, side, side) of pictures (B, 3, side, side) for the K given label names.

    The softmax runs over the model's reference labels and the user's; only the user's columns are returned. All regions
    take part: RSS drops some from the score, not from the picture. Votes are drawn by ``region_map``, scores and
    attention by ``score_map``. Raises ``ValueError`` for a method without a ``map_kind``, for labels as
    ``predict.classify``, and as the method's ``maps``.
    """
    words = beside_reference(model, labels)
    return torch.stack(maker(model, words)(images, [words.labels] * len(images)))


def maker(model, names, level: int | None = None, kind: str | None = None) -> Callable:
    r"""A function (pictures, B lists of names) -> B maps (k, side, side), where each picture has its own labels.

    It makes the maps of ``maps_for``, or those of one ``level`` of regions (1 is the finest), or of another ``kind``:
    methods of the kinds ``votes`` and ``scores`` have both, the others only ``attention``. The labels of each picture
    are among ``names``; these and the reference vocabulary are scored together, and are embedded here, once. Raises as
    ``maps_for``, and ``ValueError`` for an unknown level or kind.
    """
    _drawn(model, level, kind)  # raises before the work
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
    r"""Maps (B, k, side, side) in 0..1 of k columns of ``t``, from regions (B, J, D) that ``embed`` returned.

    ``t`` (V, D) are all labels that are scored together; ``columns`` are places among them, as a list or a tensor.
    ``level``, ``kind`` and errors as for ``maker``.
    """
    kind, level_sides, part = _drawn(model, level, kind)
    regions, side = regions[:, part], model.vlp.side
    if not len(columns):
        return regions.new_empty(len(regions), 0, side, side)
    if kind == "votes":
        return region_map(region_shares(regions, t)[..., columns], level_sides, side)  # softmax over all V
    if kind == "attention":
        return score_map(model.maps(regions, t[columns]).transpose(1, 2), level_sides, side)  # (B, J, k)
    return score_map(region_scores(regions, t[columns]), level_sides, side)


def _drawn(model, level: int | None, kind: str | None) -> tuple[str, list[int], slice]:
    """The kind of map, the sides of its levels, and which of the J regions form them. Raises as ``maker``."""
    check_maps(model)
    kind = model.map_kind if kind is None else kind
    known = ["attention"] if model.map_kind == "attention" else ["votes", "scores"]
    check_known([kind], known, "unknown kind of map")
    return kind, *_level(model.region_sides, level)


def check_maps(model, kinds=("votes", "scores", "attention")) -> None:
    """Raise ``ValueError`` for a method whose ``map_kind`` is not among ``kinds``."""
    if model.map_kind not in kinds:
        raise ValueError(
            f"{model.title} does not score its regions one by one by t_k, so it has no region maps (its map_kind is "
            f"{model.map_kind!r}): take grad_cam.grad_cam, which works for any method"
        )


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
    """What each level of regions says about K labels; the map of a level has the side h of ``sides``."""

    added: list[Tensor]  # per level (B, K, h, h), what each region adds to the label's region score, any real number
    kept: list[Tensor]  # per level (B, h, h) bool, the regions that RSS keeps; all of them without RSS
    scores: Tensor  # (B, K, L), the sum of ``added`` over the kept regions; summed over the levels, the region score

    @property
    def shares(self) -> Tensor:
        """(B, K, L) in 0..1: each level's part of what the levels add or take away, of sum 1; NaN where none does."""
        amounts = self.scores.abs()
        return amounts / amounts.sum(dim=-1, keepdim=True)


@torch.no_grad()
def clues(model, images: Tensor, labels) -> Clues:
    r"""How the levels make up the region score of each label in evaluation mode, with RSS and RSA as configured.

    Without RSA, and in MKT, the k best regions of a label add $s_{jk} / k$ each and the others nothing. Pictures
    (B, 3, side, side); labels as for ``maps_for``. The result is on the CPU. Raises as ``maps_for``, and ``ValueError``
    for a method whose maps are attention.
    """
    check_maps(model, ("votes", "scores"))
    words = beside_reference(model, labels)
    t, (_, regions) = model.label_embeddings(words.names), model.embed(images)  # (V, D), (B, J, D)
    kept = _kept(model, regions, t)  # (B, J)
    s = region_scores(regions, t)  # (B, J, V)
    if model.map_kind == "votes" and model.config.rsa:
        added = votes(s)[..., words.columns]  # (B, J, K)  Eq. 13
    else:
        added = _of_best(s[..., words.columns], kept, model.config.topk)
    level_sides = model.region_sides
    parts = (added * kept.unsqueeze(-1)).split([side**2 for side in level_sides], dim=1)
    scores = torch.stack([part.sum(dim=1) for part in parts], dim=-1)  # (B, K, L)
    masks = [m[:, 0] for m in level_maps(kept.unsqueeze(-1), level_sides)]  # (B, h, h) each
    return Clues([m.cpu() for m in level_maps(added, level_sides)], [m.cpu() for m in masks], scores.cpu())


def _kept(model, regions: Tensor, t: Tensor) -> Tensor:
    """(B, J) bool: the regions that RSS keeps; all of them if the method or its config has no RSS."""
    B, J, _ = regions.shape
    if not (model.has_selection and model.config.rss):
        return torch.ones(B, J, dtype=torch.bool, device=regions.device)
    numbers = torch.arange(J, device=regions.device).expand(B, J).unsqueeze(-1)  # (B, J, 1)
    best = take_best(numbers, relevance(regions, t), regions_to_keep(model.config, J)).squeeze(-1)  # (B, keep)
    return torch.zeros(B, J, dtype=torch.bool, device=regions.device).scatter(1, best, True)


def _of_best(s: Tensor, kept: Tensor, k: int) -> Tensor:
    """What each region adds in top-k mean pooling: s_jk / k for the k best that are kept, 0 for others; (B, J, K)."""
    k = min(k, int(kept[0].sum()))
    best = s.masked_fill(~kept.unsqueeze(-1), -torch.inf).topk(k, dim=1).indices  # (B, k, K)
    return torch.zeros_like(s).scatter(1, best, s.gather(1, best) / k)
