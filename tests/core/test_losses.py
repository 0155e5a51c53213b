"""The losses against the public code's numbers, and the fast ranking loss against a slow twin."""

import doctest
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hrcf_lib.losses
from hrcf_lib.losses import distillation_loss, ranking_loss
from hrcf_lib.methods.losses import asymmetric_loss, log_sum_ranking_loss, supervised_contrastive_loss

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ranking_loss.npz", allow_pickle=False)
REDUCTIONS = ("violations", "pairs", "sum")
CASES = sorted({key.split("__")[0] for key in GOLDEN.files})


def value_and_grad(loss, scores, *args, **kwargs):
    scores = scores.detach().clone().requires_grad_()
    value = loss(scores, *args, **kwargs)
    (grad,) = torch.autograd.grad(value, scores)
    return value.detach(), grad


def slow_ranking_loss(scores, labels, reduction="violations"):
    """Eq. 15 pair by pair; relu, so that a pair exactly on the margin gets no gradient."""
    pairs = (labels == -1)[:, :, None] & (labels == 1)[:, None, :]  # (B, K, K): n, p
    hinge = F.relu((1 + scores)[:, :, None] - scores[:, None, :]) * pairs  # (B, K, K)
    if reduction == "sum":
        return hinge.sum()
    if reduction == "pairs":
        return (hinge.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)).mean()
    return (hinge.sum(dim=(1, 2)) / (hinge > 0).sum(dim=(1, 2)).clamp(min=1)).mean()


def golden(case, name):
    return torch.from_numpy(GOLDEN[f"{case}__{name}"])


@pytest.mark.parametrize("case", CASES)
def test_ranking_loss_is_that_of_mkt_and_biam(case):
    value, grad = value_and_grad(ranking_loss, golden(case, "logits"), golden(case, "labels"))
    torch.testing.assert_close(value, golden(case, "mkt_loss"), rtol=3e-7, atol=0)
    torch.testing.assert_close(value, golden(case, "biam_loss"), rtol=3e-7, atol=0)
    torch.testing.assert_close(grad, golden(case, "mkt_grad"), rtol=1e-6, atol=1e-9)


def test_all_golden_cases_are_read():
    assert len(CASES) == 8 and "zero_classes" in CASES and "image_without_positive" in CASES


def draw(kind, seed):
    """Scores and labels of a hard kind, in float64."""
    g = torch.Generator().manual_seed(seed)
    B, K = 5, 1 if kind == "K=1" else 2 if kind == "K=2" else 23
    scores = torch.randn(B, K, generator=g, dtype=torch.float64) * 1.5
    labels = torch.randint(-1, 2, (B, K), generator=g)
    if kind == "ties and exact margins":  # halves: many equal scores, many differences of exactly 1
        scores = (scores * 2).round() / 2
    elif kind == "all equal":
        scores = torch.zeros_like(scores)
    elif kind == "all positive":
        labels = torch.ones_like(labels)
    elif kind == "all negative":
        labels = -torch.ones_like(labels)
    elif kind == "all unknown":
        labels = torch.zeros_like(labels)
    elif kind == "unknown columns":
        labels[:, ::3] = 0
    elif kind == "mixed rows":
        labels[0], labels[1], labels[2] = 1, -1, 0
    elif kind == "no violation":
        scores = labels * 5.0 + scores.clamp(-1, 1)
    elif kind == "large":
        scores = scores * 100
    elif kind == "offset":
        scores = scores + 1e6
    return scores, labels


