"""The metrics against MKT's numbers, scikit-learn and brute force."""

import doctest
import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

import hrcf_lib.metrics
from hrcf_lib import metrics, protocols
from hrcf_lib.engine import chunks
from hrcf_lib.losses import ranking_loss
from hrcf_lib.metrics import average_precision, mean_average_precision, precision_recall_f1_at_k, protocol

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics.npz", allow_pickle=False)
CASES = ["mixed_200x30", "dense_pm1_200x30"]
NAN = float("nan")


def golden(case, *names):
    return [torch.from_numpy(GOLDEN[f"{case}__{name}"]) for name in names]


def draw(seed, N=60, K=12, levels=None):
    """Scores and labels in {-1, 0, 1}; `levels` distinct scores give ties."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(N, K, generator=g)
    if levels:
        scores = torch.randint(levels, (N, K), generator=g).float()
    return scores, torch.randint(-1, 2, (N, K), generator=g)


def sklearn_ap(scores, labels):
    """AP of each label by scikit-learn, over the known entries."""
    out = []
    for s, y in zip(scores.double().numpy().T, labels.numpy().T):
        known = y != 0
        out.append(average_precision_score(y[known] > 0, s[known]) if (y > 0).any() else NAN)
    return torch.tensor(out, dtype=torch.float64)


def brute_prf(scores, labels, k):
    """Precision, recall and F1 by sorting each image's labels in plain Python."""
    tp = predicted = 0
    for s, y in zip(scores.tolist(), labels.tolist()):
        best = sorted(range(len(s)), key=lambda j: (-s[j], j))[:k]
        tp += sum(y[j] == 1 for j in best)
        predicted += k
    positives = (labels == 1).sum().item()
    p, r = tp / predicted, tp / positives if positives else 0.0
    return p, r, 2 * p * r / (p + r) if p + r else 0.0


@pytest.mark.parametrize("case", CASES)
def test_ap_is_mkts(case):
    scores, labels, expected, mean, has_positive = golden(
        case, "pred", "labels", "mkt_ap", "mkt_ap_mean", "has_positive"
    )
    ap = average_precision(scores, labels)
    assert torch.equal(ap.isnan(), has_positive == 0)
    torch.testing.assert_close(ap.nan_to_num(0.0), expected, rtol=5e-7, atol=0)
    assert mean_average_precision(scores, labels) == pytest.approx(mean.item(), rel=5e-7)
    assert mean_average_precision(scores, labels, "skip") == pytest.approx(
        expected[has_positive == 1].double().mean().item(), rel=5e-7
    )


def test_biam_open_images_pools_its_ap():
    (pooled, ours) = golden("mixed_200x30", "biam_openimages_ap", "mkt_ap")
    assert (pooled - ours).abs().max() > 0.3


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("case", CASES)
def test_precision_recall_f1_are_mkts(case, k):
    scores, labels, expected = golden(case, "pred", "labels", f"mkt_f1_p_r_k{k}")
    precision, recall, f1 = precision_recall_f1_at_k(scores, labels, k)
    assert [f1, precision, recall] == pytest.approx(expected.tolist(), rel=2e-7)


@pytest.mark.parametrize("levels", [None, 1, 2, 5, 20])
def test_ap_equals_scikit_learn_with_ties(levels):
    for seed in range(5):
        scores, labels = draw(seed, levels=levels)
        labels[:, 0] = labels[:, 0].clamp(max=0)  # no positives
        ap = average_precision(scores.double(), labels)
        torch.testing.assert_close(ap, sklearn_ap(scores, labels), rtol=1e-12, atol=0, equal_nan=True)


def test_positives_and_negatives_that_score_zero_of_either_sign_tie():
    scores, labels = torch.tensor([[0.0], [-0.0], [0.0], [-0.0], [-1.0]]), torch.tensor([[1], [-1], [-1], [1], [1]])
    for order in itertools.permutations(range(5)):
        assert average_precision(scores[list(order)], labels[list(order)]).item() == pytest.approx(
            (0.5 + 0.5 + 0.6) / 3
        )


def test_float32_scores_with_few_positives_and_many_ties_equal_scikit_learn():
    g = torch.Generator().manual_seed(6)
    scores = torch.randn(20_000, 8, generator=g)
    scores[:, 4:] = (scores[:, 4:] * 10).round()  # about 70 distinct scores
    labels = torch.where(torch.rand(20_000, 8, generator=g) < 0.01, 1, -1).to(torch.int8)
    labels[torch.rand(20_000, 8, generator=g) < 0.3] = 0
    expected = sklearn_ap(scores, labels)
    torch.testing.assert_close(average_precision(scores, labels).double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(average_precision(scores.double(), labels), expected, rtol=1e-12, atol=0)


def test_the_number_of_threads_changes_no_bit():
    scores, labels = draw(7, N=500, K=40, levels=50)
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            seen.append(average_precision(scores.double(), labels))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


def test_ap_ignores_the_order_of_images_and_any_monotone_map():
    scores, labels = draw(0, levels=6)
    ap = average_precision(scores, labels)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(1))
    assert torch.equal(average_precision(scores[order], labels[order]), ap)
    assert torch.equal(average_precision(scores.exp() * 3 - 7, labels), ap)


