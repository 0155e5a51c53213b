"""Calibration: the curve finds what made the answers; thresholds, reliability, labels held out of the vocabulary."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import synthetic
import torch
from sklearn.metrics import f1_score

from hrcf_lib import config as configs
from hrcf_lib.apply import calibration
from hrcf_lib.apply.calibration import Calibration
from hrcf_lib.data import mojiscenes
from hrcf_lib.model import HRCF
from hrcf_lib.pretrained import read_extra


def answers(n=20000, curve=lambda s: 6 * s - 2, seed=0):
    rng = np.random.default_rng(seed)
    s = torch.from_numpy(rng.normal(0.2, 0.5, size=n)).float()
    y = torch.from_numpy(rng.uniform(size=n)) < torch.sigmoid(curve(s))
    return s, torch.where(y, 1.0, -1.0)


@pytest.mark.parametrize("curve", [lambda s: 6 * s - 2, lambda s: 4 * s.clamp(min=0) ** 2 - 3, lambda s: 0 * s - 1])
def test_the_curve_is_found_again_whatever_its_shape(curve):
    made = calibration.fit_curve(*answers(curve=curve))
    s, y = answers(curve=curve, seed=1)
    right, found = torch.sigmoid(curve(s.double())), made.probability(s)
    assert (right - found).abs().mean() < 0.015
    table = calibration.reliability(found, y)
    assert calibration.calibration_error(table) < 0.02 and table["answers"].sum() == len(s)
    wrong = calibration.reliability(torch.sigmoid(curve(s) + 1.5), y)
    assert calibration.calibration_error(wrong) > 0.1
    grid = made.probability(torch.linspace(-3, 3, 200))
    assert (grid.diff() >= 0).all() and (0 <= grid).all() and (grid <= 1).all(), "rising, beyond the knots too"


def test_few_answers_and_equal_scores():
    few = calibration.fit_curve(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    assert 1 <= len(few.scores) <= 2 and few.probability(torch.tensor([0.4])) >= few.probability(torch.tensor([0.1]))
    flat = calibration.fit_curve(torch.full((50,), 0.3), torch.tensor([1.0] * 10 + [-1.0] * 40))
    assert float(flat.probability(torch.tensor(0.3))) == pytest.approx(0.2, abs=0.02)
    upside = calibration.fit_curve(
        torch.tensor([0.1, 0.2, 0.3, 0.4]).repeat(30), torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(30)
    )
    assert len(upside.scores) == 1, "a score that falls with the share of positives is worth nothing"


def test_another_prevalence_multiplies_the_odds_and_changes_no_answer():
    made = calibration.fit_curve(*answers())
    other = made.at_prevalence(0.9)
    s = torch.linspace(-1, 1, 50)
    odds = lambda p: p / (1 - p)
    factor = odds(other.probability(s)) / odds(made.probability(s))
    assert factor.tolist() == pytest.approx([odds(0.9) / odds(made.prevalence)] * 50, rel=1e-6)
    assert torch.equal(made.probability(s) >= made.threshold, other.probability(s) >= other.threshold)
    back = other.at_prevalence(made.prevalence)
    assert back.logits == pytest.approx(made.logits) and back.threshold == pytest.approx(made.threshold)
    for wrong in (0, 1, -0.1, 2):
        with pytest.raises(ValueError, match="prevalence = .*between 0 and 1"):
            made.at_prevalence(wrong)


def test_labels_of_another_frequency_are_right_after_the_shift():
    """Positives thinned out, as of rarer labels: the curve is wrong, and right again at their prevalence."""
    s, y = answers()
    made = calibration.fit_curve(s, y)
    s, y = answers(seed=2)
    keep = (y < 0) | (torch.arange(len(y)) % 5 == 0)
    s, y = s[keep], y[keep]
    raw = calibration.summary(made, s, y)
    shifted = calibration.summary(made.at_prevalence(raw["prevalence"]), s, y)
    assert raw["ECE"] > 0.05 and shifted["ECE"] < 0.015 and shifted["skill"] > raw["skill"]
    assert shifted["F1"] == pytest.approx(raw["F1"])


def test_unknown_answers_take_no_part():
    s, y = answers(500)
    more = torch.cat([s, torch.full((50,), 9.0)]), torch.cat([y, torch.zeros(50)])
    assert calibration.fit_curve(*more) == calibration.fit_curve(s, y)
    assert calibration.reliability(torch.sigmoid(more[0]), more[1])["answers"].sum() == 500
    made = calibration.fit_curve(s, y)
    assert calibration.summary(made, *more) == calibration.summary(made, s, y)


def test_bins_of_the_reliability_table_promise_equally_many_positives():
    p = torch.sigmoid(torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 2 - 4)
    table = calibration.reliability(p, torch.where(torch.rand(5000) < p, 1.0, -1.0), bins=5)
    promised = table["said"] * table["answers"]
    assert len(table) == 5 and promised.max() < 1.1 * promised.min() and table["said"].is_monotonic_increasing
    assert table["gap"].tolist() == pytest.approx((table["said"] - table["true"]).tolist())
    by_hand = (table["gap"].abs() * promised).sum() / promised.sum()
    assert calibration.calibration_error(table, "positives") == pytest.approx(by_hand)


def test_the_threshold_has_the_highest_f1():
    rng = np.random.default_rng(3)
    s = torch.from_numpy(rng.uniform(0.1, 1, size=60).round(2))
    y = rng.uniform(size=60) < s.numpy() ** 2
    made = calibration.fit_curve(s, torch.from_numpy(np.where(y, 1, -1)))
    p = made.probability(s).numpy()
    best = max(f1_score(y, p >= t) for t in np.unique(p))
    assert f1_score(y, p >= made.threshold) == pytest.approx(best)
    below, above = p[p < made.threshold].max(), p[p >= made.threshold].min()
    assert made.threshold == pytest.approx((below + above) / 2), "half way between two probabilities"


def test_a_label_may_have_a_threshold_of_its_own():
    base = Calibration((0.0, 1.0), (0.0, 1.0), 0.5, 0.5)
    s = torch.tensor([[2.0, 1.0, 0.0], [-2.0, 1.0, 0.0], [-3.0, 2.0, 1.0]])
    y = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, 1.0, 1.0]])
    found = calibration.own_thresholds(base, s, y, ["owl", "bus", "sea"])
    assert set(found) == {"owl"}, "the others have examples of one kind only"
    made = Calibration(base.scores, base.logits, 0.9, 0.5, found)
    assert made.thresholds_for(["bus", "OWL "]).tolist() == pytest.approx([0.9, found["owl"]])


@pytest.mark.parametrize("random", [False, True])
def test_examples_move_the_threshold_the_way_they_say(random):
    """A label whose positives score low gets a lower threshold, one whose negatives score high a higher one."""
    base = Calibration((0.0, 1.0), (-3.0, 3.0), 0.5, 0.5)
    y = torch.tensor([1.0] * 10 + [-1.0] * 10)[:, None].expand(-1, 3)
    easy = torch.tensor([0.9] * 10 + [0.1] * 10)
    s = torch.stack([easy, easy - 0.4, easy + 0.4], dim=1)
    found = calibration.own_thresholds(base, s, y, ["as others", "low", "high"], random)
    assert found["as others"] == pytest.approx(0.5, abs=1e-6) and found["low"] < 0.3 and found["high"] > 0.7
    one = calibration.own_thresholds(base, s[[0, 10]], y[[0, 10]], ["as others", "low", "high"], random)
    assert found["low"] < one["low"] < 0.5 < one["high"] < found["high"], "fewer examples say less"


@pytest.mark.parametrize("share", [0.03, 0.5, 0.97])
def test_a_label_far_more_frequent_than_the_curve_says_gets_a_low_threshold(share):
    """Each offset is where the examples' pull, and that of the prior, are in balance."""
    base = Calibration((0.0, 1.0), (-7.0, 1.0), 0.16, 0.004)
    s = torch.linspace(0, 0.3, 100)[:, None]
    y = torch.where(torch.arange(100) % 100 < 100 * share, 1.0, -1.0)[:, None]
    found = calibration.own_thresholds(base, s, y, ["animal"], random=True)["animal"]
    b = float(torch.tensor(0.16).logit() - torch.tensor(found).logit())
    p = torch.sigmoid(base.logit(s) + b)
    assert found < 0.16 and float(((y + 1) / 2 - p).sum()) == pytest.approx(b, abs=1e-2)