KINDS = [
    *("plain", "ties and exact margins", "all equal", "all positive", "all negative", "all unknown"),
    *("unknown columns", "mixed rows", "no violation", "large", "offset", "K=1", "K=2"),
]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_ranking_loss_equals_its_slow_twin(kind, reduction):
    for seed in range(10):
        scores, labels = draw(kind, seed)
        value, grad = value_and_grad(ranking_loss, scores, labels, reduction)
        slow_value, slow_grad = value_and_grad(slow_ranking_loss, scores, labels, reduction)
        torch.testing.assert_close(value, slow_value, rtol=1e-10, atol=1e-10)  # the offset costs 1e6 * 2^-52 a hinge
        torch.testing.assert_close(grad, slow_grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_float32_finds_the_very_same_pairs(reduction):
    """The margin is compared in the type of the scores, as the public code does: at 1000 many pairs sit on it."""
    g = torch.Generator().manual_seed(0)
    for offset in (0.0, 1000.0):
        scores, labels = torch.randn(8, 200, generator=g) + offset, torch.randint(-1, 2, (8, 200), generator=g)
        value, grad = value_and_grad(ranking_loss, scores, labels, reduction)
        slow_value, slow_grad = value_and_grad(slow_ranking_loss, scores, labels, reduction)
        torch.testing.assert_close(value, slow_value, rtol=1e-4 if offset else 1e-6, atol=0)  # hinges round at 6e-5
        torch.testing.assert_close(grad, slow_grad, rtol=1e-5, atol=1e-9)  # one pair missed would be 1e-4


def test_an_offset_of_all_scores_does_not_cost_digits():
    g = torch.Generator().manual_seed(1)
    scores, labels = torch.randint(-40, 41, (4, 50), generator=g) / 16, torch.randint(-1, 2, (4, 50), generator=g)
    for reduction in REDUCTIONS:
        exact = slow_ranking_loss(scores.double(), labels, reduction)
        for offset in (0.0, 2.0**13, -(2.0**17)):  # sixteenths stay exact in float32 behind these offsets
            value = ranking_loss(scores + offset, labels, reduction)
            torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)


def test_gradcheck():
    labels = torch.tensor([[1, -1, 0, 1, -1], [-1, 1, 1, -1, 0]])
    scores = torch.tensor([[0.3, 0.1, 9.0, 4.0, -3.0], [0.2, 0.5, 3.0, 0.9, 0.0]], dtype=torch.float64)
    for reduction in REDUCTIONS:
        torch.autograd.gradcheck(lambda s, r=reduction: ranking_loss(s, labels, r), scores.requires_grad_())


def test_a_pair_on_the_margin_is_no_violation():
    scores, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([[1, -1]])
    for reduction in REDUCTIONS:
        value, grad = value_and_grad(ranking_loss, scores, labels, reduction)
        assert value == 0 and torch.equal(grad, torch.zeros(1, 2))


def test_where_no_margin_is_met_all_pairs_are_violated():
    """Scores of norm 1 differ by less than 1, so that "violations" and "pairs" are the same loss."""
    scores, labels = draw("plain", 0)
    unit = F.normalize(scores, dim=1) / 2
    assert ranking_loss(unit, labels, "pairs") == ranking_loss(unit, labels, "violations")
    assert ranking_loss(scores, labels, "pairs") < ranking_loss(scores, labels, "violations")


@pytest.mark.parametrize("kind", KINDS)
def test_share_of_violated_pairs(kind):
    scores, labels = draw(kind, 1)
    pairs = (labels == -1)[:, :, None] & (labels == 1)[:, None, :]
    violated = ((1 + scores.float())[:, :, None] > scores.float()[:, None, :]) & pairs
    expected = violated.sum().item() / max(1, pairs.sum().item())
    assert hrcf_lib.losses.violated_share(scores.float(), labels) == pytest.approx(expected)


