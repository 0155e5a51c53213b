r"""Published evaluation protocols by name: which images and labels count, what an AP is, how APs are averaged.

The same scores give very different numbers under different protocols, so a protocol is data (`PROTOCOLS`), and every
row of metrics names the one that made it. Symbols: N images, K labels of one task. Annotations are -1 (absent),
0 (unknown), +1 (present).
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hrcf_lib import metrics
from hrcf_lib.engine import chunks
from hrcf_lib.engine.messages import check_known
from hrcf_lib.labels import TASKS


@dataclass(frozen=True)
class Protocol:
    """The choices of one protocol. ``dataclasses.replace`` varies it; a choice that is not offered is an error."""

    name: str  # printed in every row
    words: str  # one sentence for captions and records
    images: str = "all"  # or "positive": only images with a positive among the labels of the task
    average: str = "label"  # AP of each label over its own entries, or "pooled": see `pooled_average_precision`
    unknown: str = "excluded"  # entries labelled 0 take no part in AP, or "negative": they count as absent
    map_annotated: tuple[str, ...] = ()  # tasks whose mAP leaves out labels that no kept image annotates (-1 or +1)
    f1_annotated: tuple[str, ...] = ()  # tasks whose top K is chosen among those labels only
    weighted: bool = False  # also the mean of AP weighted by the positives of each label
    beside: str = ""  # another protocol, whose mAP is given too

    def __post_init__(self):
        offered = {"images": ("all", "positive"), "average": ("label", "pooled"), "unknown": ("excluded", "negative")}
        for field, values in offered.items():
            check_known([getattr(self, field)], values, f"protocol {self.name!r}: unknown {field}")
        check_known((*self.map_annotated, *self.f1_annotated), TASKS, f"protocol {self.name!r}: unknown task")
        if (self.average, self.unknown) == ("pooled", "negative"):
            raise ValueError(
                f"protocol {self.name!r} pools over annotated images, and with unknown='negative' none is left "
                "unannotated: every label would get one and the same AP; use unknown='excluded' or average='label'"
            )


_BIAM = {"images": "positive", "map_annotated": ("seen", "GZSL"), "f1_annotated": ("seen",), "weighted": True}
_BIAM_SETS = (
    "only images with a positive among the task's labels; mAP of seen and GZSL over the labels annotated in those, of "
    "ZSL over all; P/R/F1@K of seen over the annotated labels, of ZSL and GZSL over all"
)
PROTOCOLS = {
    p.name: p
    for p in (
        Protocol("per_class", "all images and labels; AP of each label over the images that annotate it (MKT)"),
        Protocol(
            "per_class_unknown_negative",
            "all images and labels; AP of each label over all images, unknown counted as absent",
            unknown="negative",
        ),
        Protocol(
            "per_class_and_pooled",
            "as per_class; 'mAP biam_open_images' is that of BiAM's Open Images code, pooled over labels",
            beside="biam_open_images",
        ),
        Protocol(
            "biam_open_images",
            f"BiAM's Open Images code as released: {_BIAM_SETS}; AP pooled over labels",
            average="pooled",
            **_BIAM,
        ),
        Protocol(
            "biam_open_images_per_class",
            f"images and labels as in BiAM's Open Images code: {_BIAM_SETS}; AP of each label for itself",
            **_BIAM,
        ),
    )
}


def named(protocol: str | Protocol) -> Protocol:
    """The protocol of that name; a `Protocol` is returned as it is. ValueError for an unknown name.

    >>> named("per_class").words
    'all images and labels; AP of each label over the images that annotate it (MKT)'
    """
    if isinstance(protocol, Protocol):
        return protocol
    check_known([protocol], tuple(PROTOCOLS), "unknown protocol")
    return PROTOCOLS[protocol]


class Kept(NamedTuple):
    """What a protocol counts; row and column numbers in ascending order."""

    images: Tensor  # (n,)
    map_labels: Tensor  # (K',) averaged in mAP
    f1_labels: Tensor  # (K'',) chosen from in P/R/F1@K
    positives: Tensor  # (K,) positives of each label


def kept(labels: Tensor, protocol: str | Protocol, task: str) -> Kept:
    r"""Images and labels that count, from the annotation (N, K) of one task, "seen", "ZSL" or "GZSL".

    Raises:
        ValueError: unknown protocol or task; no image is left because none has a positive.

    Source: ``evaluate_openimages.py`` of BiAM.

    >>> kept(torch.tensor([[1, -1, 0], [-1, -1, -1]]), "biam_open_images", "seen")[:2]
    (tensor([0]), tensor([0, 1]))
    """
    protocol = named(protocol)
    check_known([task], TASKS, "unknown task")
    N, K = labels.shape
    masks, positives, annotated = [], labels.new_zeros(K, dtype=torch.int64), labels.new_zeros(K, dtype=torch.bool)
    for y in labels.split(chunks.fitting(chunks.CACHE, K)):  # (rows, K)
        present = y == 1
        mask = present.any(dim=1) if protocol.images == "positive" else torch.ones_like(present[:, 0])
        masks.append(mask)
        positives += present.sum(dim=0)
        annotated |= ((y != 0) & mask[:, None]).any(dim=0)
    images = torch.cat(masks).nonzero().flatten()
    if len(images) == 0:
        raise ValueError(
            f"protocol {protocol.name!r} keeps only images with a positive label, and none of the {N} images has one "
            f"among the {K} labels of {task}; check the annotation, or use protocol 'per_class'"
        )
    every, annotated = torch.arange(K, device=labels.device), annotated.nonzero().flatten()
    return Kept(
        images,
        annotated if task in protocol.map_annotated else every,
        annotated if task in protocol.f1_annotated else every,
        positives,
    )


@torch.no_grad()
def measure(
    scores: Tensor, labels: Tensor, ks: Iterable[int] = (3, 5), protocol: str | Protocol = "per_class", task="GZSL"
) -> dict[str, float | int]:
    r"""All numbers of a protocol, as fractions.

    Args:
        scores: (N, K), any scale, no NaN, also in images that the protocol drops.
        labels: (N, K), values -1, 0, +1.
        ks: the K of P/R/F1@K, each from 1 to the number of labels chosen from.
        protocol: a name of `PROTOCOLS`, or a `Protocol`.
        task: "seen", "ZSL" or "GZSL"; BiAM's protocols treat them differently.

    Returns:
        ``P@k, R@k, F1@k`` for each k; ``mAP``: the mean over the protocol's labels, one without positives (pooled:
        with an empty pool) counts 0; ``mAP skip``: over those with a positive, NaN if there is none; where the
        protocol has it, ``mAP weighted`` :math:`= \sum_k n_k AP_k / \sum_k n_k` with n_k positives of label k, and the
        mAP of the protocol ``beside`` under its name, NaN where that keeps no image;
        ``images`` and ``labels`` counted in mAP.

    Cost: nothing of size (N, K) beside the input, except for a pooled AP the known entries in the scores' own type;
    pieces of `chunks.CACHE` entries.

    Raises:
        ValueError: what `metrics.average_precision`, `metrics.precision_recall_f1_at_k` and `kept` refuse.
    """
    protocol = named(protocol)
    scores, labels = metrics.check(scores, labels)
    use = kept(labels, protocol, task)
    row = {}
    for k in ks:
        row |= zip((f"P@{k}", f"R@{k}", f"F1@{k}"), _precision_recall_f1(scores, labels, k, use))
    if protocol.average == "pooled":
        ap = pooled_average_precision(scores, labels, use.images)[use.map_labels.cpu()]  # (K',)
    else:
        ap = _average_precision(scores, labels, protocol, use).cpu()  # (K',)
    n_k = use.positives[use.map_labels].cpu().double()  # (K',)
    row["mAP"] = metrics.mean_over_labels(ap, "zero")
    row["mAP skip"] = metrics.mean_over_labels(ap.where(n_k > 0, torch.nan), "skip")
    if protocol.weighted:
        row["mAP weighted"] = (n_k @ ap.double().nan_to_num(0.0) / n_k.sum()).item()
    if protocol.beside:
        some = bool((labels == 1).any())  # without a positive it keeps no image
        row[f"mAP {protocol.beside}"] = measure(scores, labels, (), protocol.beside, task)["mAP"] if some else torch.nan
    return row | {"images": len(use.images), "labels": len(use.map_labels)}


def _average_precision(scores: Tensor, labels: Tensor, protocol: Protocol, use: Kept) -> Tensor:
    """AP of each label (K',) over the kept images, some columns at a time."""
    N, K = labels.shape
    if (len(use.images), len(use.map_labels), protocol.unknown) == (N, K, "excluded"):
        return metrics.average_precision(scores, labels)
    parts = []
    for columns in use.map_labels.split(chunks.fitting(chunks.CACHE, N)):
        s, y = (table[:, columns][use.images] for table in (scores, labels))  # (n, columns)
        if protocol.unknown == "negative":
            y = torch.where(y == 1, 1, -1)
        parts.append(metrics.average_precision(s, y))
    return torch.cat(parts)


def _precision_recall_f1(scores: Tensor, labels: Tensor, k: int, use: Kept) -> tuple[float, float, float]:
    """`metrics.precision_recall_f1_at_k` on the kept images and labels, some rows at a time."""
    n, K = len(use.images), len(use.f1_labels)
    metrics.check_k(k, K)
    tp = positives = 0
    for rows in use.images.split(chunks.fitting(chunks.CACHE, labels.shape[1])):
        s, y = scores[rows], labels[rows]  # (rows, K)
        if K < labels.shape[1]:
            s, y = s[:, use.f1_labels], y[:, use.f1_labels]
        hits, present = metrics.hits_at_k(s, y, k)
        tp, positives = tp + hits, positives + present
    return metrics.precision_recall_f1(tp, n * k, positives)


@torch.no_grad()
def pooled_average_precision(scores: Tensor, labels: Tensor, images: Tensor | None = None) -> Tensor:
    r"""The AP of BiAM's Open Images code: for label k, *all* known entries of the images that annotate label k.

    .. math:: AP_k = AP\{(s_{ij}, y_{ij}) : y_{ik} \neq 0, y_{ij} \neq 0, j = 1..K\}

    The code's row mask leaves every column in, so scores of different labels are ranked against each other and labels
    annotated on the same images share one value. Equal scores enter together, as in `metrics.average_precision`.

    Args:
        scores: (N, K), any scale, no NaN.
        labels: (N, K), values -1, 0, +1.
        images: (n,) rows to use, all by default.

    Returns:
        (K,) on the CPU, in [0, 1], of the scores' type but at least float32; NaN for a label whose pool has no
        positive, where the released code has 0.

    Cost: with m_i known entries of image i, one copy of the scores of the sum of m_i known entries, twice that while
    it is put together, and time near the sum of m_i^2: 17 s on one core for 100,000 images, 7,586 labels and m_i = 13,
    as in Open Images. Where labels are annotated on the same images (no unknown entries, say) the pool is ranked once.

    Raises:
        ValueError: as `metrics.average_precision`.

    Source: ``compute_AP`` of BiAM's ``util_openimages.py``, in float32 there, in float64 here.

    >>> pooled_average_precision(torch.tensor([[0.9, 0.8], [0.7, 0.6]]), torch.tensor([[-1, 1], [0, 1]]))
    tensor([0.5000, 0.5833])
    """
    scores, labels = metrics.check(scores, labels, absent=True)
    N, K = labels.shape
    images = torch.arange(N, device=labels.device) if images is None else images
    present, absent = (_Ragged(scores, labels, images, sign) for sign in (1, -1))
    ap, seen_before = [], {}
    for columns in torch.arange(K).split(chunks.fitting(chunks.CACHE, N)):
        known = (labels[:, columns[0] : columns[-1] + 1][images] != 0).T.contiguous().cpu()  # (columns, n)
        for mask in known:
            pool = hashlib.sha256(mask.numpy()).digest()  # names the set of images
            if pool not in seen_before:
                rows = mask.nonzero().flatten()
                seen_before[pool] = _ap_of_parts(present.parts(rows), absent.parts(rows))
            ap.append(seen_before[pool])
    return torch.tensor(ap, dtype=torch.promote_types(scores.dtype, torch.float32))  # (K,)


class _Ragged:
    """Scores of the entries with one annotation, image after image, on the CPU."""

    def __init__(self, scores: Tensor, labels: Tensor, images: Tensor, sign: int):
        values, sizes = [], []
        for rows in images.split(chunks.fitting(chunks.CACHE, labels.shape[1])):
            mask = labels[rows] == sign  # (rows, K)
            values.append(scores[rows][mask].cpu())
            sizes.append(mask.sum(dim=1).cpu())
        self.values, self.sizes = torch.cat(values or [scores.new_zeros(0).cpu()]), torch.cat(sizes)  # (entries,), (n,)
        self.ends = self.sizes.cumsum(0)  # (n,)
        self.rows_per_part = chunks.fitting(chunks.CACHE, int(self.sizes.max()))

    def parts(self, rows: Tensor) -> Iterator[Tensor]:
        """The scores of some images in pieces of at most `chunks.CACHE` entries (or one image)."""
        for part in rows.split(self.rows_per_part):
            sizes = self.sizes[part]
            shift = (self.ends[part] - sizes.cumsum(0)).repeat_interleave(sizes)  # place in `values` minus place here
            yield self.values[shift + torch.arange(len(shift))]


def _ap_of_parts(present: Iterable[Tensor], absent: Iterable[Tensor]) -> float:
    """AP of positives against negatives that come in pieces; only the positives are sorted."""
    s, count = torch.cat(list(present)).unique(return_counts=True)  # distinct positive scores, ascending
    if len(s) == 0:
        return torch.nan
    at = torch.zeros(len(s) + 1, dtype=torch.int64)  # negatives by how many of these scores they reach
    for negatives in absent:
        at += torch.searchsorted(s, negatives, right=True).bincount(minlength=len(at))
    tp = count.flip(0).cumsum(0).double()  # positives that score at least s, from the highest s down
    fp = at[1:].flip(0).cumsum(0)  # negatives that do
    return ((count.flip(0) * (tp / (tp + fp))).sum() / tp[-1]).item()