def test_picked_examples_do_not_say_how_frequent_a_label_is():
    base = Calibration((0.0, 1.0), (-6.0, 2.0), 0.2, 0.01)
    s, y = torch.tensor([0.9, 0.8, 0.2, 0.1])[:, None], torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None]
    picked = calibration.own_thresholds(base, s, y, ["owl"])["owl"]
    random = calibration.own_thresholds(base, s, y, ["owl"], random=True)["owl"]
    assert random < picked, "half of random pictures have it: so it is more frequent than the others"


def test_a_calibration_is_kept_with_its_model(tmp_path):
    model = synthetic.model()
    made = Calibration((0.0, 1.0), (-1.0, 1.0), 0.4, 0.1, {"owl": 0.7}, about={"split": "val"})
    calibration.attach(model, made)
    model.extras = json.loads(json.dumps(model.extras))
    assert calibration.of_model(model) == made
    calibration.attach(model, None)
    assert calibration.of_model(model) is None and model.extras == {}
    for values in ({"scores": [0]}, asdict(made) | {"logits": [1, -1]}, {"unknown": 1}):
        model.extras["calibration"] = values
        with pytest.raises(ValueError, match="calibration is damaged .*makes it anew"):
            calibration.for_model(model)
    for text in ("{", "[]", "null"):
        (tmp_path / "calibration.json").write_text(text)
        with pytest.raises(ValueError, match="calibration.json is not a calibration.*make it anew"):
            read_extra(tmp_path, "calibration")


