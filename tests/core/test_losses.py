"""The losses against the public code's numbers, and the fast ranking loss against a slow twin."""

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from hard_scores import KINDS, draw, value_and_grad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hrcf_lib.losses
from hrcf_lib.losses import distillation_loss, ranking_loss

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ranking_loss.npz", allow_pickle=False)
REDUCTIONS = ("violations", "pairs", "sum")
CASES = sorted({key.split("__")[0] for key in GOLDEN.files})


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


def test_doctests():
    result = doctest.testmod(hrcf_lib.losses)
    assert result.attempted and not result.failed
