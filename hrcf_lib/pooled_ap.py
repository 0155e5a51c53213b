r"""The AP of BiAM's Open Images code, which ranks the scores of all labels together.

Symbols: N images, K labels. Annotations are -1 (absent), 0 (unknown), +1 (present).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hrcf_lib import metrics


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
    metrics.check(scores, labels)
    N, K = labels.shape
    images = torch.arange(N, device=labels.device) if images is None else images
    present, absent = (_Ragged(scores, labels, images, sign) for sign in (1, -1))
    ap, seen_before = [], {}
    for columns in torch.arange(K).split(max(1, metrics.CHUNK // N)):
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
        for rows in images.split(max(1, metrics.CHUNK // labels.shape[1])):
            mask = labels[rows] == sign  # (rows, K)
            values.append(scores[rows][mask].cpu())
            sizes.append(mask.sum(dim=1).cpu())
        self.values, self.sizes = torch.cat(values or [scores.new_zeros(0).cpu()]), torch.cat(sizes)  # (entries,), (n,)
        self.ends = self.sizes.cumsum(0)  # (n,)
        self.rows_a_part = max(1, metrics.CHUNK // max(1, int(self.sizes.max())))

    def parts(self, rows: Tensor) -> Iterator[Tensor]:
        """The scores of some images in pieces of at most CHUNK entries (or one image)."""
        for some in rows.split(self.rows_a_part):
            sizes = self.sizes[some]
            shift = (self.ends[some] - sizes.cumsum(0)).repeat_interleave(sizes)  # place in `values` minus place here
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