def test_it_is_saved_and_loaded_and_ignored_when_it_does_not_fit(tmp_path):
    model = HRCF(configs.mini().replace(bf16=False))
    model.reference_labels = ("cat", "dog")
    calibration.attach(model, Calibration((0.0, 1.0), (-1.0, 1.0), 0.4, 0.1, made_for=calibration.fingerprint(model)))
    folder = model.save_pretrained(tmp_path / "model")
    again = HRCF.from_pretrained(folder)
    assert calibration.of_model(again) == calibration.of_model(model) == calibration.for_model(again)
    changed = HRCF.from_pretrained(folder, lam=0.9)
    with pytest.warns(UserWarning, match="other weights, settings"):
        assert calibration.for_model(changed) is None
    with torch.no_grad():
        again.head.weight[0, 0] += 1
    with pytest.warns(UserWarning, match="make it anew"):
        assert calibration.for_model(again) is None
    calibration.attach(model, None)
    assert not (model.save_pretrained(folder) / "calibration.json").exists(), "nor of the model before"
    assert calibration.of_model(HRCF.from_pretrained(folder)) is None


@pytest.mark.parametrize("change", [{"reference_labels": ("cat",)}, {"config": {"keep": 50}}])
def test_a_fingerprint_knows_labels_and_settings(change):
    model = synthetic.model()
    before = calibration.fingerprint(model)
    assert calibration.fingerprint(synthetic.model()) == before
    model.config = model.config.replace(**change.pop("config", {}))
    for name, value in change.items():
        setattr(model, name, value)
    assert calibration.fingerprint(model) != before


