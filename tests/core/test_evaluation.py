"""Evaluation: metrics as called directly, each task scored for itself, controls that are what they say."""

import dataclasses

import pandas as pd
import pytest
import synthetic
import torch

from hrcf_lib import evaluation, metrics, training
from hrcf_lib.data.feeds.embeddings import Embedded, embed
from hrcf_lib.engine import devices
from hrcf_lib.evaluation import evaluate, metrics_row
from hrcf_lib.labels import LabelSpace
from hrcf_lib.studies import controls


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def features():
    return synthetic.features(24, seed=3)


@pytest.fixture(scope="module")
def model():
    return synthetic.telling_model()


@pytest.fixture(scope="module")
def embedded(model, features):
    return embed(model, features)


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_measure_is_the_metrics_called_directly():
    values = draw(50, 9)
    labels = (draw(50, 9, seed=1) > 0.8).float() * 2 - 1
    labels[:, 4] = -1  # no positives
    labels[0, 0] = 0
    kept = values.clone(), labels.clone()
    row = metrics_row(values, labels, ks=(2, 4))
    for k in (2, 4):
        p, r, f1 = metrics.precision_recall_f1_at_k(values, labels, k)
        assert (row[f"P@{k}"], row[f"R@{k}"], row[f"F1@{k}"]) == (100 * p, 100 * r, 100 * f1)
    assert row["mAP"] == 100 * metrics.mean_average_precision(values, labels, "zero")
    assert row["mAP skip"] == 100 * metrics.mean_average_precision(values, labels, "skip")
    assert row["mAP"] < row["mAP skip"]
    assert list(row) == ["P@2", "R@2", "F1@2", "P@4", "R@4", "F1@4", "mAP", "mAP skip", "protocol", "images", "labels"]
    assert (row["images"], row["labels"]) == (50, 9)
    assert torch.equal(values, kept[0]) and torch.equal(labels, kept[1])


def test_tasks_may_be_one_or_a_generator_and_not_none(model, features):
    both = evaluate(model, features)
    assert evaluate(model, features, (task for task in ("ZSL", "GZSL"))).equals(both)
    assert evaluate(model, features, "ZSL").equals(both.loc[["ZSL"]])
    for none in ([], None):
        with pytest.raises(ValueError, match="tasks is empty"):
            evaluate(model, features, none)


def test_too_few_labels_are_told_before_the_work(model, features, monkeypatch):
    monkeypatch.setattr(model, "embed_names", lambda names: pytest.fail("it worked"))
    model = model.under(model.config.replace(ks=(1, 3)))
    with pytest.raises(ValueError, match="ZSL has 2 labels, too few for P/R/F1@3: evaluate model.under"):
        evaluate(model, features)


def test_the_protocol_is_named():
    for word in ("micro", "empty='zero'", "mAP skip", "own label set"):
        assert word in evaluation.PROTOCOL


# -- the whole pass ----------------------------------------------------------------------------------------------------


def test_embed_is_the_image_side_as_the_model_computes_it(model, features):
    few = embed(model, features, batch=7)
    assert few.e_g.shape == (24, 128) and few.regions.shape == (24, 140, 128)
    assert few.e_g.dtype == few.regions.dtype == torch.float32, "the model of these tests has bf16 off"
    with torch.no_grad():
        e_g, regions = model.image_embeddings(features.batch(torch.arange(24))[0])
    torch.testing.assert_close(few.e_g, e_g)
    torch.testing.assert_close(few.regions, regions)


@pytest.mark.skipif(not devices.native_bf16("cpu"), reason="this CPU has no bfloat16 of its own")
def test_in_bf16_regions_take_half_the_room_and_hardly_move_a_score(features):
    model = synthetic.model(bf16=True).eval()
    rounded = embed(model, features)
    assert rounded.regions.dtype == torch.bfloat16 and rounded.e_g.dtype == torch.float32
    exact = embed(synthetic.model(bf16=False).eval(), features)
    assert not torch.equal(exact.e_g, rounded.e_g)
    t = model.label_embeddings(features.space.names).detach()
    plain = controls.without_rss(model.config)
    moved = evaluation.score_all(exact, t, plain) - evaluation.score_all(rounded, t, plain)
    assert moved.abs().mean() < 2e-3, "of scores in -1..1"


def test_scores_are_the_same_whether_embeddings_are_kept_or_not(model, features, embedded):
    streamed, kept = evaluate(model, features), evaluate(model, features, embedded=embedded)
    numbers = streamed.select_dtypes("number").columns
    torch.testing.assert_close(torch.tensor(streamed[numbers].to_numpy()), torch.tensor(kept[numbers].to_numpy()))


