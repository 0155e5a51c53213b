"""The plain VLP: every prompt and similarity scores as said, and the best of them is found."""

import dataclasses
from types import SimpleNamespace

import pytest
import synthetic
import torch

from hrcf_lib.evaluation import metrics_row
from hrcf_lib.methods import plain_vlp
from hrcf_lib.methods.blocks import fixed_prompts
from hrcf_lib.methods.plain_vlp import PROMPTS, SIMILARITIES, zero_shot


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def features():
    return synthetic.features(24, seed=3)


@pytest.fixture(scope="module")
def model():
    return synthetic.telling_model()


class Reader:
    """A text tower that knows a label only in the sentences of one prompt."""

    def __init__(self, names, prompt):
        self.rows = {p.format(n): i for i, n in enumerate(names) for p in PROMPTS[prompt]}
        self.K = len(names)

    def encode_text(self, texts):
        noise = torch.randn(len(texts), 128, generator=torch.Generator().manual_seed(len(texts[0])))
        for i, text in enumerate(texts):
            if text in self.rows:
                noise[i, : self.K] += 30 * torch.eye(self.K)[self.rows[text]]
        return noise


@pytest.fixture(scope="module")
def legible(features):
    """Features whose teacher embedding spells the annotation."""
    teacher = 0.1 * draw(24, 128)
    teacher[:, : features.labels.shape[1]] += (features.labels == 1).float()
    return dataclasses.replace(features, teacher=teacher)


@pytest.mark.parametrize("prompt", ["photo", "drawing", "multi-label"])
def test_the_best_prompt_on_the_given_split_is_found(legible, prompt):
    reader = Reader(legible.space.names, prompt)
    if prompt in ("photo", "drawing"):  # they are part of the ensemble, too
        assert PROMPTS[prompt][0] in PROMPTS["ensemble"]
    best, score, search = plain_vlp.best_zero_shot(reader, legible)
    assert search.index.names == ["prompt", "score"] and search.columns.tolist() == ["mAP ZSL", "mAP GZSL"]
    assert len(search) == len(PROMPTS) * len(SIMILARITIES)
    means = search.mean(axis=1)
    assert means[best, score] == means.max()
    assert search.loc[prompt].max().min() > 95
    assert search.loc["name"].max(axis=None) < 90
    for p, s in search.index:
        table = zero_shot(reader, legible, p, s, ks=(1,))
        assert search.loc[(p, s)].tolist() == table["mAP"].tolist()


def test_zero_shot_scores(features, model):
    vlp, space = model.vlp, features.space
    for name in ("dot", "cosine", "softmax"):
        table = zero_shot(vlp, features, "ensemble", name, ks=(1,))
        for task, names in (("ZSL", space.unseen), ("GZSL", space.names)):
            prompts = PROMPTS["ensemble"]
            t = torch.stack([vlp.encode_text([p.format(n) for n in names]) for p in prompts]).mean(dim=0)
            s = features.teacher @ t.T
            if name == "cosine":
                s = s / features.teacher.norm(dim=1, keepdim=True) / t.norm(dim=1)
            if name == "softmax":
                s = s.softmax(dim=1)
            row = metrics_row(s.detach(), features.labels[:, space.columns(task)], ks=(1,))
            assert table.loc[task, "protocol"] == row.pop("protocol") == "per_class"
            assert table.loc[task].drop("protocol").to_dict() == pytest.approx(row, rel=1e-6)


@pytest.mark.parametrize("template", ["a photo", "a photo of a {name}.", "a {} and a {}", "a {", "a {.}"])
def test_a_template_has_one_place_for_the_name(model, template):
    with pytest.raises(ValueError, match="template = .*: write {} once, where the label's name stands"):
        fixed_prompts(model.vlp, ["owl"], template)


def test_a_name_may_hold_braces():
    asked = []
    fixed_prompts(SimpleNamespace(encode_text=asked.extend), ["{owl}", "{}"], "a {}.")
    assert asked == ["a {owl}.", "a {}."]
