r"""The loss and the score of ZS-SDL (Ben-Cohen et al., ICCV 2021): several principal directions for each picture.

$$s_k = \max_m A^m \cdot a_k \tag{1}$$
$$\omega_i = 1 + \sum_c \mathrm{Var}_{k \in P_i}(a_{kc}), \qquad
  L_i = \frac{\omega_i}{|P_i|} \sum_{p \in P_i} \sum_{n \in N_i} \log (1 + e^{s_n - s_p}) \tag{2, 3}$$
$$L_{reg} = \sum_c \mathrm{Var}_m(A^m_c), \qquad
  L = \frac{1}{B} \sum_i 2 \big( (1 - \lambda) L_i + \lambda L_{reg, i} \big) \tag{4, 5}$$

with A (M, d) of a picture, word vectors a_k of unit length, present labels P_i and all others N_i. Both variances are
unbiased. Equations are numbered here. B pictures, M directions, d width of a word vector, K labels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hrcf_lib.labels import check_scores
from hrcf_lib.methods.losses import pairwise_logistic_per_image

UNKNOWN = ("absent", "out")  # what a label that is 0 is taken for: an absent one, or one that takes no part


def principal_directions(x: Tensor, number: int) -> Tensor:
    r"""The output (B, d M) of a layer as M directions: entry c M + m is coordinate c of direction m -> (B, M, d).

    Raises ``ValueError`` if ``number`` M does not divide the width of the output.
    """
    if number < 1 or x.shape[-1] % number:
        raise ValueError(f"an output of width {x.shape[-1]} cannot be read as {number} directions: choose a divisor")
    return x.unflatten(-1, (-1, number)).transpose(-1, -2)  # (B, M, d)


def direction_scores(directions: Tensor, words: Tensor) -> Tensor:
    r"""Each label is scored by the direction that suits it best (Eq. 1): (B, M, d), (K, d) -> (B, K), any real number.

    Neither directions nor scores are normalised; a word vector of length 0 scores 0. Raises ``ValueError`` for shapes
    that do not fit.

    >>> directions = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])  # of one picture
    >>> direction_scores(directions, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    tensor([[2., 1., 0.]])
    """
    fit = directions.ndim == 3 and words.ndim == 2 and directions.shape[2] == words.shape[1] and directions.shape[1]
    if not fit:
        raise ValueError(
            f"directions {tuple(directions.shape)} and word vectors {tuple(words.shape)} do not fit: they are "
            "(B, M, d) and (K, d), with one d and at least one direction"
        )
    return (directions @ words.T).amax(dim=1)  # (B, M, K) -> (B, K)


def diversity_weights(present: Tensor, words: Tensor) -> Tensor:
    r"""How far apart in meaning the present labels of each picture are (Eq. 2): (B, K) bool, (K, d) -> (B,), >= 1.

    For word vectors of unit length it is 2 minus the mean cosine of the pairs of present labels. 1 for a picture with
    one present label or none.

    >>> diversity_weights(torch.tensor([[True, True, False], [True, False, False]]), torch.eye(3))
    tensor([2., 1.])
    """
    a = words.to(torch.promote_types(words.dtype, torch.float32))
    a = a - a.mean(dim=0)  # (K, d): a variance stays as it is, and less is lost to rounding
    n, own = present.sum(dim=1), present.to(a.dtype)  # (B,), (B, K)
    squares = own @ a.square().sum(dim=1) - (own @ a).square().sum(dim=1) / n.clamp(min=1)  # (B,)
    return 1 + (squares / (n - 1).clamp(min=1)).clamp(min=0).where(n > 1, 0.0)


def direction_variance(directions: Tensor) -> Tensor:
    """How far apart the directions of each picture are (Eq. 4): (B, M, d) -> (B,); 0 with one direction."""
    if directions.shape[1] < 2 or not len(directions):
        return (directions * 0).sum(dim=(1, 2))
    return directions.var(dim=1).sum(dim=1)


def weighted_ranking(
    directions: Tensor, labels: Tensor, words: Tensor, unknown: str = "absent", diversity: bool = True
) -> Tensor:
    r"""L_i of Eq. 3 for each picture: (B, M, d), (B, K), (K, d) -> (B,), at least float32; 0 without a present label.

    A picture whose labels are all present has no pair, and the released code's log(1 + exp(-s_p)) takes its place.
    Without ``diversity`` omega is 1. Raises as ``semantic_diversity_loss``.
    """
    if unknown not in UNKNOWN:
        raise ValueError(f"unknown = {unknown!r}: choose one of {', '.join(UNKNOWN)}")
    s = direction_scores(directions, words)  # (B, K)
    check_scores(s, labels, finite=True)
    s = s.to(torch.promote_types(s.dtype, torch.float32))  # (B, K)
    present = labels == 1  # (B, K)
    absent = labels == -1 if unknown == "out" else ~present  # (B, K)
    ranking = pairwise_logistic_per_image(s, present, absent)  # (B,)
    alone = (F.softplus(-s) * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)  # (B,)
    ranking = ranking + alone.where(~absent.any(dim=1), 0.0)
    return diversity_weights(present, words) * ranking if diversity else ranking


def semantic_diversity_loss(
    directions: Tensor, labels: Tensor, words: Tensor, weight: float | None, unknown: str = "absent"
) -> Tensor:
    r"""The loss of ZS-SDL (Eqs. 2-5): pictures whose labels differ in meaning count more, and directions stay together.

    The mean over the pictures that have a present label: of one without, the released code divides 0 by 0. The sum over
    pairs is divided by the number of present labels alone, so that a loss is of the order of the number of labels. A
    batch never holds a table of all pairs (``losses.pairwise_logistic_per_image``).

    Args:
        directions: (B, M, d), finite, any length.
        labels: (B, K), values -1 (absent), 0 (unknown), +1 (present).
        words: (K, d), word vectors, of unit length in the paper; constants.
        weight: lambda, from 0 to 1. With ``None`` the loss is the mean of L_i, without the factor 2 and the variance.
        unknown: ``"absent"``, as released: a label that is 0 counts as absent; ``"out"``: it takes no part.

    Returns:
        scalar >= 0, at least float32; 0 if no picture has a present label. With M = 1 the variance is 0.

    Raises:
        ValueError: shapes that do not fit, a score that is not finite, a label outside {-1, 0, 1}, another ``unknown``,
            or a weight outside 0..1.

    Source: Ben-Cohen et al., ICCV 2021; its released code for the factors.

    >>> directions, words = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.eye(2)  # both labels score 1
    >>> semantic_diversity_loss(directions, torch.tensor([[1, -1]]), words, weight=None)  # log 2
    tensor(0.6931)
    >>> semantic_diversity_loss(directions, torch.tensor([[1, -1]]), words, weight=0.5)  # 2 (0.5 log 2 + 0.5)
    tensor(1.6931)
    """
    if weight is not None and not 0 <= weight <= 1:
        raise ValueError(f"weight = {weight!r} of the variance must be from 0 to 1, or None")
    per_image = weighted_ranking(directions, labels, words, unknown)  # (B,)
    if weight is not None:
        variance = direction_variance(directions).to(per_image.dtype)  # (B,)
        per_image = 2 * ((1 - weight) * per_image + weight * variance)  # Eq. 5
    return mean_of_labelled(per_image, labels)


def mean_of_labelled(per_image: Tensor, labels: Tensor) -> Tensor:
    """The mean of (B,) over the pictures that have a present label among (B, K); 0 without any."""
    labelled = (labels == 1).any(dim=1)  # (B,)
    return (per_image * labelled).sum() / labelled.sum().clamp(min=1)
