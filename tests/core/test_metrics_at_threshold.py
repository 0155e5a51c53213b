"""OP to CF1: against scikit-learn, and against counting by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_score, recall_score

from hrcf_lib import metrics


def case(n=200, K=7, seed=0, unknown=0.0):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.standard_normal((n, K), dtype=np.float32))
    labels = torch.from_numpy(np.where(rng.uniform(size=(n, K)) < 0.3, 1, -1))
    labels[torch.from_numpy(rng.uniform(size=(n, K)) < unknown)] = 0
    return values, labels


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 1.0])
def test_they_are_those_of_scikit_learn(threshold):
    values, labels = case()
    row = metrics.precision_recall_f1_at_threshold(values, labels, threshold)
    y, said = (labels == 1).numpy(), (values >= threshold).numpy()
    for name, average in (("O", "micro"), ("C", "macro")):
        p, r = (100 * f(y, said, average=average, zero_division=0) for f in (precision_score, recall_score))
        assert row[f"{name}P"] == pytest.approx(p) and row[f"{name}R"] == pytest.approx(r)
        assert row[f"{name}F1"] == pytest.approx(2 * p * r / (p + r)), "the harmonic mean of the means"
    assert row["threshold"] == threshold


def test_unknown_entries_take_no_part_and_a_label_that_nobody_shows_is_left_out():
    values, labels = case(unknown=0.4)
    row = metrics.precision_recall_f1_at_threshold(values, labels, 0.2)
    other = values.clone()
    other[labels == 0] = torch.randn(int((labels == 0).sum())) * 9
    assert metrics.precision_recall_f1_at_threshold(other, labels, 0.2) == row
    assert metrics.best_threshold(other, labels) == metrics.best_threshold(values, labels)
    nobody = -torch.ones(200, 1, dtype=labels.dtype)
    found = metrics.precision_recall_f1_at_threshold(
        torch.cat([values, values[:, :1]], dim=1), torch.cat([labels, nobody], dim=1), 0.2
    )
    assert (found["CP"], found["CR"]) == (row["CP"], row["CR"]) and found["OP"] < row["OP"]


def test_a_label_that_is_never_said_has_precision_0():
    values, labels = torch.tensor([[1.0, -1.0], [1.0, -1.0]]), torch.tensor([[1, 1], [1, -1]])
    row = metrics.precision_recall_f1_at_threshold(values, labels, 0.0)
    assert (row["CP"], row["CR"], row["OP"]) == (50.0, 50.0, 100.0)
    nothing = metrics.precision_recall_f1_at_threshold(values, labels, 5.0)
    assert nothing["OF1"] == nothing["CF1"] == 0 and not any(math.isnan(value) for value in nothing.values())


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_that_of_trying_all(seed):
    values, labels = case(n=12, K=3, seed=seed, unknown=0.2)
    values = (values * 2).round()  # scores that are alike enter together
    best = metrics.best_threshold(values, labels)
    tried = {
        float(t): metrics.precision_recall_f1_at_threshold(values, labels, float(t))["OF1"] for t in values[labels != 0]
    }
    assert metrics.precision_recall_f1_at_threshold(values, labels, best)["OF1"] == pytest.approx(max(tried.values()))
    assert best == max(t for t, f1 in tried.items() if f1 == pytest.approx(max(tried.values())))


def test_what_cannot_be_measured_is_refused():
    values, labels = case(n=4, K=2)
    for refuse in (lambda v, y: metrics.precision_recall_f1_at_threshold(v, y, 0.0), metrics.best_threshold):
        with pytest.raises(ValueError, match="no picture shows any of the labels"):
            refuse(values, -torch.ones(4, 2))
        with pytest.raises(ValueError, match="must have one shape"):
            refuse(values, labels[:3])
        with pytest.raises(ValueError, match=r"scores\[1, 0\] is nan"):
            refuse(values.index_put((torch.tensor(1), torch.tensor(0)), torch.tensor(torch.nan)), labels)
    with pytest.raises(ValueError, match="the threshold is NaN"):
        metrics.precision_recall_f1_at_threshold(values, labels, torch.nan)
