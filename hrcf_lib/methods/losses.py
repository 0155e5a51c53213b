r"""Losses of the methods that HRCF is compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hrcf_lib.engine import chunks
from hrcf_lib.engine.messages import check_known
from hrcf_lib.labels import check_scores


def pairwise_logistic(scores: Tensor, labels: Tensor) -> Tensor:
    r"""The ranking loss of OVML-VLP: every pair of a present and an absent label has a logarithm of its own.

    .. math:: L_i = \frac{1}{|P_i|} \sum_{p: y_{ip} = 1} \; \sum_{n: y_{in} = -1} \log (1 + e^{s_{in} - s_{ip}}),
        \qquad L = \frac{1}{N} \sum_i L_i

    Each image is divided by the number of its present labels, not by that of its pairs, so that L is of the order of
    the number of absent labels. Labels that are 0 take no part. N counts the images that have a present label: for the
    others Eq. 6 divides by 0, so they are left out, just as training leaves them out of its batches. An image whose
    labels are all present adds 0 and counts.

    Args:
        scores: (B, K), finite. Half precision is computed in float32.
        labels: (B, K), values -1 (absent), 0 (unknown, takes no part), +1 (present).

    Returns:
        scalar >= 0, of the scores' type but at least float32; 0 if no image has a present label.

    Raises:
        ValueError: shapes that differ, a NaN or infinite score, a label outside {-1, 0, 1}.

    Source: Dao et al., ICME 2023, Eqs. 5-7, whose first lacks an index: c_jk is s_k of an absent minus s_j of a present
    label.

    >>> scores = torch.tensor([[2.0, 2.0, 2.0, 9.0]])  # two pairs, each of difference 0; label 3 is unknown
    >>> pairwise_logistic(scores, torch.tensor([[1, -1, -1, 0]]))  # 2 log 2
    tensor(1.3863)
    """
    check_scores(scores, labels, finite=True)
    present = labels == 1  # (B, K)
    counted = present.any(dim=1).sum()
    return pairwise_logistic_per_image(scores, present, labels == -1).sum() / counted.clamp(min=1)  # Eq. 7


def pairwise_logistic_per_image(scores: Tensor, present: Tensor, absent: Tensor) -> Tensor:
    r"""The sum over all pairs of an image, divided by the number of its present labels: one number an image.

    .. math:: L_i = \frac{1}{|P_i|} \sum_{p \in P_i} \; \sum_{n \in N_i} \log (1 + e^{s_{in} - s_{ip}})

    At most ``chunks.CACHE`` pairs are there at a time, and where there are more, each part is computed again for the
    backward pass. Parts hold the first 8 present labels of each image, then those up to 16, 32 and so on of the images
    that have so many: one image of many present labels costs its own pairs. The parts are sums of the same terms: equal
    up to rounding.

    Args:
        scores: (B, K), finite; not checked. Half precision is computed in float32.
        present, absent: (B, K), bool: P_i and N_i. No label is in both.

    Returns:
        (B,), >= 0, of the scores' type but at least float32; 0 for an image without a present or an absent label.

    >>> scores, present = torch.tensor([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]), torch.tensor([[True, False, False]] * 2)
    >>> pairwise_logistic_per_image(scores, present, ~present)  # 2 log 2
    tensor([1.3863, 1.3863])
    """
    s = scores.to(torch.promote_types(scores.dtype, torch.float32))  # (B, K)
    number, falling = present.sum(dim=1).sort(descending=True, stable=True)  # (B,), (B,)  |P_i|
    s, absent, there = s[falling], absent[falling], present[falling].to(torch.uint8)  # (B, K) most present labels first
    counts, K = number.tolist(), s.shape[1]
    most = counts[0] if counts else 0  # P
    order = there.argsort(dim=1, descending=True, stable=True)[:, :most]  # (B, P) labels, present first
    s_present = s.gather(1, order)  # (B, P), of which only the first |P_i| are of present labels
    weight = (torch.arange(most, device=s.device) < number[:, None]) / number.clamp(min=1)[:, None].to(s.dtype)
    again = sum(counts) * K > chunks.CACHE and torch.is_grad_enabled()
    total, first = (s * 0).sum(dim=1), 0  # (B,)
    while first < most:
        n = sum(count > first for count in counts)  # images that have as many
        last = min(most, max(8, 2 * first), first + chunks.fitting(chunks.CACHE, n * K))
        pairs = s[:n], absent[:n], s_present[:n, first:last], weight[:n, first:last]
        cost = chunks.recomputed(_pair_by_pair, *pairs, again=again)  # (n,)
        total, first = torch.cat([total[:n] + cost, total[n:]]), last  # (B,)
    return total[falling.argsort()]


def _pair_by_pair(s: Tensor, absent: Tensor, s_present: Tensor, weight: Tensor) -> Tensor:
    """(n, K), (n, K), some present labels (n, p) of each image and their weights -> (n,), sums over their pairs."""
    c = s[:, None] - s_present[:, :, None]  # (n, p, K)
    cost = F.softplus(c).masked_fill(~absent[:, None], 0.0).sum(dim=2)  # (n, p)
    return (weight * cost).sum(dim=1)


def asymmetric_loss(
    p: Tensor, labels: Tensor, gamma_positive: float = 1.0, gamma_negative: float = 2.0, shift: float = 0.05
) -> Tensor:
    r"""Binary cross-entropy that weighs easy labels less, absent ones most so; unknown labels take no part.

    .. math:: L_i = -\sum_{k: y_{ik} = 1} (1 - p_{ik})^{\gamma_+} \log p_{ik}
        - \sum_{k: y_{ik} = -1} m_{ik}^{\gamma_-} \log (1 - m_{ik}), \qquad m_{ik} = \max(p_{ik} - m, 0)

    The mean over the B images. With 0 for both gammas and the shift it is the binary cross-entropy of the known labels.
    The powers are part of the gradient. Logarithms and powers are those of at least 1e-8.

    Args:
        p: (B, K), probabilities that a label is present, in [0, 1]. Half precision is computed in float32.
        labels: (B, K), values -1 (absent), 0 (unknown, takes no part), +1 (present).
        gamma_positive, gamma_negative: at least 0. The defaults are those of DualCoOp and of the partial asymmetric
            loss of the semantic-aware method; ASL itself has 0 and 4.
        shift: m, probability below which an absent label costs nothing; in [0, 1).

    Returns:
        scalar >= 0, of the type of ``p`` but at least float32; 0 for an empty batch.

    Raises:
        ValueError: shapes that differ, a NaN or infinite probability, a label outside {-1, 0, 1}, a gamma below 0 or a
            shift outside [0, 1).

    Source: Ridnik et al., ICCV 2021 (ASL), Eq. 7; restricted to known labels as in Eq. 10 of the semantic-aware method.

    >>> p = torch.tensor([[0.5, 0.5, 0.9]])  # the third label is unknown
    >>> asymmetric_loss(p, torch.tensor([[1, -1, 0]]))  # 0.5 log 2 - 0.45^2 log 0.55
    tensor(0.4676)
    """
    if gamma_positive < 0 or gamma_negative < 0 or not 0 <= shift < 1:
        raise ValueError(
            f"gammas {gamma_positive}, {gamma_negative} and shift {shift}: give gammas of at least 0, a shift in [0, 1)"
        )
    check_scores(p, labels, finite=True)
    p = p.to(torch.promote_types(p.dtype, torch.float32))  # (B, K)
    m = (p - shift).clamp(min=0)  # (B, K)
    # A power below 1 has an infinite slope at 0, which times 0 is not a number, whether the entry takes part or not.
    present = (1 - p).clamp(min=1e-8) ** gamma_positive * p.clamp(min=1e-8).log()
    absent = m.clamp(min=1e-8) ** gamma_negative * (1 - m).clamp(min=1e-8).log()
    zero = p.new_zeros(())
    total = torch.where(labels == 1, present, zero).sum() + torch.where(labels == -1, absent, zero).sum()
    return -total / max(1, len(p))


def supervised_contrastive_loss(features: Tensor, classes: Tensor, temperature: float, reduction="mean") -> Tensor:
    r"""Features of one class attract, all others repel.

    .. math:: L = \frac{1}{|A|} \sum_{i \in A} \frac{-1}{|P(i)|} \sum_{p \in P(i)}
        \log \frac{\exp(z_i \cdot z_p / \tau)}{\sum_{a \ne i} \exp(z_i \cdot z_a / \tau)},
        \qquad z = \frac{x}{\lVert x \rVert_2}

    P(i) are the other features of the class of i; A are the anchors, those i that have any. A feature without a partner
    is not an anchor, but it repels others. All n features are compared with each other: in data parallel, and if a
    batch is computed in parts, these are the features of the process's own part, not those of the whole batch.

    Args:
        features: (n, D), finite, of any length. Half precision is computed in float32.
        classes: (n,), whole numbers.
        temperature: tau > 0.
        reduction: ``mean`` over the anchors, or their ``sum``.

    Returns:
        scalar >= 0, of the features' type but at least float32; 0 if no feature has a partner.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not above 0, or another reduction.

    Source: Khosla et al., NeurIPS 2020, Eq. 2 (L_out), whose sum over the anchors is also that of Eqs. 8-9 of OVML-VLP
    (Dao et al., ICME 2023).

    >>> features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])  # the third is alone in its class
    >>> supervised_contrastive_loss(features, torch.tensor([7, 7, 4]), temperature=1.0)  # log((e + 1) / e)
    tensor(0.3133)
    """
    if features.ndim != 2 or classes.shape != features.shape[:1]:
        raise ValueError(
            f"features {tuple(features.shape)} and classes {tuple(classes.shape)} do not fit: they are (n, D) and (n,)"
        )
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature}: choose a number above 0")
    check_known([reduction], ["mean", "sum"], "unknown reduction")
    x = features.to(torch.promote_types(features.dtype, torch.float32))  # (n, D)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)  # (n, n)
    partner = (classes[:, None] == classes) & ~itself  # (n, n)
    number = partner.sum(dim=1)  # (n,), |P(i)|
    anchors = number > 0  # (n,)
    if not anchors.any():
        return x.sum() * 0
    z = F.normalize(x, dim=1)  # (n, D)
    s = z[anchors] @ z.T / temperature  # (A, n)
    s = s.masked_fill(itself[anchors], -torch.inf)
    all_others = s.logsumexp(dim=1)  # (A,)
    partners = s.masked_fill(~partner[anchors], 0.0).sum(dim=1) / number[anchors]  # (A,)
    losses = all_others - partners  # (A,)
    return losses.sum() if reduction == "sum" else losses.mean()
