"""Table III: its rows and their readings, other words in place of a prompt, and how far a prompt moved."""

import pytest
import synthetic
import torch

from hrcf_lib import config, prompts
from hrcf_lib.evaluation import evaluate
from hrcf_lib.studies import records, table3


@pytest.fixture(scope="module")
def model():
    return synthetic.telling_model()


def test_rows_are_the_papers_and_two_have_another_reading():
    made = [config.mini().replace(**changes) for changes in table3.VARIANTS.values()]
    assert len({repr(c) for c in made}) == len(made) and made[3] == config.mini(), "the hybrid prompt is HRCF's own"
    printed, rows = records.published("hrcf_table3_prompts"), table3.published()
    assert list(rows.index) == list(table3.VARIANTS)
    assert list(rows["F1@3"][:4]) == list(printed["F1@3"]) and rows.loc["coop"].equals(rows.loc["learnable"])
    assert rows.loc["hybrid", "prompt"] == "Learnable + Fixed"


def test_differences_of_the_paper():
    found = table3.paper_differences(table3.AGAINST)
    assert found["hybrid against fixed"] == pytest.approx(-0.1)
    assert found["hybrid against tuning"] == found[f"hybrid against {table3.SAME_WORDS}"] == pytest.approx(1.4)
    assert table3.paper_differences(table3.FROM_FIXED, "F1@3")["coop against fixed"] == pytest.approx(5.9)


def test_words_are_exchanged_on_a_fixed_image_side(model):
    data = synthetic.features(12)
    alone = {"name": "{}", "small": "a small {}."}
    table = table3.by_words(model, data, sentences=alone)
    assert list(table.index) == ["as trained", "as it started", *alone] and list(table) == ["ZSL", "GZSL"]
    assert table.loc["as trained"].equals(table.loc["as it started"]), "nothing was trained"
    assert table.loc["as trained"].tolist() == evaluate(model, data)["mAP"].tolist()
    texts = lambda names: model.vlp.encode_text([f"a small {name}." for name in names])
    small = synthetic.telling_model()
    small.gather.load_state_dict(model.gather.state_dict())
    small.label_embeddings = lambda names: texts(names).detach()
    assert table.loc["small"].tolist() == pytest.approx(evaluate(small, data)["mAP"].tolist())


def test_another_scorer_takes_the_place_of_the_models(model):
    data = synthetic.features(12)
    table = table3.by_words(model, data, ("GZSL",), {}, table3.by_cosine)
    scorer = lambda e_g, regions, t: torch.nn.functional.cosine_similarity(e_g[:, None], t[None], dim=-1)
    assert table.loc["as trained", "GZSL"] == pytest.approx(evaluate(model, data, ("GZSL",), scorer)["mAP"].item())


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_a_prompt_that_was_not_trained_has_not_moved(kind):
    found = table3.moved(synthetic.model(prompt=kind), ["cat", "dog"])
    assert found["cosine"] == pytest.approx(1) and found["distance"] == 0 and found["alike"] == 0


def test_moves_by_hand(model, monkeypatch):
    before = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    monkeypatch.setattr(table3, "at_start", lambda model: lambda vlp, names: before)
    monkeypatch.setattr(model, "label_embeddings", lambda names: before + torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    found = table3.moved(model, ["cat", "dog"])
    assert found["distance"] == 0.5 and found["alike"] == 1
    assert found["cosine"] == pytest.approx((1 + 2 / 5**0.5) / 2)
    monkeypatch.setattr(model, "label_embeddings", lambda names: before + torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert table3.moved(model, ["cat", "dog"])["alike"] == 0