def test_numbers_that_are_no_calibration():
    for wrong in ({"scores": (1.0, 0.0)}, {"scores": (0.0,)}, {"logits": (1.0, 0.0)}, {"logits": (0.0, np.nan)}):
        with pytest.raises(ValueError, match="not a rising curve"):
            Calibration(**{"scores": (0.0, 1.0), "logits": (0.0, 1.0), "threshold": 0.5, "prevalence": 0.5} | wrong)
    with pytest.raises(ValueError, match="owl = 1.5 is not a probability"):
        Calibration((0.0,), (0.0,), 0.5, 0.5, {"owl": 1.5})


def test_answers_of_one_kind_and_broken_scores_are_refused():
    with pytest.raises(ValueError, match="3 positives among 3 answers"):
        calibration.fit_curve(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        calibration.fit_curve(torch.tensor([0.0, torch.nan]), torch.tensor([1.0, -1.0]))


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
        torch.testing.assert_close(s[:, order[0]], model.score_alone(e_g, regions, rest, own))
    model.reference_labels = data.space.seen
    beside = calibration.beside_reference(model, data, ["boat", "sea"])
    assert torch.allclose(beside[:, [0]], calibration.beside_reference(model, data, ["boat"]), atol=1e-6)
    with pytest.raises(ValueError, match="folds = 6 of 5 seen labels"):
        calibration.held_out(model, data, folds=6)
    model.reference_labels = ("cat", "owl", "bat")
    with pytest.raises(ValueError, match="no label 'owl' of the reference vocabulary"):
        calibration.held_out(model, data, folds=2)


def test_calibrate_is_held_out_and_fit():
    model, data = synthetic.model().eval(), synthetic.features(20)
    model.reference_labels = data.space.seen
    made = calibration.calibrate(model, data, folds=2)
    assert made.logits == calibration.fit_curve(*calibration.held_out(model, data, folds=2)).logits
    assert made.made_for == calibration.fingerprint(model) and made.about["pictures"] == 20
    calibration.attach(model, made)
    assert calibration.for_model(model) == made


def test_the_command(tmp_path, monkeypatch, capsys):
    model = HRCF(configs.mini().replace(bf16=False, val_size=16, test_size=8))
    model.reference_labels = mojiscenes.label_space("val").seen
    folder = model.save_pretrained(tmp_path / "model")
    (folder / "calibration.json").write_text("damaged")
    calibration.main([str(folder), "--folds", "2", "--test", "--prevalence", "0.05"])
    said = capsys.readouterr().out
    assert "prevalence 0.0500" in said and "unseen labels of test-line" in said
    made = calibration.of_model(HRCF.from_pretrained(folder))
    assert (
        made.prevalence == 0.05 and made.about["split"] == "val" and calibration.for_model(HRCF.from_pretrained(folder))
    )
    with pytest.raises(SystemExit) as stop:
        calibration.main([str(folder), "--folds", "2", "--prevalence", "0"])
    assert stop.value.code == 2 and "prevalence = 0.0: give the share" in capsys.readouterr().err
    assert calibration.of_model(HRCF.from_pretrained(folder)) == made, "nothing is written"
    with pytest.raises(SystemExit) as stop:
        calibration.main([str(tmp_path / "nowhere")])
    assert stop.value.code == 2 and "nowhere here: correct the path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": None}, "scores is a NoneType, where a list should be"),
        ({"logits": "x"}, "logits is a str"),
        ({"scores": ["x"]}, "scores and logits have 'x', which is no number"),
        ({"thresholds": []}, "thresholds is a list, where a dict should be"),
        ({"threshold": None}, "threshold = None is not a probability"),
        ({"zzz": 1}, "it has 'zzz'"),
    ],
)
def test_kinds_in_a_calibration_are_named(change, message):
    model = synthetic.model()
    values = {"scores": [0.0], "logits": [0.0], "threshold": 0.5, "prevalence": 0.5}
    model.extras = {"calibration": values | change}
    with pytest.raises(ValueError, match=f"calibration is damaged .{message}"):
        calibration.of_model(model)
    model.extras = {"calibration": {name: value for name, value in values.items() if name != "threshold"}}
    with pytest.raises(ValueError, match="it lacks threshold"):
        calibration.of_model(model)
