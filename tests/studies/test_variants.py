"""Variants of notebook 19: each is what it says, and the whole list is scored as by evaluate."""

import pandas as pd
import pytest
import synthetic
import torch

from hrcf_lib import evaluation, scores
from hrcf_lib.model import HRCF
from hrcf_lib.studies import variants
from hrcf_lib.studies.variants import Variant


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


E_G, REGIONS, T = drawn(40, 8), drawn(40, 140, 8, seed=1), drawn(5, 8, seed=2)
CONFIG = synthetic.config()


def test_at_its_ends_a_scorer_is_hsa():
    expected = scores.score(E_G, REGIONS, T, CONFIG, select=True, at_test=True)
    for scorer in (variants.sharpened(CONFIG, 1.0), variants.best_votes(CONFIG, 140)):
        torch.testing.assert_close(scorer(E_G, REGIONS, T), expected)


def test_a_temperature_moves_between_the_mean_and_the_largest_score():
    config = CONFIG.replace(rss=False, normalize_fusion=False, lam=1.0)
    s = REGIONS @ T.T
    torch.testing.assert_close(variants.sharpened(config, 1e6)(E_G, REGIONS, T), s.sum(1) / 5, rtol=1e-3, atol=1e-3)
    largest = torch.where(s == s.amax(-1, True), s, 0.0).sum(1)
    torch.testing.assert_close(variants.sharpened(config, 1e-7)(E_G, REGIONS, T), largest, rtol=1e-3, atol=1e-3)


def test_best_votes_are_the_largest_of_each_label():
    config = CONFIG.replace(rss=False, normalize_fusion=False, lam=1.0)
    v = scores.votes(REGIONS @ T.T).sort(dim=1, descending=True).values[:, :3].sum(1)
    torch.testing.assert_close(variants.best_votes(config, 3)(E_G, REGIONS, T), v)


def test_part_of_the_way():
    model = synthetic.model()
    start = HRCF(model.config).trainable_state()
    with torch.no_grad():
        model.head.weight.add_(1.0)
    moved = variants.part_of_the_way(model, 0.25)
    torch.testing.assert_close(moved.head.weight, start["head.weight"] * 0.75 + model.head.weight * 0.25)
    torch.testing.assert_close(variants.part_of_the_way(model, 1.0).head.weight, model.head.weight)
    assert moved.head.weight.data_ptr() != model.head.weight.data_ptr()
    with pytest.raises(ValueError, match="share = 1.5 of the way of training: choose a number from 0 to 1"):
        variants.part_of_the_way(model, 1.5)


def test_the_table_is_that_of_evaluate():
    model, data = synthetic.telling_model(), synthetic.features(16, 3)
    model.reference_labels = tuple(data.space.seen)
    some = {"HRCF": Variant({}), "open": Variant({"votes": "open"}), "best": variants.VARIANTS["... 24 best votes"]}
    some["start"] = Variant({}, trained=0.0)
    found = variants.measured(model, data, some)
    assert found.loc["HRCF"].equals(evaluation.evaluate(model, data))
    assert found.loc["open"].equals(evaluation.evaluate(model.under(model.config.replace(votes="open")), data))
    assert not found.loc["best"].equals(found.loc["open"]) and not found.loc["start"].equals(found.loc["HRCF"])


def test_the_first_variant_is_chosen_that_no_other_beats_by_what_is_worth_it():
    good = {"plain": (10.0, 10.0), "simple": (20.0, 22.0), "best": (19.0, 24.0), "dear": (21.0, 21.9)}
    rows = {(s, v, t): {"mAP": x[s], "F1@3": x[s]} for v, x in good.items() for s in (0, 1) for t in ("ZSL", "GZSL")}
    table = pd.DataFrame(rows).T.rename_axis(["seed", "variant", "task"])
    chosen, shown = variants.choose(table)
    assert chosen == "simple", "21.0, and the best has 21.5"
    assert list(shown.index) == list(good) and shown["mean"].tolist() == [10.0, 21.0, 21.5, pytest.approx(21.45)]
    assert shown["chosen"].tolist() == [False, True, False, False]
    assert variants.choose(table, worth=0.4)[0] == "best" and variants.choose(table.loc[[1]])[0] == "best"


def test_where_votes_go_adds_up():
    model, data = synthetic.telling_model(), synthetic.features(16, 3)
    model.reference_labels = tuple(data.space.seen)
    found = variants.where_votes_go(model, data)
    assert found.sum(axis=1).tolist() == [pytest.approx(100), pytest.approx(100)]
    assert found.loc["asked", "seen"].tolist() == [0, 0] and (found.loc["open", "seen"] > 0).all()
    assert found.loc["open", ("unseen", "not in it")] < found.loc["asked", ("unseen", "not in it")]