def test_score_all_does_not_depend_on_the_batch(model, features, embedded):
    t = model.label_embeddings(features.space.names).detach()
    whole = evaluation.score_all(embedded, t, model.score_embeddings)
    assert whole.shape == (24, 7)
    torch.testing.assert_close(evaluation.score_all(embedded, t, model.score_embeddings, batch=5), whole)


def test_evaluate_scores_each_task_for_itself(model, features, embedded):
    model.train()
    table = evaluate(model, features, ("ZSL", "GZSL", "seen"), embedded=embedded)
    assert not model.training
    assert table.index.tolist() == ["ZSL", "GZSL", "seen"] and table.index.name == "task"
    assert table.labels.tolist() == [2, 7, 5]
    space = features.space
    parts = {"ZSL": space.unseen, "GZSL": space.names, "seen": space.seen}
    values = {}
    for task, names in parts.items():
        t = model.label_embeddings(names).detach()
        values[task] = evaluation.score_all(embedded, t, model.score_embeddings)
        row = metrics_row(values[task], features.labels[:, space.columns(task)], model.config.ks)
        assert table.loc[task].to_dict() == pytest.approx(row)
    columns = values["GZSL"][:, space.columns("ZSL")]
    assert (columns - values["ZSL"]).abs().max() > 0.05, "ZSL scores are no columns of GZSL scores"
    assert not torch.equal(columns.argsort(dim=1), values["ZSL"].argsort(dim=1)) or not torch.equal(
        columns.argsort(dim=0), values["ZSL"].argsort(dim=0)
    ), "nor do they rank alike"


def test_open_votes_score_unseen_labels_beside_the_seen_ones(model, features, embedded):
    """ZSL scores are columns of the scores of all labels, GZSL is as ever, and the order of the seen ones is theirs."""
    space = features.space
    opened = model.under(model.config.replace(votes="open"))
    opened.reference_labels = tuple(space.seen)
    with torch.no_grad():
        every = evaluation.score_all(
            embedded, model.label_embeddings([*space.unseen, *space.seen]), model.score_embeddings
        )
    expected = metrics_row(every[:, : len(space.unseen)], features.labels[:, space.n_seen :], model.config.ks)
    for held in (embedded, None):
        found = evaluate(opened, features, embedded=held)
        assert found.loc["ZSL", "mAP"] == pytest.approx(expected["mAP"])
        assert found.loc["GZSL", "mAP"] == pytest.approx(
            evaluate(model, features, embedded=embedded).loc["GZSL", "mAP"]
        )
    assert found.loc["ZSL", "mAP"] != pytest.approx(evaluate(model, features).loc["ZSL", "mAP"])
    assert opened.companions(space.unseen) == list(space.seen) and not opened.companions(space.names)
    assert not model.companions(space.unseen), "the paper scores the labels that are asked for among themselves"


def test_score_of_open_votes_is_that_of_evaluate(model, features):
    opened = model.under(model.config.replace(votes="open"))
    opened.reference_labels = tuple(features.space.seen)
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    unseen = list(features.space.unseen)
    along = model.score(images, [*unseen, *features.space.seen])
    torch.testing.assert_close(opened.score(images, unseen), along[:, : len(unseen)])


def test_evaluate_embeds_if_need_be(model, features, embedded):
    pd.testing.assert_frame_equal(evaluate(model, features), evaluate(model, features, embedded=embedded))


def test_a_task_without_labels_is_an_error(model, features, embedded):
    seen_only = dataclasses.replace(features, space=LabelSpace(features.space.names))
    with pytest.raises(ValueError, match="no labels for ZSL"):
        evaluate(model, seen_only, embedded=embedded)
    assert evaluate(model, seen_only, ("seen",), embedded=embedded).labels.tolist() == [7]
    with pytest.raises(ValueError, match="unknown task"):
        evaluate(model, features, ("zsl",), embedded=embedded)


def test_embedded_is_all_that_scoring_needs(model):
    """A made-up split: the region score finds what one region shows."""
    t = torch.eye(3, 8) * 20
    regions = torch.zeros(2, 140, 8)
    regions[0, 17, 1], regions[1, 99, 2] = 1.0, 1.0
    s = evaluation.score_all(Embedded(torch.ones(2, 8), regions.half()), t, model.score_embeddings)
    assert s.argmax(dim=1).tolist() == [1, 2]


@pytest.mark.parametrize("wrong", [None, [1, 2]])
def test_what_is_no_feed_is_told(wrong):
    model = synthetic.model()
    for call in (lambda: evaluate(model, wrong), lambda: training.train(model, wrong)):
        with pytest.raises(TypeError, match="data is a .*, and no feed: give sources.source"):
            call()