def test_unknown_entries_are_left_out():
    scores, labels = draw(1)
    known = labels[:, 3] != 0
    whole, part = average_precision(scores, labels)[3], average_precision(scores[known, 3:4], labels[known, 3:4])[0]
    assert whole == part
    scores[labels == 0] = torch.inf  # wherever they rank
    assert average_precision(scores, labels)[3] == part


def test_ap_hand_computed():
    labels = torch.tensor([[1, 1, -1, 0, 1], [-1, 1, -1, 0, -1], [1, 1, -1, 0, 0]])
    scores = torch.tensor([[3.0], [2.0], [1.0]]).expand(3, 5)
    expected = torch.tensor([5 / 6, 1.0, NAN, NAN, 1.0])
    torch.testing.assert_close(average_precision(scores, labels), expected, equal_nan=True)


def test_infinite_scores_rank():
    scores = torch.tensor([[torch.inf], [0.0], [-torch.inf]])
    assert average_precision(scores, torch.tensor([[1], [-1], [1]])).item() == pytest.approx(5 / 6)
    assert precision_recall_f1_at_k(-scores.T, torch.tensor([[1, -1, 1]]), 1) == (1.0, 0.5, pytest.approx(2 / 3))


@pytest.mark.parametrize("chunk", [1, 60, 61, 130, 60 * 12])
def test_chunks_change_nothing(chunk, monkeypatch):
    scores, labels = draw(2, levels=9)
    whole = average_precision(scores, labels), precision_recall_f1_at_k(scores, labels, 4)
    monkeypatch.setattr(chunks, "CACHE", chunk)
    assert torch.equal(average_precision(scores, labels), whole[0])
    assert precision_recall_f1_at_k(scores, labels, 4) == whole[1]


def test_empty_labels_count_zero_or_not_at_all():
    scores = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    labels = torch.tensor([[1, -1], [-1, -1]])
    assert mean_average_precision(scores, labels) == mean_average_precision(scores, labels, empty="zero") == 0.5
    assert mean_average_precision(scores, labels, empty="skip") == 1.0
    nothing = -torch.ones(2, 2)
    assert mean_average_precision(scores, nothing) == 0.0
    assert math.isnan(mean_average_precision(scores, nothing, empty="skip"))
    assert isinstance(mean_average_precision(scores, labels), float)


def test_protocol_names_the_choice():
    assert "counts 0" in protocol() and "MKT" in protocol("zero") and "at least one positive" in protocol("skip")
    for call in (protocol, lambda empty: mean_average_precision(*draw(0), empty=empty)):
        with pytest.raises(ValueError, match="unknown empty='nan'; use 'zero' or 'skip'"):
            call("nan")


@pytest.mark.parametrize("levels", [None, 1, 2, 4])
@pytest.mark.parametrize("k", [1, 3, 11, 12])
def test_precision_recall_f1_equal_brute_force(k, levels):
    for seed in range(3):
        scores, labels = draw(seed, levels=levels)
        assert precision_recall_f1_at_k(scores, labels, k) == pytest.approx(brute_prf(scores, labels, k), rel=1e-12)


def test_ties_go_to_the_lower_index_and_unknown_is_a_false_positive():
    scores = torch.tensor([[1.0, 1.0, 1.0, 5.0]])
    assert precision_recall_f1_at_k(scores, torch.tensor([[1, -1, -1, 0]]), 2) == (0.5, 1.0, pytest.approx(2 / 3))
    assert precision_recall_f1_at_k(scores, torch.tensor([[-1, 1, 1, 0]]), 2) == (0.0, 0.0, 0.0)


def test_no_positives_at_all_is_zero():
    assert precision_recall_f1_at_k(torch.rand(4, 5), -torch.ones(4, 5), 3) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("k", [0, -1, 13, 2.0, True, None])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=rf"k = {k}, but there are 12 labels .*from 1 to 12"):
        precision_recall_f1_at_k(*draw(0), k)


def test_numpy_integers_are_whole_numbers():
    assert precision_recall_f1_at_k(*draw(0), np.int64(3)) == precision_recall_f1_at_k(*draw(0), 3)


METRICS = [average_precision, mean_average_precision, lambda s, y: precision_recall_f1_at_k(s, y, 2)]


@pytest.mark.parametrize("metric", METRICS)
def test_input_is_unchanged_and_may_carry_gradients(metric):
    scores, labels = draw(3, levels=4)
    before = scores.clone(), labels.clone()
    scores.requires_grad_()
    metric(scores, labels)
    assert torch.equal(scores.detach(), before[0]) and torch.equal(labels, before[1])


