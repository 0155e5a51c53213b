"""Table IV: its rows, the forms of the loss, the drift of the global embedding, and what the loss sees."""

from types import SimpleNamespace

import pytest
import synthetic
import torch

from hrcf_lib import config, losses
from hrcf_lib.data.feeds.embeddings import embed
from hrcf_lib.studies import table4


@pytest.fixture(scope="module")
def features():
    return synthetic.features(10)


def test_what_distillation_is_worth_in_the_paper():
    found = table4.paper_differences(["mAP", "F1@3", "F1@10"])
    assert {key: round(points, 1) for key, points in found.items()} == {
        ("mAP", "ZSL"): 12.3,
        ("F1@3", "ZSL"): 11.3,
        ("mAP", "GZSL"): 3.7,
        ("F1@3", "GZSL"): 3.0,
    }


def test_pairs_are_of_what_is_run_and_change_distillation_alone():
    assert {side for pair in table4.PARTS.values() for side in pair} == {
        (variant, setting) for variant in table4.VARIANTS for setting in table4.SETTINGS
    }
    assert all(a[1] == b[1] for a, b in table4.PARTS.values())
    assert set(table4.AGAINST["distillation"]) == set(table4.VARIANTS)


def test_weights_and_forms_are_configs_of_their_own_and_hold_the_default():
    short = config.mini_short()
    weighted = table4.weighted([0, 0.25, 1])
    assert list(weighted) == ["weight 0", "weight 0.25", "HRCF"] and short.replace(**weighted["HRCF"]) == short
    assert weighted[table4.WITHOUT] == table4.VARIANTS[table4.WITHOUT]
    made = {name: short.replace(**form) for name, form in table4.FORMS.items()}
    assert len({repr(c) for c in made.values()}) == 5 and made[table4.DEFAULT_FORM] == short


def test_drift_is_that_of_the_global_embedding(features):
    """By hand, in batches that leave a rest."""
    model = synthetic.model().eval()
    found = table4.drift(model, features, batch=4)
    with torch.no_grad():
        e_g, e_p = embed(model, features).e_g, features.teacher
    assert found["loss"] == pytest.approx(float(losses.distillation_loss(e_g, e_p)), rel=1e-5)
    assert found["cosine"] == pytest.approx(float(torch.cosine_similarity(e_g, e_p).mean()), abs=1e-6)
    assert found["norm"] == pytest.approx(float((e_g.norm(dim=1) / e_p.norm(dim=1)).mean()), rel=1e-5)


@pytest.mark.parametrize("reduction", ["violations", "sum"])
def test_what_the_loss_sees(features, reduction):
    """Scores of training, without RSS, of seen labels."""
    model = synthetic.telling_model(normalize_fusion=False, ranking_reduction=reduction)
    found = table4.seen_by_the_loss(model, features)
    assert not model.training
    y = features.labels[:, :5]
    with torch.no_grad():
        held = embed(model, features)
        t = model.label_embeddings(features.space.seen)
        s = model.train().score_embeddings(held.e_g, held.regions, t)
    assert found["spread"] == pytest.approx(float((s.max(1).values - s.min(1).values).mean()), rel=1e-5)
    assert found["ranking"] == pytest.approx(float(losses.ranking_loss(s, y, reduction)), rel=1e-4)
    assert found["violated"] == pytest.approx(losses.violated_share(s, y))


def test_losses_at_the_end_are_means_over_seeds():
    last = lambda x: SimpleNamespace(about={"training": {"last": {"ranking": x, "distillation": 10 * x}}})
    table = table4.at_the_end({("a", 0): last(1.0), ("b", 0): last(5.0), ("a", 1): last(2.0)})
    assert list(table.index) == ["a", "b"] and table.loc["a"].tolist() == [1.5, 15.0]
    assert list(table) == ["ranking, last steps", "distillation, last steps"]
