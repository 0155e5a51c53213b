"""Statistics of HRCF's levels, each computed again by hand."""

import math

import numpy as np
import pytest
import synthetic
import torch

from hrcf_lib import evaluation, metrics, scores
from hrcf_lib.data.feeds.embeddings import embed
from hrcf_lib.data.mojiscenes import scenes
from hrcf_lib.evaluation import evaluate
from hrcf_lib.studies import levels


@pytest.fixture(scope="module")
def features():
    return synthetic.features(24, seed=3)


@pytest.fixture(scope="module")
def model():
    return synthetic.telling_model()


@pytest.fixture(scope="module")
def embedded(model, features):
    return embed(model, features)


def test_each_level_is_scored_alone(model, features):
    table = levels.by_level(model, features)
    assert list(table.index) == ["level 1", "level 2", "level 3"] and list(table.columns) == ["ZSL", "GZSL"]
    embedded = embed(model, features)
    with torch.no_grad():
        t = model.label_embeddings(features.space.names)
        last = scores.region_score_aggregation(scores.region_scores(embedded.regions[:, 136:].float(), t))
    alone = torch.nn.functional.normalize(last, dim=-1)
    assert table.loc["level 3", "GZSL"] == pytest.approx(100 * metrics.mean_average_precision(alone, features.labels))
    assert table.GZSL.nunique() == 3


def test_entropy_of_the_region_softmax_lies_between_one_hot_and_uniform():
    t = torch.eye(4)
    assert levels.region_entropy(torch.zeros(2, 3, 4), t) == pytest.approx((math.log(4), math.log(4)))
    assert levels.region_entropy(1e4 * t.expand(2, 4, 4), t)[0] == pytest.approx(0, abs=1e-6)


def test_relevance_auc_by_hand():
    share = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0]])  # the last is a level of its own, without background
    relevance = torch.tensor([[3.0, 1.0, 2.0, 0.0, 5.0]])
    auc = levels.relevance_auc(relevance[:, :4], share[:, :4], [2])
    assert auc["level 1"] == pytest.approx(0.75)


def test_cells_that_show_a_label_by_hand():
    """A cat on the left half and a bus in a corner of 8 x 8 pixels; a word above them holds where they are."""
    owner = np.full((8, 8), scenes.NOTHING, np.uint8)
    owner[:, :4], owner[7, 7] = 0, 1
    boxes = np.zeros((3, 4), np.float32)
    scene = scenes.Scene(np.zeros((8, 8, 3), np.uint8), ("cat", "bus", "animal"), boxes, owner, things=2)
    assert levels.covered([scene], [2, 1], ["cat", "bus"]).tolist() == [[1, 0, 1, 1 / 16, 33 / 64]]
    assert levels.covered([scene], [1]).tolist() == [[33 / 64]], "any thing"
    both = levels.covered([scene, scene], [2], ["animal", "water"])
    assert both.tolist() == [[1, 0, 1, 0]] * 2


def test_relevance_auc_of_regions_of_one_kind_is_unknown():
    assert levels.relevance_auc(torch.rand(2, 4), torch.ones(2, 4), [2]).isna().all()


def test_levels_by_hand(model, features):
    """Shares of votes sum to 1; norms and certainty are those of each level's own regions."""
    held = embed(model, features)
    with torch.no_grad():
        t = model.label_embeddings(features.space.seen)
    table = levels.level_statistics(held.regions.float(), t, model.gather)
    assert table["number"].tolist() == [100, 36, 4] and table["share of votes"].sum() == pytest.approx(1)
    own = held.regions[:, 100:136].float()
    weights = (own @ t.T).softmax(-1)
    assert table.loc["level 2", "norm"] == pytest.approx(own.norm(dim=-1).mean().item(), rel=1e-5)
    assert table.loc["level 2", "largest weight"] == pytest.approx(weights.amax(-1).mean().item(), rel=1e-5)
    assert table.loc["level 2", "entropy"] == pytest.approx(-(weights * weights.log()).sum(-1).mean().item(), rel=1e-4)


def test_what_rss_leaves_out_by_hand():
    t = torch.eye(2)
    regions = torch.tensor([[[4.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, -1.0]]])  # relevance 4, 0, 2, -1
    mass = [4 * math.exp(4) / (math.exp(4) + 1), 0.0, 1.0, math.exp(-1) / (1 + math.exp(-1))]
    out = levels.left_out_by_rss(regions, t, 2)
    assert out == {"regions": 0.5, "votes": pytest.approx(mass[3] / sum(mass), rel=1e-5)}
    assert levels.left_out_by_rss(regions, t, 4) == {"regions": 0.0, "votes": 0.0}


def test_unseen_labels_among_all_labels(model, features, embedded):
    """Columns of GZSL scores, which are not ZSL scores."""
    names, n = features.space.names, features.space.n_seen
    with torch.no_grad():
        values = evaluation.score_all(embedded, model.label_embeddings(names), model.eval().score_embeddings)[:, n:]
    expected = 100 * metrics.mean_average_precision(values, features.labels[:, n:])
    assert levels.within_all_labels(model, features, embedded) == pytest.approx(expected)
    own = evaluate(model, features, ("ZSL",), embedded=embedded).loc["ZSL", "mAP"]
    assert own != pytest.approx(expected)