@pytest.mark.parametrize("metric", METRICS)
def test_bad_input(metric):
    scores, labels = draw(4)
    with pytest.raises(ValueError, match=r"scores \(60, 12\) and labels \(60, 11\) must have one shape"):
        metric(scores, labels[:, 1:])
    with pytest.raises(ValueError, match=r"scores \(0, 12\) hold nothing to evaluate"):
        metric(scores[:0], labels[:0])
    with pytest.raises(ValueError, match=r"scores \(60, 0\) hold nothing to evaluate"):
        metric(scores[:, :0], labels[:, :0])
    with pytest.raises(ValueError, match="labels are bool"):
        metric(scores, labels > 0)
    with pytest.raises(ValueError, match=r"labels\[0, 0\] is 2 "):
        metric(scores, labels * 0 + 2)
    scores[41, 5] = NAN
    with pytest.raises(ValueError, match=r"scores\[41, 5\] is nan \(image 41, label index 5\)"):
        metric(scores, labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types(dtype):
    scores, labels = draw(5)
    scores = scores.to(dtype)
    ap = average_precision(scores, labels.to(torch.int8))
    assert ap.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(ap.double(), sklearn_ap(scores, labels), rtol=1e-7, atol=0)
    expected = brute_prf(scores.float(), labels, 3)
    assert precision_recall_f1_at_k(scores, labels.float(), 3) == pytest.approx(expected, rel=1e-12)


def test_doctests():
    result = doctest.testmod(hrcf_lib.metrics)
    assert result.attempted and not result.failed


# --- tables of other kinds -------------------------------------------------------------------------------------------


def test_labels_of_0_and_1_alone_are_told():
    s = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    y = (s.roll(1, 0) > 0.5).long()
    comparing = [
        lambda s, y: metrics.mean_average_precision(s, y),
        lambda s, y: metrics.precision_recall_f1_at_threshold(s, y, 0.5),
        metrics.best_threshold,
        ranking_loss,
        lambda s, y: protocols.measure(s, y, (1,), "per_class", "GZSL"),
        protocols.pooled_average_precision,
    ]
    for function in comparing:
        with pytest.warns(
            UserWarning, match="labels hold 0, which is unknown, and no -1.*pass 2 \\* labels - 1"
        ) as told:
            function(s, y)
        assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in comparing:
            function(s, 2 * y - 1)
        metrics.precision_recall_f1_at_k(s, y, 1)  # which takes unknown labels for absent ones
        protocols.measure(s, y, (1,), "per_class_unknown_negative", "GZSL")


def test_arrays_frames_and_lists_are_taken_and_other_things_refused():
    s, y = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[1, -1], [-1, 1]])
    expected = metrics.mean_average_precision(torch.tensor(s), torch.tensor(y))
    for kind in (np.asarray, np.ndarray.tolist, pd.DataFrame, lambda x: x[::-1][::-1]):
        assert metrics.mean_average_precision(kind(s), kind(y)) == expected
        assert metrics.precision_recall_f1_at_k(kind(s), kind(y), 1)[2] == 1
        assert metrics.best_threshold(kind(s), kind(y)) == 0.8
        assert protocols.measure(kind(s), kind(y), (1,), "per_class", "GZSL")["mAP"] == expected
    with pytest.raises(ValueError, match="labels are no table of numbers .*; give a row of K numbers for each image"):
        metrics.mean_average_precision(s, [["a", "b"], ["c", "d"]])
    with pytest.raises(ValueError, match="scores are no table of numbers"):
        metrics.mean_average_precision([[1.0], [1.0, 2.0]], y)
    with pytest.raises(ValueError, match="labels are a ndarray: give a tensor, as torch.as_tensor makes one"):
        ranking_loss(torch.tensor(s), y)


def test_tables_of_other_kinds_of_numbers():
    scores, labels = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[1, -1], [-1, 1]])
    expected = mean_average_precision(scores, labels)
    assert mean_average_precision(scores.numpy().astype(">f4"), labels.numpy().astype(">i8")) == expected
    with pytest.warns(UserWarning, match="no -1, which is absent"):
        mean_average_precision(scores, (labels > 0).numpy().astype(np.uint64))
    for odd, message in (
        (scores + 0j, "scores are complex: give a dense tensor of real numbers"),
        (scores.to_sparse(), "scores are sparse"),
        (np.ma.masked_less(scores.numpy(), 0.5), "scores are a masked array: fill it"),
    ):
        with pytest.raises(ValueError, match=message):
            mean_average_precision(odd, labels)
    for threshold in (None, "x"):
        with pytest.raises(ValueError, match="the threshold is .*: give a number"):
            metrics.precision_recall_f1_at_threshold(scores, labels, threshold)


def test_scores_of_yes_and_no_are_numbers():
    yes, labels = torch.tensor([[True, False, True], [False, True, False]]), torch.tensor([[1, -1, -1], [1, 1, -1]])
    for metric in (average_precision, lambda s, y: precision_recall_f1_at_k(s, y, 2)):
        assert str(metric(yes, labels)) == str(metric(yes.float(), labels))
