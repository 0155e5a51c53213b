"""Calibration: the curve finds what made the answers; thresholds, reliability, labels held out of the vocabulary."""

import numpy as np
import pytest
import synthetic
import torch
from sklearn.metrics import f1_score

from hrcf_lib import alone, calibration
from hrcf_lib.calibration import Calibration


def answers(n=4000, slope=6.0, intercept=-2.0, seed=0):
    rng = np.random.default_rng(seed)
    s = torch.from_numpy(rng.normal(size=n)).float()
    y = torch.from_numpy(rng.uniform(size=n)) < torch.sigmoid(slope * s + intercept)
    return s, torch.where(y, 1.0, -1.0)


def test_the_curve_is_found_again():
    made = calibration.fit(*answers())
    assert made.slope == pytest.approx(6, rel=0.1) and made.intercept == pytest.approx(-2, rel=0.15)
    s, y = answers(seed=1)
    table = calibration.reliability(made.probability(s), y)
    assert calibration.calibration_error(table) < 0.02 and table["answers"].sum() == len(s)
    wrong = calibration.reliability(Calibration(6, 1, 0.5).probability(s), y)
    assert calibration.calibration_error(wrong) > 0.1


def test_unknown_answers_take_no_part():
    s, y = answers(500)
    more = torch.cat([s, torch.full((50,), 9.0)]), torch.cat([y, torch.zeros(50)])
    assert calibration.fit(*more) == calibration.fit(s, y)
    assert calibration.reliability(torch.sigmoid(more[0]), more[1])["answers"].sum() == 500


def test_the_threshold_has_the_highest_f1():
    rng = np.random.default_rng(3)
    p = rng.uniform(0.1, 1, size=60).round(2)
    y = rng.uniform(size=60) < p**2
    at = calibration.best_threshold(torch.from_numpy(p), torch.from_numpy(y))
    best = max(f1_score(y, p >= t) for t in np.unique(p))
    assert f1_score(y, p >= at) == pytest.approx(best) and at not in p, "between two probabilities"
    none = calibration.best_threshold(torch.tensor([0.2, 0.7]), torch.tensor([False, False]))
    assert none > 0.7


def test_a_label_may_have_a_threshold_of_its_own():
    base = Calibration(1.0, 0.0, 0.9)
    s = torch.tensor([[2.0, 1.0, 0.0], [-2.0, 1.0, 0.0], [-3.0, 2.0, 1.0]])
    y = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, 1.0, 1.0]])
    made = calibration.own_thresholds(base, s, y, ["owl", "bus", "sea"])
    assert set(made.thresholds) == {"owl"} and made.threshold == 0.9
    assert torch.sigmoid(torch.tensor(-2.0)) < made.thresholds["owl"] < torch.sigmoid(torch.tensor(2.0))
    assert made.of(["bus", "owl"]).tolist() == pytest.approx([0.9, made.thresholds["owl"]])
    assert Calibration(**made.to_dict()) == made


def test_answers_of_one_kind_and_broken_scores_are_refused():
    with pytest.raises(ValueError, match="3 positives among 3 answers"):
        calibration.fit(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        calibration.fit(torch.tensor([0.0, torch.nan]), torch.tensor([1.0, -1.0]))


def test_held_out_labels_are_scored_beside_the_other_folds_only():
    model, data = synthetic.model().eval(), synthetic.features(6)
    s, y = calibration.held_out(model, data, folds=2)
    assert s.shape == y.shape == (6, 5) and torch.equal(y, data.labels[:, :5])
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0)).chunk(2)
    names = list(data.space.seen)
    with torch.no_grad():
        e_g, regions = model.image_embeddings(data.batch(torch.arange(6))[0])
        rest = model.label_embeddings([names[i] for i in sorted(order[1].tolist())])
        own = model.label_embeddings([names[i] for i in order[0]])
        torch.testing.assert_close(s[:, order[0]], alone.score_alone(model, e_g, regions, rest, own))
    model.reference_labels = data.space.seen
    beside = calibration.beside_reference(model, data, ["boat", "beach"])
    assert torch.allclose(beside[:, [0]], calibration.beside_reference(model, data, ["boat"]), atol=1e-6)
    with pytest.raises(ValueError, match="folds = 6 of 5 seen labels"):
        calibration.held_out(model, data, folds=6)
