"""Losses of the methods that HRCF is compared with, each against a slow twin."""

import doctest
import math

import numpy as np
import pytest
import torch
from hard_scores import KINDS, draw, value_and_grad
from torch.nn import functional as F

import hrcf_lib.methods.losses
from hrcf_lib.engine import chunks
from hrcf_lib.methods.losses import (
    asymmetric_loss,
    pairwise_logistic,
    supervised_contrastive_loss,
)

# The ranking loss of OVML-VLP -----------------------------------------------------------------------------------------


def slow_pairwise_logistic(scores, labels):
    """Eqs. 5-7 image by image, pair by pair."""
    losses = []
    for s, y in zip(scores, labels, strict=True):
        present, absent = (y == 1).nonzero()[:, 0].tolist(), (y == -1).nonzero()[:, 0].tolist()
        if present:
            pairs = [F.softplus(s[k] - s[j], threshold=50) for j in present for k in absent]
            losses.append(sum(pairs) / len(present) + 0 * s.sum())
    return sum(losses) / len(losses) if losses else 0 * scores.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_pairwise_logistic_equals_its_slow_twin(kind):
    for seed in range(3):
        scores, labels = draw(kind, seed)
        value, grad = value_and_grad(pairwise_logistic, scores, labels)
        slow_value, slow_grad = value_and_grad(slow_pairwise_logistic, scores, labels)
        torch.testing.assert_close(value, slow_value, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(grad, slow_grad, rtol=1e-8, atol=1e-9)


def test_pairwise_logistic_by_hand():
    """Two images: log(1 + e^-1) + log(1 + e^-2) of one present label; the mean over two present ones."""
    scores = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([[1, -1, -1], [1, 1, -1]])
    log = lambda c: math.log(1 + math.exp(c))
    expected = ((log(-1) + log(-2)) + (log(0) + log(-2)) / 2) / 2
    assert pairwise_logistic(scores, labels).item() == pytest.approx(expected, rel=1e-12)


def test_pairwise_logistic_leaves_out_images_without_a_present_label():
    """They change nothing; an image without an absent label adds 0 and counts."""
    scores, labels = draw("plain", 0)
    value = pairwise_logistic(scores, labels)
    more = torch.cat([labels, -torch.ones(1, 23, dtype=labels.dtype)])
    torch.testing.assert_close(pairwise_logistic(torch.cat([scores, scores[:1]]), more), value)
    more[-1] = 1
    torch.testing.assert_close(pairwise_logistic(torch.cat([scores, scores[:1]]), more), value * 5 / 6)


def test_pairwise_logistic_ignores_unknown_scores():
    scores, labels = draw("plain", 0)
    value, grad = value_and_grad(pairwise_logistic, scores, labels)
    other, other_grad = value_and_grad(pairwise_logistic, scores.where(labels != 0, 1e30), labels)
    assert torch.equal(value, other) and torch.equal(grad, other_grad) and not grad[labels == 0].any()


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_pairwise_logistic_in_parts_is_the_whole(at_a_time, monkeypatch):
    scores, labels = draw("plain", 3)
    value, grad = value_and_grad(pairwise_logistic, scores, labels)
    monkeypatch.setattr(chunks, "CACHE", scores.numel() * at_a_time)
    sizes, plain = [], hrcf_lib.methods.losses._pair_by_pair
    look = lambda s, absent, own, w: sizes.append(own.numel() * s.shape[1]) or plain(s, absent, own, w)
    monkeypatch.setattr(hrcf_lib.methods.losses, "_pair_by_pair", look)
    part, part_grad = value_and_grad(pairwise_logistic, scores, labels)
    torch.testing.assert_close(part, value)
    torch.testing.assert_close(part_grad, grad)
    assert max(sizes) <= chunks.CACHE < int((labels == 1).sum(dim=1).max()) * scores.numel() and len(sizes) > 3


@pytest.mark.parametrize("gradient", [True, False])
def test_an_image_of_many_present_labels_costs_its_own_pairs(gradient, monkeypatch):
    """One of 128 images has 300 of 400 labels: not 300 rows of pairs for each of the others, which have 3."""
    g = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(128, 400, generator=g, requires_grad=gradient), -torch.ones(128, 400)
    labels[:, :3], labels[5, :300] = 1, 1
    monkeypatch.setattr(chunks, "CACHE", 128 * 400 * 4)
    sizes, plain = [], hrcf_lib.methods.losses._pair_by_pair
    look = lambda s, absent, own, w: sizes.append(own.numel() * s.shape[1]) or plain(s, absent, own, w)
    monkeypatch.setattr(hrcf_lib.methods.losses, "_pair_by_pair", look)
    loss = pairwise_logistic(scores, labels)
    assert max(sizes) <= chunks.CACHE and sum(sizes) <= 2 * (300 + 128 * 8) * 400
    each = [F.softplus(s[y < 0] - s[y > 0][:, None]).sum() / (y > 0).sum() for s, y in zip(scores, labels, strict=True)]
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_pairwise_logistic_is_bounded_at_the_size_of_the_paper():
    """B = 64, K = 7,186: 9 present labels of each image at a time, not more than 16 MiB of pairs."""
    part = chunks.fitting(chunks.CACHE, 64 * 7186)
    assert part == 9 and part * 64 * 7186 * 4 <= 2**24


def test_pairwise_logistic_types_empty_batch_and_errors():
    scores, labels = draw("plain", 1)
    assert pairwise_logistic(scores.bfloat16(), labels).dtype == torch.float32
    torch.autograd.gradcheck(lambda s: pairwise_logistic(s, labels), scores.requires_grad_())
    for shape in ((0, 5), (3, 0)):
        value, grad = value_and_grad(pairwise_logistic, torch.zeros(shape), torch.zeros(shape))
        assert value == 0 and grad.shape == shape
    with pytest.raises(ValueError, match=r"scores \(5, 23\) and labels \(5, 22\) must have one shape"):
        pairwise_logistic(scores, labels[:, 1:])
    with pytest.raises(ValueError, match=r"labels\[0, 0\] is 3"):
        pairwise_logistic(scores, labels * 0 + 3)
    with pytest.raises(ValueError, match="nan"):
        pairwise_logistic(scores * torch.nan, labels)


# The supervised contrastive loss --------------------------------------------------------------------------------------


def slow_contrastive_loss(features, classes, temperature):
    """Anchor by anchor, partner by partner."""
    z, n, terms = F.normalize(features, dim=1), len(features), []
    for i in range(n):
        partners = [p for p in range(n) if p != i and classes[p] == classes[i]]
        if partners:
            below = sum((z[i] @ z[a] / temperature).exp() for a in range(n) if a != i)
            logs = [((z[i] @ z[p] / temperature).exp() / below).log() for p in partners]
            terms.append(-sum(logs) / len(partners))
    return sum(terms) / len(terms) if terms else features.sum() * 0


@pytest.mark.parametrize("classes", [[0, 0, 1, 1, 2, 1, 5], [3] * 7, [0, 1, 2, 3, 4, 5, 0], [6, 5, 4, 3, 2, 1, 0]])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrastive_loss_equals_its_slow_twin(classes, temperature):
    g = torch.Generator().manual_seed(0)
    features = torch.randn(7, 6, generator=g, dtype=torch.float64) * 3
    value, grad = value_and_grad(supervised_contrastive_loss, features, torch.tensor(classes), temperature)
    slow_value, slow_grad = value_and_grad(slow_contrastive_loss, features, classes, temperature)
    torch.testing.assert_close(value, slow_value)
    torch.testing.assert_close(grad, slow_grad)


def test_contrastive_sum_is_over_the_anchors_that_have_a_partner():
    g = torch.Generator().manual_seed(0)
    features, classes = torch.randn(7, 6, generator=g), torch.tensor([0, 0, 1, 1, 2, 1, 5])
    mean, total = (supervised_contrastive_loss(features, classes, 0.1, reduction=r) for r in ("mean", "sum"))
    torch.testing.assert_close(total, 5 * mean)


def test_contrastive_loss_without_partners_or_features():
    for n in (0, 1, 3):
        value, grad = value_and_grad(supervised_contrastive_loss, torch.ones(n, 4), torch.arange(n), 0.1)
        assert value == 0 and torch.equal(grad, torch.zeros(n, 4))


def test_contrastive_loss_does_not_depend_on_length_and_stays_finite():
    g = torch.Generator().manual_seed(0)
    features, classes = torch.randn(6, 4, generator=g), torch.tensor([0, 0, 1, 1, 2, 2])
    value = supervised_contrastive_loss(features, classes, 0.1)
    torch.testing.assert_close(supervised_contrastive_loss(1e3 * features, classes, 0.1), value)
    features[0] = 0
    _, grad = value_and_grad(supervised_contrastive_loss, features, classes, 1e-3)
    assert grad.isfinite().all()
    assert supervised_contrastive_loss(features.bfloat16(), classes, 0.1).dtype == torch.float32


def test_contrastive_loss_errors():
    with pytest.raises(ValueError, match=r"features \(3, 4\) and classes \(2,\) do not fit"):
        supervised_contrastive_loss(torch.zeros(3, 4), torch.zeros(2), 0.1)
    with pytest.raises(ValueError, match="temperature = 0: choose a number above 0"):
        supervised_contrastive_loss(torch.zeros(3, 4), torch.zeros(3), 0)
    with pytest.raises(ValueError, match="unknown reduction 'summ'; did you mean 'sum'"):
        supervised_contrastive_loss(torch.zeros(3, 4), torch.zeros(3), 0.1, "summ")


# The asymmetric loss --------------------------------------------------------------------------------------------------


def probabilities(B=6, K=9, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    p = torch.from_numpy(rng.uniform(0.01, 0.99, (B, K))).to(dtype)
    return p, torch.from_numpy(rng.integers(-1, 2, (B, K)))


@pytest.mark.parametrize("shape", [(1.0, 2.0, 0.05), (0.0, 4.0, 0.2), (0.0, 0.0, 0.0)])
def test_asymmetric_loss_is_its_equation_label_by_label(shape):
    p, labels = probabilities()
    (plus, minus, m), total = shape, 0.0
    for q, y in zip(p.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if y == 1:
            total -= (1 - q) ** plus * math.log(q)
        elif y == -1:
            q = max(q - m, 0.0)
            total -= q**minus * math.log(1 - q)
    assert float(asymmetric_loss(p, labels, *shape)) == pytest.approx(total / len(p))


def test_without_its_exponents_it_is_binary_cross_entropy():
    p, labels = probabilities()
    known = labels != 0
    expected = F.binary_cross_entropy(p[known], (labels[known] == 1).double(), reduction="sum") / len(p)
    torch.testing.assert_close(asymmetric_loss(p, labels, 0.0, 0.0, 0.0), expected)


def test_unknown_labels_take_no_part_in_value_or_gradient():
    p, labels = probabilities()
    value, grad = value_and_grad(asymmetric_loss, p, labels)
    other = p.where(labels != 0, torch.rand_like(p))
    again, grad_again = value_and_grad(asymmetric_loss, other, labels)
    assert torch.equal(value, again) and torch.equal(grad, grad_again)
    assert (grad[labels == 0] == 0).all() and (grad[labels == 1] < 0).all()


@pytest.mark.parametrize("gammas", [(0.5, 0.5), (0.0, 0.5), (0.5, 2.0), (1.0, 2.0)])
def test_asymmetric_loss_of_saturated_scores_has_a_gradient(gammas):
    s = torch.tensor([[30.0, -30.0, 30.0, -30.0, 30.0, -30.0]], requires_grad=True)
    labels = torch.tensor([[1.0, 1, -1, -1, 0, 0]])
    asymmetric_loss(s.sigmoid(), labels, *gammas).backward()
    assert s.grad.isfinite().all() and (s.grad[0, 4:] == 0).all()


def test_asymmetric_loss_is_differentiable_and_easy_absent_labels_are_free():
    p, labels = probabilities()
    assert torch.autograd.gradcheck(lambda p: asymmetric_loss(p, labels), p.requires_grad_())
    easy = torch.full((2, 3), 0.04, requires_grad=True)
    value = asymmetric_loss(easy, -torch.ones(2, 3))
    (grad,) = torch.autograd.grad(value, easy)
    assert value == 0 and (grad == 0).all()


def test_asymmetric_loss_at_the_edges():
    sure = torch.tensor([[0.0, 1.0]])
    value, grad = value_and_grad(asymmetric_loss, sure, torch.tensor([[1, -1]]))
    assert value.isfinite() and grad.isfinite().all()
    assert asymmetric_loss(torch.zeros(0, 4), torch.zeros(0, 4)) == 0
    half = asymmetric_loss(torch.tensor([[0.5]], dtype=torch.bfloat16), torch.tensor([[1]]))
    assert half.dtype == torch.float32
    for shape in ((-1.0, 2.0, 0.05), (1.0, -2.0, 0.05), (1.0, 2.0, 1.0)):
        with pytest.raises(ValueError, match=r"give gammas of at least 0, a shift in \[0, 1\)"):
            asymmetric_loss(sure, torch.tensor([[1, -1]]), *shape)
    with pytest.raises(ValueError, match="must have one shape"):
        asymmetric_loss(sure, torch.tensor([[1]]))


def test_doctests():
    result = doctest.testmod(hrcf_lib.methods.losses)
    assert result.attempted and not result.failed
