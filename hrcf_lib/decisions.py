r"""Yes or no for every label: overall and per-class precision, recall and F1 at a threshold.

The metrics of multi-label recognition with known labels, as COCO and VOC tables print them. n pictures, K labels;
annotations are -1 (absent), 0 (unknown, takes no part), +1 (present).
"""

import math

import torch
from torch import Tensor

from hrcf_lib.labels import check_scores

NAMES = ("OP", "OR", "OF1", "CP", "CR", "CF1")


def measure(values: Tensor, labels: Tensor, threshold: float) -> dict[str, float]:
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

    >>> row = measure(torch.tensor([[2.0, 1.0], [3.0, -1.0]]), torch.tensor([[1, -1], [1, 1]]), 0.0)
    >>> {name: round(row[name], 1) for name in NAMES}
    {'OP': 66.7, 'OR': 66.7, 'OF1': 66.7, 'CP': 50.0, 'CR': 50.0, 'CF1': 50.0}
    """
    check_scores(values, labels)
    if math.isnan(threshold):
        raise ValueError("the threshold is NaN: give a number")
    chosen, present = (values >= threshold) & (labels != 0), labels == 1  # (n, K)
    c, p, g = (x.sum(dim=0).double() for x in (chosen & present, chosen, present))  # (K,) N^c, N^p, N^g
    if not g.any():
        raise ValueError("no picture shows any of the labels: there is nothing to recall")
    there = g > 0
    overall = (c.sum() / p.sum().clamp(min=1), c.sum() / g.sum())
    by_class = ((c / p.clamp(min=1))[there].mean(), (c / g.clamp(min=1))[there].mean())
    row = [100 * float(x) for pair in (overall, by_class) for x in (*pair, _f1(*pair))]
    return dict(zip(NAMES, row, strict=True)) | {"threshold": float(threshold)}


def best_threshold(values: Tensor, labels: Tensor) -> float:
    """The score at which OF1 is highest on these pictures, the highest of several. Raises as ``measure``.

    >>> best_threshold(torch.tensor([[0.9, 0.8], [0.7, 0.1]]), torch.tensor([[1, 1], [-1, -1]])) == torch.tensor(0.8)
    tensor(True)
    """
    check_scores(values, labels)
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
