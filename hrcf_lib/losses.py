r"""The two losses of HRCF: ranking (Eq. 15) and distillation (Eq. 5). Pure functions.

Symbols: B images, K labels, D embedding width; s_p and s_n the scores of a present and of an absent label of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hrcf_lib.labels import check_scores


def ranking_loss(scores: Tensor, labels: Tensor, reduction: str = "violations") -> Tensor:
    r"""Every label that is present should outscore every label that is absent by a margin of 1 (Eq. 15).

    .. math:: L_i = \sum_{p: y_{ip} = 1} \; \sum_{n: y_{in} = -1} \max(0,\; 1 + s_{in} - s_{ip})

    ``"violations"``  mean over the B images of :math:`L_i / V_i`, with :math:`V_i` the number of pairs whose hinge is
                      above 0, a constant for the gradient. This is what the public code of BiAM and MKT computes; it
                      differs from Eq. 15, which sums over images and pairs.
    ``"pairs"``       mean over the B images of :math:`L_i` divided by the number of all pairs of the image, violated or
                      not. The same as "violations" where no margin is ever met, as with scores of norm 1.
    ``"sum"``         :math:`\sum_i L_i`: Eq. 15 to the letter, divided by nothing, not even by the number of images.

    An image without a positive or without a negative adds 0 and still counts in B. A label whose column is 0 throughout
    the batch is in no pair, so leaving such columns out beforehand, as the public code does, changes nothing.

    A pair exactly on the margin is not a violation and gets no gradient. The public code does the same where the
    derivative of ``torch.clamp`` at its bound is 0, as in torch 2.15. In older releases it is 1, and that code gives
    such a pair 1 / V_i, or 1e8 if V_i is 0, as it divides by V_i + 1e-8. Everywhere else value and gradient agree.

    No (B, K, K) array is made. A hinge sum is linear in the scores once its violated pairs are known, so two sorts and
    two binary searches, which count them, are enough: O(B K log K) time, O(B K) memory. O(B K) time where all pairs are
    violated, as with scores of norm 1, which rarely differ by 1.

    Args:
        scores: (B, K), finite. Half precision is computed in float32.
        labels: (B, K), values -1 (absent), 0 (unknown, takes no part), +1 (present).
        reduction: ``"violations"``, ``"pairs"`` or ``"sum"``.

    Returns:
        scalar >= 0 up to rounding, of the scores' type but at least float32; 0 for an empty batch.

    Raises:
        ValueError: unknown reduction, shapes that differ, a NaN or infinite score, a label outside {-1, 0, 1}.

    Warns of labels with 0 and no -1, where the loss is 0: 0 is unknown here, not absent.

    Source: Eq. 15 of HRCF; the normalisation is that of ``ranking_lossT`` in BiAM ``model.py`` (MKT has a copy).

    >>> scores = torch.tensor([[2.0, 0.5, 1.5, 9.0]])  # hinges: 0 for (0, 1), 0.5 for (0, 2); label 3 is unknown
    >>> ranking_loss(scores, torch.tensor([[1, -1, -1, 0]]))
    tensor(0.5000)
    """
    if reduction not in ("violations", "pairs", "sum"):
        raise ValueError(f"unknown reduction {reduction!r}; use 'violations', 'pairs' or 'sum'")
    check_scores(scores, labels, finite=True, absent=True)
    s = scores.to(torch.promote_types(scores.dtype, torch.float32)).contiguous()  # (B, K)
    if s.numel() == 0:
        return s.sum()
    with torch.no_grad():
        present, absent = labels == 1, labels == -1  # (B, K)
        c_n, c_p = _violations(s, present, absent)  # (B, K) or (B, 1): violated pairs of each n and of each p
        V = (absent * c_n).sum(dim=1)  # (B,), = (present * c_p).sum(dim=1)
        per_pair = V.clamp(min=1)[:, None].to(s.dtype)  # (B, 1)
        share_n, share_p = absent * (c_n / per_pair), present * (c_p / per_pair)  # (B, K), each sums to 1 where V > 0
        centre = (share_n * s).sum(dim=1, keepdim=True)  # (B, 1): an offset of all scores cancels before it is rounded
    # L_i / V_i = 1 + sum_n (c_n / V) s_n - sum_p (c_p / V) s_p
    mean_hinge = (V > 0) + ((share_n - share_p) * (s - centre)).sum(dim=1)  # (B,)
    if reduction == "sum":
        return (V * mean_hinge).sum()
    if reduction == "pairs":
        pairs = present.sum(dim=1) * absent.sum(dim=1)  # (B,)
        mean_hinge = mean_hinge * (V.to(s.dtype) / pairs.clamp(min=1))
    return mean_hinge.sum() / max(1, len(s))


@torch.no_grad()
def violated_share(scores: Tensor, labels: Tensor) -> float:
    r"""Share of the pairs (present, absent) of all images whose hinge is above 0, in 0..1; 0 without pairs.

    Both (B, K). Raises as ``ranking_loss``.
    """
    check_scores(scores, labels, finite=True)
    if not scores.numel():
        return 0.0
    present, absent = labels == 1, labels == -1
    c_n, _ = _violations(scores.float(), present, absent)
    pairs = (present.sum(dim=1) * absent.sum(dim=1)).sum()
    return float((absent * c_n).sum() / pairs.clamp(min=1))


def _violations(s: Tensor, present: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
    """In how many violated pairs, s_p < 1 + s_n, a label of each row is as an absent and as a present one.

    (B, K) scores and masks, K > 0 -> two tables of whole numbers, (B, K), or (B, 1) where every pair is violated.
    """
    reach = 1 + s  # (B, K): negative n is violated by each positive with s_p < 1 + s_n
    best, worst = s.where(present, -torch.inf).amax(dim=1), reach.where(absent, torch.inf).amin(dim=1)  # (B,)
    if (best < worst).all():  # as in most batches: scores of norm 1 rarely differ by 1
        return present.sum(dim=1, keepdim=True), absent.sum(dim=1, keepdim=True)  # (B, 1)
    positives = s.where(present, torch.inf).sort(dim=1).values.contiguous()  # (B, K), the others behind them
    negatives = reach.where(absent, -torch.inf).sort(dim=1).values.contiguous()  # (B, K), the others before them
    c_n = torch.searchsorted(positives, reach)  # (B, K): number of p with s_p < 1 + s_n
    c_p = s.shape[1] - torch.searchsorted(negatives, s, right=True)  # (B, K): number of n with 1 + s_n > s_p
    return c_n, c_p


def distillation_loss(student: Tensor, teacher: Tensor, reduction: str = "mean") -> Tensor:
    r"""Keep the student's global embedding near that of the frozen image tower (Eq. 5).

    .. math:: L = \lVert e_g - e_p \rVert_1

    ``"mean"``  mean absolute difference over all B D entries, as in MKT's code; it differs from Eq. 5 by a factor D.
    ``"sum"``   the norm to the letter, summed over D, then the mean over the B images: D times ``"mean"``.

    Args:
        student: (B, D), e_g, any scale. Half precision is computed in float32.
        teacher: (B, D), e_p; a constant, no gradient flows into it.
        reduction: ``"mean"`` or ``"sum"``.

    Returns:
        scalar >= 0, of the wider of the two types but at least float32; 0 for an empty batch.

    Raises:
        ValueError: unknown reduction, or shapes that differ or are not two-dimensional.

    Source: Eq. 5 of HRCF; the mean is that of ``F.l1_loss`` in MKT's first training stage.

    >>> student, teacher = torch.zeros(2, 4), torch.ones(2, 4)
    >>> distillation_loss(student, teacher), distillation_loss(student, teacher, reduction="sum")
    (tensor(1.), tensor(4.))
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"unknown reduction {reduction!r}; use 'mean' or 'sum'")
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape (images, width)"
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    total = F.l1_loss(student.to(dtype), teacher.detach().to(dtype), reduction="sum")  # sum_i |e_g - e_p|_1
    B, D = student.shape
    return total / max(1, B if reduction == "sum" else B * D)
