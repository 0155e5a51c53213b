"""ZS-SDL against the released code's numbers, and its equations written as loops."""

import doctest
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hard_scores import KINDS, draw
from torch.testing import assert_close

from hrcf_lib.methods import zs_sdl
from hrcf_lib.methods.zs_sdl import (
    direction_scores,
    direction_variance,
    diversity_weights,
    principal_directions,
    semantic_diversity_loss,
    weighted_ranking,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "table1"
CASES = ("mixed", "zeros_and_ones", "one_positive", "two_positives", "all_positive")
TOLERANCE = 2e-6  # times the largest entry, at least 1, of what the released code computed in float32


def near(ours: torch.Tensor, theirs, tolerance: float = TOLERANCE) -> None:
    theirs = torch.as_tensor(theirs).to(ours.dtype)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max()))


def test_doctests():
    assert doctest.testmod(zs_sdl).failed == 0


# The released code's numbers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(GOLDEN / "sdl_loss.npz", allow_pickle=False)
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def test_directions_and_scores_are_the_released_ones(golden):
    pooled = golden["features"].mean(dim=(2, 3))
    x = pooled @ golden["W"].T
    near(pooled, golden["pooled"])
    near(x, golden["x"])
    A = principal_directions(x, int(golden["M"]))
    near(A, golden["A"])
    near(direction_scores(A, golden["vecs"]), golden["scores"])
    near(direction_variance(A), golden["variance"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("weight", "name"), [(0.3, "w03"), (0.01, "w001"), (None, "wnone")])
def test_the_loss_is_the_released_one(golden, case, weight, name):
    labels, vecs = golden[f"{case}__labels"], golden["vecs"]
    W, x = golden["W"].clone().requires_grad_(), golden["x"].clone().requires_grad_()
    A = principal_directions(x, int(golden["M"]))
    near(diversity_weights(labels == 1, vecs) - 1, golden[f"{case}__diversity"])
    loss = semantic_diversity_loss(A, labels, vecs, weight)
    near(loss, golden[f"{case}__loss_{name}"])
    each = [semantic_diversity_loss(A[i : i + 1], labels[i : i + 1], vecs, weight) for i in range(len(A))]
    near(torch.stack(each), golden[f"{case}__per_image_{name}"])
    if weight == 0.3:
        near(torch.autograd.grad(loss, x)[0], golden[f"{case}__grad_x_w03"])
        if case == "mixed":
            A = principal_directions(golden["pooled"] @ W.T, int(golden["M"]))
            near(torch.autograd.grad(semantic_diversity_loss(A, labels, vecs, 0.3), W)[0], golden["mixed__grad_W_w03"])


def test_a_single_direction_has_the_released_loss(golden):
    x = golden["single_row__x"].clone().requires_grad_()
    loss = semantic_diversity_loss(x[:, None], golden["mixed__labels"], golden["vecs"], None)
    near(loss, golden["single_row__loss_wnone"])
    near(torch.autograd.grad(loss, x)[0], golden["single_row__grad_x_wnone"])


# Loops ----------------------------------------------------------------------------------------------------------------


def slow_loss(directions, labels, words, weight, unknown="absent"):
    """Eqs. 1 to 5 picture by picture, pair by pair, coordinate by coordinate."""
    losses = []
    for A, y in zip(directions, labels, strict=True):
        s = [max((row * a).sum() for row in A) for a in words]
        P = [k for k in range(len(y)) if y[k] == 1]
        N = [k for k in range(len(y)) if y[k] == -1 or (y[k] == 0 and unknown == "absent")]
        if not P:
            continue
        softplus = lambda v: torch.logaddexp(v, torch.zeros_like(v))
        pairs = sum(softplus(s[n] - s[p]) for p in P for n in N) if N else sum(softplus(-s[p]) for p in P)
        variance = lambda rows: sum(
            sum((row[c] - sum(r[c] for r in rows) / len(rows)) ** 2 for row in rows) / (len(rows) - 1)
            for c in range(words.shape[1])
        )
        omega = 1 + (variance([words[k] for k in P]) if len(P) > 1 else 0)
        L = omega * pairs / len(P)
        if weight is not None:
            L = 2 * ((1 - weight) * L + weight * (variance(list(A)) if len(A) > 1 else 0))
        losses.append(L)
    return sum(losses) / len(losses) if losses else 0 * directions.sum()


@pytest.mark.parametrize("unknown", ["absent", "out"])
@pytest.mark.parametrize(("M", "weight"), [(1, None), (1, 0.3), (2, 0.01), (5, 1.0)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("K=")])
def test_the_loss_equals_its_slow_twin(kind, M, weight, unknown):
    _, labels = draw(kind, seed=M)
    labels = labels[:4, :7]
    g = torch.Generator().manual_seed(M)
    A = torch.randn(len(labels), M, 3, generator=g, dtype=torch.float64) * (50 if kind == "large" else 1)
    words = torch.randn(7, 3, generator=g, dtype=torch.float64)
    found = []
    for loss in (semantic_diversity_loss, slow_loss):
        own = A.clone().requires_grad_()
        value = loss(own, labels, words, weight, unknown)
        found.append((value.detach(), *torch.autograd.grad(value, own)))
    assert_close(found[0], found[1], rtol=1e-8, atol=1e-9)


def test_half_precision_is_computed_in_single():
    g = torch.Generator().manual_seed(0)
    A, words = torch.randn(3, 2, 4, generator=g), torch.randn(6, 4, generator=g)
    labels = torch.tensor([[1, 1, -1, 0, 0, -1]] * 3)
    low = semantic_diversity_loss(A.bfloat16(), labels, words.bfloat16(), 0.3)
    assert low.dtype == torch.float32
    assert_close(low, semantic_diversity_loss(A, labels, words, 0.3), rtol=0.05, atol=0.05)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_a_picture_without_a_positive_is_left_out():
    """The released code divides 0 by 0 there."""
    g = torch.Generator().manual_seed(1)
    A, words = torch.randn(3, 2, 4, generator=g), torch.randn(6, 4, generator=g)
    labels = torch.tensor([[1, 1, -1, 0, 0, -1], [-1, -1, 0, 0, -1, -1], [-1, 1, -1, 1, -1, 0]])
    assert_close(
        semantic_diversity_loss(A, labels, words, 0.3),
        semantic_diversity_loss(A[[0, 2]], labels[[0, 2]], words, 0.3),
    )
    A.requires_grad_()
    none = semantic_diversity_loss(A, -labels.abs(), words, 0.3)
    assert none == 0 and torch.autograd.grad(none, A)[0].abs().max() == 0
    assert semantic_diversity_loss(A[:0], labels[:0], words, 0.3) == 0


def test_diversity_of_one_positive_of_none_and_of_the_same_twice():
    words = torch.tensor([[0.6, 0.8], [0.6, 0.8], [1.0, 0.0], [0.0, 0.0]])
    present = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]).bool()
    assert_close(diversity_weights(present, words), torch.tensor([1.0, 1.0, 1.0, 1.4, 1.0]))