def counted_violations(s, present, absent):
    """The counts pair by pair, (B, K) and (B, K)."""
    pairs = (s[:, None, :] < (1 + s)[:, :, None]) & absent[:, :, None] & present[:, None, :]  # (B, K, K): n, p
    return pairs.sum(dim=2), pairs.sum(dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_counting_the_violations_in_any_way_gives_the_same_bits(kind, reduction, dtype, monkeypatch):
    cases = []
    for seed in range(5):
        scores, labels = draw(kind, seed)
        scores = scores.to(dtype)
        narrow = scores * (0.9 / (scores.max() - scores.min()).clamp(min=1))  # every pair of every row is violated
        some = torch.where(torch.arange(len(scores))[:, None] % 2 == 0, narrow, scores)
        cases += [(scores, labels), (narrow, labels), (some, labels)]
    ours = [value_and_grad(ranking_loss, *case, reduction) for case in cases]
    monkeypatch.setattr(hrcf_lib.losses, "_violations", counted_violations)
    for (value, grad), case in zip(ours, cases, strict=True):
        expected_value, expected_grad = value_and_grad(ranking_loss, *case, reduction)
        assert torch.equal(value, expected_value) and torch.equal(grad, expected_grad)


class Sorts(TorchDispatchMode):
    """How often anything is sorted."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func.overloadpacket is torch.ops.aten.sort
        return func(*args, **(kwargs or {}))


def test_nothing_is_sorted_where_every_pair_is_violated():
    def sorts(scores, labels):
        with Sorts() as seen:
            ranking_loss(torch.tensor(scores), torch.tensor(labels))
        return seen.number

    rows, labels = [[0.5, 0.25, -0.25, 9.0], [1.0, 0.5, 0.0, -9.0]], [[1, 1, -1, 0], [1, -1, 1, 0]]
    assert sorts(rows, labels) == 0
    assert sorts([*rows, [7.0] * 4, [-7.0, 0, 7, 0]], [*labels, [1, 1, 1, 0], [-1, -1, -1, 0]]) == 0, (
        "rows without pairs"
    )
    assert sorts([*rows, [1.0, 0.0, 0.5, 0.5]], [*labels, [1, -1, -1, 1]]) == 2, "one pair exactly on the margin"


def test_hand_computed():
    scores, labels = (
        torch.tensor([[2.0, 0.5, 1.5, 9.0], [0.0, 0.0, 0.0, 0.0]]),
        torch.tensor([[1, -1, -1, 0], [1, 1, 1, 0]]),
    )
    value, grad = value_and_grad(ranking_loss, scores, labels)  # hinges 0 and 0.5; the second image has no negative
    assert value == 0.25
    assert torch.equal(grad, torch.tensor([[-0.5, 0, 0.5, 0], [0, 0, 0, 0]]))
    scores[0, 1] = 1.5  # two hinges of 0.5
    assert ranking_loss(scores, labels) == 0.25 and ranking_loss(scores, labels, "sum") == 1.0


def test_columns_that_nobody_annotated_change_nothing():
    scores, labels = draw("unknown columns", 0)
    known = labels.abs().sum(dim=0) > 0
    assert known.sum() < labels.shape[1]
    value, grad = value_and_grad(ranking_loss, scores, labels)
    part_value, part_grad = value_and_grad(ranking_loss, scores[:, known], labels[:, known])
    assert torch.equal(value, part_value) and torch.equal(grad[:, known], part_grad)
    assert not grad[:, ~known].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.float32, torch.int8, torch.int64])
def test_types(dtype, label_dtype):
    scores, labels = draw("plain", 3)
    scores = scores.to(dtype)
    value, grad = value_and_grad(ranking_loss, scores, labels.to(label_dtype))
    assert grad.dtype == dtype and value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    slow_value, slow_grad = value_and_grad(slow_ranking_loss, scores.double(), labels)
    torch.testing.assert_close(value.double(), slow_value, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), slow_grad, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_strided_input_empty_batch_and_no_labels():
    scores, labels = draw("plain", 4)
    expected = ranking_loss(scores, labels)
    assert torch.equal(ranking_loss(scores.T.contiguous().T, labels.T.contiguous().T), expected)
    for shape in ((0, 5), (3, 0)):
        value, grad = value_and_grad(ranking_loss, torch.zeros(shape), torch.zeros(shape))
        assert value == 0 and grad.shape == shape


def test_inside_autocast():
    scores, labels = draw("plain", 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ranking_loss(scores.float(), labels)
    assert torch.equal(value, ranking_loss(scores.float(), labels))


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


def test_no_tensor_of_all_pairs():
    B, K = 4, 7186
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(B, K, generator=g, requires_grad=True)
    labels = torch.randint(-1, 2, (B, K), generator=g)
    with LargestTensor() as largest:
        ranking_loss(scores, labels).backward()
    assert B * K <= largest.numel <= 2 * B * K
    with LargestTensor() as largest:  # the recorder sees the pairs of the slow twin
        slow_ranking_loss(scores[:, :50], labels[:, :50])
    assert largest.numel == B * 50 * 50


def test_ranking_loss_leaves_its_input_alone():
    scores, labels = draw("ties and exact margins", 0)
    before = scores.clone(), labels.clone()
    ranking_loss(scores, labels)
    assert torch.equal(scores, before[0]) and torch.equal(labels, before[1])


def test_ranking_loss_errors():
    scores, labels = draw("plain", 0)
    with pytest.raises(ValueError, match="unknown reduction 'mean'; use 'violations', 'pairs' or 'sum'"):
        ranking_loss(scores, labels, reduction="mean")
    with pytest.raises(ValueError, match=r"scores \(5, 23\) and labels \(5, 22\) must have one shape"):
        ranking_loss(scores, labels[:, 1:])
    with pytest.raises(ValueError, match=r"labels\[0, 0\] is 3"):
        ranking_loss(scores, labels * 0 + 3)
    for value in (float("nan"), float("inf")):
        scores[2, 7] = value
        with pytest.raises(ValueError, match=rf"scores\[2, 7\] is {value} \(image 2, label index 7\)"):
            ranking_loss(scores, labels)


def test_distillation_loss():
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(3, 512, generator=g), torch.randn(3, 512, generator=g).requires_grad_()
    value, grad = value_and_grad(distillation_loss, student, teacher)
    torch.testing.assert_close(value, F.l1_loss(student, teacher.detach()))
    torch.testing.assert_close(grad, (student - teacher.detach()).sign() / (3 * 512))
    torch.testing.assert_close(distillation_loss(student, teacher, "sum"), 512 * value)
    assert not distillation_loss(student, teacher).requires_grad  # nothing flows into the teacher
    assert distillation_loss(student, student) == 0 and distillation_loss(student[:0], teacher[:0]) == 0
    assert distillation_loss(student.bfloat16(), teacher).dtype == torch.float32
    assert distillation_loss(student.double(), teacher).dtype == torch.float64


def test_distillation_loss_errors():
    with pytest.raises(ValueError, match="unknown reduction 'none'; use 'mean' or 'sum'"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), reduction="none")
    for teacher in (torch.zeros(1, 3), torch.zeros(3), torch.zeros(2, 1)):  # would broadcast
        with pytest.raises(ValueError, match=r"student \(2, 3\) and teacher .* must have one shape"):
            distillation_loss(torch.zeros(2, 3), teacher)


# The log-sum ranking loss --------------------------------------------------------------------------------------------


def slow_log_sum_ranking_loss(scores, labels):
    """Pair by pair."""
    total = 0
    for s, y in zip(scores, labels, strict=True):
        differences = (s[y == -1][:, None] - s[y == 1]).flatten()  # (N P,)
        total = total + torch.cat([s.new_zeros(1), differences]).logsumexp(dim=0) + 0 * s.sum()
    return total / len(scores)


@pytest.mark.parametrize("kind", KINDS)
def test_log_sum_ranking_loss_equals_its_slow_twin(kind):
    for seed in range(10):
        scores, labels = draw(kind, seed)
        value, grad = value_and_grad(log_sum_ranking_loss, scores, labels)
        slow_value, slow_grad = value_and_grad(slow_log_sum_ranking_loss, scores, labels)
        torch.testing.assert_close(value, slow_value, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grad, slow_grad, rtol=1e-9, atol=1e-12)


def test_log_sum_ranking_loss_of_large_scores():
    """The double sum would overflow: what is left is the largest difference."""
    scores, labels = torch.tensor([[-3e4, 3e4, 0.0], [3e4, -3e4, 0.0]]), torch.tensor([[1, -1, -1]] * 2)
    value, grad = value_and_grad(log_sum_ranking_loss, scores, labels)
    assert value == 3e4  # the mean of 6e4 and 0
    assert torch.equal(grad, torch.tensor([[-0.5, 0.5, 0], [0, 0, 0]]))
    for kind in ("large", "offset"):
        scores, labels = draw(kind, 0)
        value, grad = value_and_grad(log_sum_ranking_loss, scores.float(), labels)
        exact = slow_log_sum_ranking_loss(scores.float().double(), labels)
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)
        assert grad.isfinite().all()


def test_log_sum_ranking_loss_ignores_unknown_scores():
    scores, labels = draw("plain", 0)
    value, grad = value_and_grad(log_sum_ranking_loss, scores, labels)
    other, other_grad = value_and_grad(log_sum_ranking_loss, scores.where(labels != 0, 1e30), labels)
    assert torch.equal(value, other) and torch.equal(grad, other_grad) and not grad[labels == 0].any()


def test_log_sum_ranking_loss_types_empty_batch_and_errors():
    scores, labels = draw("plain", 1)
    half = log_sum_ranking_loss(scores.bfloat16(), labels)
    assert half.dtype == torch.float32 and log_sum_ranking_loss(scores, labels).dtype == torch.float64
    torch.autograd.gradcheck(lambda s: log_sum_ranking_loss(s, labels), scores.requires_grad_())
    for shape in ((0, 5), (3, 0)):
        value, grad = value_and_grad(log_sum_ranking_loss, torch.zeros(shape), torch.zeros(shape))
        assert value == 0 and grad.shape == shape
    with pytest.raises(ValueError, match=r"scores \(5, 23\) and labels \(5, 22\) must have one shape"):
        log_sum_ranking_loss(scores, labels[:, 1:])
    with pytest.raises(ValueError, match=r"labels\[0, 0\] is 3"):
        log_sum_ranking_loss(scores, labels * 0 + 3)


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


def test_doctests():
    result = doctest.testmod(hrcf_lib.losses)
    assert result.attempted and not result.failed


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
