r"""Average precision; precision, recall and F1 at K or at a threshold: pure functions that never change their input.

Published numbers differ by protocol as much as by method, so print `protocol` beside every mAP.
Symbols: N images, K labels, k labels predicted per image. Annotations are -1 (absent), 0 (unknown), +1 (present).
Scores and annotations are tensors; NumPy arrays, frames and lists of rows are taken too. Where 0 and 1 alone are given,
0 still means unknown, and what compares present with absent labels warns.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from hrcf_lib.engine import chunks
from hrcf_lib.engine.messages import is_whole
from hrcf_lib.labels import check_scores

_PROTOCOLS = {
    "zero": "mAP over all labels, a label without positives counts 0 (as MKT, and BiAM on NUS-WIDE)",
    "skip": "mAP over the labels with at least one positive",
}


def protocol(empty: str = "zero") -> str:
    """One line that names how `mean_average_precision` averaged; ValueError for an unknown `empty`.

    >>> protocol("skip")
    'mAP over the labels with at least one positive'
    """
    if empty not in _PROTOCOLS:
        raise ValueError(f"unknown empty={empty!r}; use 'zero' or 'skip'")
    return _PROTOCOLS[empty]


@torch.no_grad()
def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    r"""Average precision of each label, not interpolated.

    .. math:: AP = \sum_g (R_g - R_{g-1}) P_g

    over the distinct scores g of a label's images from high to low, with precision P and recall R of predicting all
    images that score at least g. Images with equal scores enter together, as in scikit-learn's
    ``average_precision_score``; the order of the images never matters. Entries labelled 0 are left out.
    With 0/1 annotations, where 0 means absent, pass ``2 * labels - 1``.

    Args:
        scores: (N, K), any scale, no NaN.
        labels: (N, K), values -1, 0, +1.

    Returns:
        (K,) in [0, 1], NaN for a label without positives; of the scores' type but at least float32.

    Cost: one sort of the scores of each label, on the CPU, labels spread over PyTorch's threads (their number changes
    no bit): an eleventh of scikit-learn's time for 107,859 x 1,006 on two cores, and about 85 MB beside the input
    (``python -m hrcf_lib.speed --rows map_metric``).

    Raises:
        ValueError: shapes that differ, no labels or no images, NaN scores, a label outside {-1, 0, 1}.

    Source: without ties, ``compute_AP`` of MKT's ``utils/misc.py``. (BiAM's Open Images code pools the scores of all
    labels into each AP: `hrcf_lib.protocols`.)

    >>> average_precision(torch.tensor([[0.9], [0.8], [0.7], [0.6]]), torch.tensor([[1], [-1], [0], [1]]))
    tensor([0.8333])
    """
    scores, labels = check(scores, labels, absent=True)
    N, K = scores.shape
    step, share = chunks.fitting(chunks.CACHE, N), chunks.fitting(chunks.MIB, N)  # labels in memory, and of one task
    half = scores.dtype in (torch.bfloat16, torch.float16)
    ap = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for k in range(0, K, step):
            s, y = scores[:, k : k + step].cpu(), labels[:, k : k + step].to("cpu", torch.int8)  # (N, step)
            s = s.float() if half else s  # NumPy sorts no bfloat16
            s, y = (x.contiguous().T.contiguous() for x in (s, y))  # (step, N): twice as fast as from a slice at once
            found = pool.map(_average_precision_of_labels, s.split(share), y.split(share))
            ap += chain.from_iterable(found)  # by many labels: to hand one over costs more than to compute it
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return torch.from_numpy(np.array(ap)).to(dtype).to(scores.device)  # (K,)


def _average_precision_of_labels(s: Tensor, y: Tensor) -> list[float]:
    """AP of k labels: (k, N), (k, N) -> k values in [0, 1].

    The mean over a label's positives of the precision at the score of each. Positives with equal scores have one
    precision, that of predicting all images that score as much, so the mean is the sum over distinct scores of
    `average_precision`. Values alone are sorted, which is several times as fast as sorting their places.
    """
    s, y = s.numpy(), y.numpy()
    known = np.sort(s, axis=1) if y.all() else [np.sort(row[of != 0]) for row, of in zip(s, y)]  # k of (n,)
    ap = []
    for all_scores, row, present in zip(known, s, y == 1):
        positives = np.sort(row[present])  # (P,)
        tp = len(positives) - np.searchsorted(positives, positives)  # (P,): positives that score at least as much
        predicted = len(all_scores) - np.searchsorted(all_scores, positives)  # (P,): all that do, tp + fp
        ap.append((tp / predicted).mean() if len(positives) else math.nan)
    return ap


def mean_average_precision(scores: Tensor, labels: Tensor, empty: str = "zero") -> float:
    r"""Mean of `average_precision` over labels.

    Args:
        scores: (N, K), any scale, no NaN.
        labels: (N, K), values -1, 0, +1.
        empty: ``"zero"``: a label without positives counts 0, as in MKT's and BiAM's published numbers;
            ``"skip"``: it is left out. `protocol` puts the choice into words.

    Returns:
        in [0, 1]; NaN where ``"skip"`` leaves no label.

    Raises:
        ValueError: unknown `empty`, and whatever `average_precision` refuses.

    >>> scores, labels = torch.tensor([[2.0, 0.1], [1.0, 0.2]]), torch.tensor([[1, -1], [-1, -1]])
    >>> mean_average_precision(scores, labels), mean_average_precision(scores, labels, empty="skip")
    (0.5, 1.0)
    """
    protocol(empty)  # refuses an unknown choice
    return mean_over_labels(average_precision(scores, labels), empty)


def mean_over_labels(ap: Tensor, empty: str = "zero") -> float:
    """Mean of APs (K,) whose NaN (no positives) counts 0 or, with ``"skip"``, not at all; NaN if nothing is left."""
    protocol(empty)  # refuses an unknown choice
    ap = ap.cpu().double()  # (K,)
    return (ap.nan_to_num(0.0).mean() if empty == "zero" else ap.nanmean()).item()


@torch.no_grad()
def precision_recall_f1_at_k(scores: Tensor, labels: Tensor, k: int) -> tuple[float, float, float]:
    r"""Precision, recall and F1 of predicting the k best labels of each image, pooled over all images ("micro").

    .. math:: P = \frac{TP}{N k}, \quad R = \frac{TP}{|\{y = 1\}|}, \quad F_1 = \frac{2 P R}{P + R}

    A predicted label that is annotated 0 (unknown) is a false positive. Equal scores go to the lower label index.
    Images without any positive stay in, and lower P.

    Args:
        scores: (N, K), any scale, no NaN.
        labels: (N, K), values -1, 0, +1.
        k: labels predicted per image, 1 to K.

    Returns:
        (precision, recall, f1), each in [0, 1]; 0 / 0 is 0.

    Raises:
        ValueError: k outside 1..K or no integer, shapes that differ, NaN scores, a label outside {-1, 0, 1}.

    Source: ``compute_F1`` of MKT's ``utils/misc.py`` and of BiAM, mode "overall" (both overwrite the scores).

    >>> precision_recall_f1_at_k(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1, 0, 1]]), k=2)
    (0.5, 0.5, 0.5)
    """
    scores, labels = check(scores, labels)
    N, K = scores.shape
    check_k(k, K)
    tp = positives = 0
    step = chunks.fitting(chunks.CACHE, K)
    for i in range(0, N, step):
        hits, present = hits_at_k(scores[i : i + step], labels[i : i + step], k)
        tp, positives = tp + hits, positives + present
    return precision_recall_f1(tp, N * k, positives)


def hits_at_k(scores: Tensor, labels: Tensor, k: int) -> tuple[int, int]:
    """How many of the k best labels of each image are present, and how many labels are; both tables (rows, K)."""
    present = labels == 1  # (rows, K)
    kth = scores.topk(k, dim=1).values[:, -1:]  # (rows, 1): the k-th best score
    above, tied = scores > kth, scores == kth  # (rows, K)
    room = k - above.sum(dim=1, keepdim=True)  # (rows, 1): places left for labels that score kth
    predicted = above | (tied & (tied.cumsum(dim=1, dtype=torch.int32) <= room))  # (rows, K), k in each row
    return (predicted & present).sum().item(), present.sum().item()


def precision_recall_f1(tp: int, predicted: int, positives: int) -> tuple[float, float, float]:
    """Precision, recall and F1 from counts; 0 / 0 is 0."""
    return tp / max(1, predicted), tp / max(1, positives), 2 * tp / max(1, predicted + positives)


def check_k(k: int, K: int) -> None:
    """ValueError unless `k` is a whole number from 1 to `K`."""
    if not is_whole(k) or not 1 <= k <= K:
        raise ValueError(f"k = {k!r}, but there are {K} labels to choose from; use a whole number from 1 to {K}")


def check(scores, labels, absent: bool = False) -> tuple[Tensor, Tensor]:
    """Both tables as tensors. ValueError for what no metric can use: what is no table of numbers, what
    `hrcf_lib.labels.check_scores` refuses (``absent`` as there), and tables without images or labels."""
    scores, labels = _tensor(scores, "scores"), _tensor(labels, "labels")
    check_scores(scores, labels, absent=absent)
    scores = scores.byte() if scores.dtype == torch.bool else scores  # PyTorch finds no best of them
    if scores.numel() == 0:
        raise ValueError(
            f"scores {tuple(scores.shape)} hold nothing to evaluate; give at least one image and one label"
        )
    return scores, labels


UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # of which PyTorch finds no least and no largest number


def _tensor(table, name: str) -> Tensor:
    """A table as a tensor, itself if it is one that PyTorch can compute with."""
    if isinstance(table, Tensor):
        return table.long() if table.dtype in UNSIGNED else table
    if isinstance(table, np.ma.MaskedArray):
        raise ValueError(f"{name} are a masked array: fill it, as with .filled(0), where 0 is an unknown label")
    try:
        values = np.asarray(table)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)  # files of other machines
        return _tensor(torch.from_numpy(np.require(values, requirements=("C", "W"))), name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are no table of numbers ({error}); give a row of K numbers for each image") from error


# Yes or no for every label --------------------------------------------------------------------------------------------

THRESHOLD_METRICS = ("OP", "OR", "OF1", "CP", "CR", "CF1")


def precision_recall_f1_at_threshold(values: Tensor, labels: Tensor, threshold: float) -> dict[str, float]:
    r"""OP, OR, OF1, CP, CR and CF1 in percent, and the threshold, of scores (n, K).

    .. math:: OP = \frac{\sum_k N^c_k}{\sum_k N^p_k}, \quad OR = \frac{\sum_k N^c_k}{\sum_k N^g_k}, \quad
        CP = \frac1K \sum_k \frac{N^c_k}{N^p_k}, \quad CR = \frac1K \sum_k \frac{N^c_k}{N^g_k}, \quad
        F1 = \frac{2 P R}{P + R}

    with, for label k, the pictures that score at least the threshold, N^p, those of them that show it, N^c, and those
    that show it, N^g. CF1 is the harmonic mean of CP and CR, as in published tables, not the mean of the labels' F1.
    A label that is never predicted has precision 0; one that no picture shows is left out of CP and CR.

    Raises ``ValueError`` for shapes that differ, NaN scores, other labels than -1, 0, +1, no positive at all, or a
    threshold that is NaN.

    Source: the metrics of Zhu et al., CVPR 2017, and Chen et al., CVPR 2019 (ML-GCN).

    >>> row = precision_recall_f1_at_threshold(
    ...     torch.tensor([[2.0, 1.0], [3.0, -1.0]]), torch.tensor([[1, -1], [1, 1]]), 0.0
    ... )
    >>> {name: round(row[name], 1) for name in THRESHOLD_METRICS}
    {'OP': 66.7, 'OR': 66.7, 'OF1': 66.7, 'CP': 50.0, 'CR': 50.0, 'CF1': 50.0}
    """
    values, labels = check(values, labels, absent=True)
    try:
        threshold = float(threshold)
    except (TypeError, ValueError):
        raise ValueError(f"the threshold is {threshold!r}: give a number") from None
    if math.isnan(threshold):
        raise ValueError("the threshold is NaN: give a number")
    chosen, present = (values >= threshold) & (labels != 0), labels == 1  # (n, K)
    c, p, g = (x.sum(dim=0).double() for x in (chosen & present, chosen, present))  # (K,) N^c, N^p, N^g
    if not g.any():
        raise ValueError("no picture shows any of the labels: there is nothing to recall")
    shown = g > 0  # (K,)
    overall = (c.sum() / p.sum().clamp(min=1), c.sum() / g.sum())
    by_class = ((c / p.clamp(min=1))[shown].mean(), (c / g.clamp(min=1))[shown].mean())
    row = [100 * float(x) for pair in (overall, by_class) for x in (*pair, _f1(*pair))]
    return dict(zip(THRESHOLD_METRICS, row, strict=True)) | {"threshold": float(threshold)}


def best_threshold(values: Tensor, labels: Tensor) -> float:
    """The score at which OF1 is highest on these pictures, the highest of several. Raises ``ValueError`` for tables
    that ``check_scores`` refuses, or without a positive.

    >>> best_threshold(torch.tensor([[0.9, 0.8], [0.7, 0.1]]), torch.tensor([[1, 1], [-1, -1]])) == torch.tensor(0.8)
    tensor(True)
    """
    values, labels = check(values, labels, absent=True)
    known = labels != 0
    s, order = values[known].sort(descending=True)  # (m,)
    present = (labels[known] == 1)[order].double()  # (m,)
    if not present.any():
        raise ValueError("no picture shows any of the labels: there is nothing to recall")
    last = torch.cat([s[1:] != s[:-1], s.new_ones(1, dtype=torch.bool)])  # those that score alike enter together
    c, p = present.cumsum(dim=0), torch.arange(1, len(s) + 1, device=s.device)
    f1 = (2 * c / (p + present.sum())).where(last, c.new_tensor(-1.0))  # 2 N^c / (N^p + N^g)
    return float(s[f1.argmax()])


def _f1(precision: Tensor, recall: Tensor) -> Tensor:
    return 2 * precision * recall / (precision + recall).clamp(min=1e-12)