def test_bad_input_is_named():
    A, words, labels = torch.randn(2, 3, 4), torch.randn(5, 4), torch.ones(2, 5)
    with pytest.raises(ValueError, match=r"directions \(2, 3, 4\) and word vectors \(5, 6\) do not fit"):
        semantic_diversity_loss(A, labels, torch.randn(5, 6), 0.3)
    with pytest.raises(ValueError, match="at least one direction"):
        direction_scores(A[:, :0], words)
    with pytest.raises(ValueError, match=r"\(2, 5\) and labels \(2, 4\) must have one shape"):
        semantic_diversity_loss(A, labels[:, :4], words, 0.3)
    with pytest.raises(ValueError, match=r"labels\[0, 0\] is 2"):
        semantic_diversity_loss(A, labels * 2, words, 0.3)
    with pytest.raises(ValueError, match="nan"):
        semantic_diversity_loss(A * math.nan, labels, words, 0.3)
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="of the variance must be from 0 to 1, or None"):
            semantic_diversity_loss(A, labels, words, weight)
    with pytest.raises(ValueError, match="unknown = 'negative': choose one of absent, out"):
        weighted_ranking(A, labels, words, "negative")
    with pytest.raises(ValueError, match="an output of width 12 cannot be read as 5 directions: choose a divisor"):
        principal_directions(torch.randn(2, 12), 5)
