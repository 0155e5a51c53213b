r"""Whether two runs differ: a bootstrap over test images and over seeds.

A metric of one run is computed again on R resamples of the test images, drawn with replacement; all runs share the
resamples, so differences are paired. Seeds are drawn with replacement on top. (SciPy's ``stats.bootstrap`` cannot pair
the weights of several runs.)
n images, K labels, R resamples.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hrcf_lib import metrics
from hrcf_lib.engine import chunks


def draw(n: int, resamples: int = 1000, seed: int = 0) -> Tensor:
    """How often each of n images occurs in each resample: (n, 1 + R) float32; the first column, all 1, is the split."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)  # (R, n)
    return torch.from_numpy(np.vstack([np.ones(n), counts]).T.astype(np.float32))


@torch.no_grad()
def resampled_map(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    r"""mAP of each resample, in 0..1: (n, K), (n, K) in -1/0/+1, (n, R) -> (R,).

    An image that occurs w times counts as w images with equal scores. The mean runs over the labels that have a
    positive in the resample (``empty="skip"``; a label that loses all of its few positives says nothing about a model).
    With weights of 1 this is ``metrics.mean_average_precision(scores, labels, "skip")``. Entries labelled 0 take no
    part. Raises ``ValueError`` as that, and for weights of another number of images.
    """
    metrics.check(scores, labels)
    if weights.ndim != 2 or len(weights) != len(scores):
        raise ValueError(f"weights {tuple(weights.shape)} are not (images, resamples) of {len(scores)} images")
    total, labels_with = torch.zeros(2, weights.shape[1], dtype=torch.float64)
    for s, y in zip(scores.T.float(), labels.T):
        positives = (y == 1).nonzero()[:, 0]  # (P,)
        own, summed = weights[positives], 0.0  # (P, R)
        known = weights * (y != 0)[:, None] if (y == 0).any() else weights  # (n, R)
        for rows in torch.arange(len(positives)).split(chunks.fitting(chunks.COMPARISONS, len(s))):
            least = s[positives[rows]][:, None]  # (p, 1)
            found = (s[positives][None] >= least).float() @ own  # (p, R) true positives at this score
            shown = (s[None] >= least).float() @ known  # (p, R) images at this score
            summed = summed + (own[rows] * found / shown.clamp(min=1)).sum(dim=0)
        n_positive = own.sum(dim=0)  # (R,)
        total += summed / n_positive.clamp(min=1)
        labels_with += n_positive > 0
    return total / labels_with.clamp(min=1)  # (R,)


@torch.no_grad()
def resampled_f1(scores: Tensor, labels: Tensor, weights: Tensor, k: int) -> Tensor:
    r"""Micro F1@K of each resample, in 0..1: (n, K), (n, K), (n, R) -> (R,). Raises as ``metrics``."""
    metrics.check(scores, labels)
    metrics.check_k(k, scores.shape[1])
    rows = [metrics.hits_at_k(scores[[i]], labels[[i]], k) for i in range(len(scores))]
    hits, present = torch.tensor(rows, dtype=weights.dtype).T  # (n,) each
    return (2 * (hits @ weights) / (k * weights.sum(dim=0) + present @ weights).clamp(min=1)).double()


def paired_difference(
    ours: Sequence[Tensor], others: Sequence[Tensor], level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    r"""Mean difference over seeds, and the bounds of its bootstrap interval.

    Each run gives (1 + R,) values: of the split itself, then of R resamples. Differences are taken for each seed and
    resample, and averaged over as many seeds, drawn with replacement. Copies of an image raise an AP, and a larger one
    by more, so the interval is moved until its mean is the difference on the split itself.

    With few seeds (usually three) the interval describes these runs and is rather too narrow.
    Raises ``ValueError`` for different numbers of seeds or none.
    """
    at, means = difference_draws(ours, others, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return at, float(low), float(high)


def difference_draws(ours: Sequence[Tensor], others: Sequence[Tensor], seed: int = 0) -> tuple[float, np.ndarray]:
    """The difference on the split itself, and those of R resamples (R,), as ``paired_difference`` takes them."""
    if len(ours) != len(others) or not len(ours):
        raise ValueError(f"{len(ours)} and {len(others)} runs cannot be paired: give the same seeds, at least one")
    difference = torch.stack([a - b for a, b in zip(ours, others)]).double().numpy()  # (S, 1 + R)
    at, spread = difference[:, 0].mean(), difference[:, 1:] - difference[:, 1:].mean() + difference[:, 0].mean()
    picks = np.random.default_rng(seed).integers(len(spread), size=spread.shape)
    return float(at), np.take_along_axis(spread, picks, axis=0).mean(axis=0)


def difference_row(ours: Sequence[Tensor], others: Sequence[Tensor], level: float = 0.95, scale: float = 1.0) -> dict:
    """``paired_difference`` times ``scale`` as columns of a table: difference, low, high and verdict."""
    at, low, high = (scale * x for x in paired_difference(ours, others, level=level))
    return {"difference": at, "low": low, "high": high, "verdict": verdict(low, high)}


def in_words(row, unit: str) -> str:
    """A ``difference_row`` as text.

    >>> in_words({"difference": 1.24, "low": 0.5, "high": 1.9, "verdict": "better"}, "mAP")
    '+1.2 [+0.5, +1.9] mAP, better'
    """
    return f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}] {unit}, {row['verdict']}"


def verdict(low: float, high: float) -> str:
    """``better`` or ``worse`` where the interval says so, otherwise ``open``."""
    return "better" if low > 0 else "worse" if high < 0 else "open"
