"""Evaluation: metrics as called directly, each task scored for itself, controls that are what they say."""

import dataclasses
import math

import pandas as pd
import pytest
import synthetic
import torch

from hrcf_lib import evaluation, metrics, scores
from hrcf_lib.data.feeds.embeddings import Embedded, embed
from hrcf_lib.engine import devices
from hrcf_lib.evaluation import evaluate, metrics_row
from hrcf_lib.labels import LabelSpace
from hrcf_lib.methods import plain_vlp
from hrcf_lib.methods.plain_vlp import PROMPTS, SIMILARITIES, zero_shot
from hrcf_lib.studies import controls, probe
from hrcf_lib.studies.controls import random_selection, uniform_weights


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def features():
    return synthetic.features(24, seed=3)


@pytest.fixture(scope="module")
def model():
    """Random weights whose prompts and regions tell labels apart."""
    model = synthetic.model().eval()
    with torch.no_grad():
        model.gather.conv2.weight.normal_(0, 0.05)
    return model


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


def test_evaluate_embeds_if_need_be(model, features, embedded):
    pd.testing.assert_frame_equal(evaluate(model, features), evaluate(model, features, embedded=embedded))


def test_a_task_without_labels_is_an_error(model, features, embedded):
    seen_only = dataclasses.replace(features, space=LabelSpace(features.space.names))
    with pytest.raises(ValueError, match="no labels for ZSL"):
        evaluate(model, seen_only, embedded=embedded)
    assert evaluate(model, seen_only, ("seen",), embedded=embedded).labels.tolist() == [7]
    with pytest.raises(ValueError, match="unknown task"):
        evaluate(model, features, ("zsl",), embedded=embedded)


# -- controls ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rss", [True, False])
def test_uniform_weights_is_eq_13_with_weights_of_one_over_k(normalize, rss):
    config = synthetic.config(rss=rss, normalize_fusion=normalize, lam=0.6)
    e_g, regions, t = draw(3, 8), draw(3, 140, 8, seed=1), draw(5, 8, seed=2)
    kept = scores.select_regions(regions, t, 108) if rss else regions
    s = scores.region_scores(kept, t)  # (B, J, K)
    expected = scores.fuse(scores.global_scores(e_g, t), (s / 5).sum(dim=1), 0.6, normalize)
    torch.testing.assert_close(uniform_weights(config)(e_g, regions, t), expected)
    assert not torch.allclose(expected, scores.score(e_g, regions, t, config, select=rss), atol=1e-3)


def test_random_selection_keeps_as_many_regions_at_random(monkeypatch):
    config = synthetic.config(lam=1.0)
    marks = torch.arange(140.0).expand(6, 140).unsqueeze(-1)  # a region is its number
    seen = []
    monkeypatch.setattr(scores, "score", lambda e_g, regions, t, config, select: seen.append((regions, select)))
    scorer = random_selection(config)
    scorer(None, marks, None)
    kept, select = seen[0]
    assert kept.shape == (6, 108, 1) and select is False, "RSS must not choose once more"
    rows = [row.flatten().tolist() for row in kept]
    assert all(row == sorted(set(row)) for row in rows), "no region twice, in their order"
    assert len(set(map(tuple, rows))) == 6, "drawn for each picture"
    scorer(None, marks, None)
    assert not torch.equal(seen[1][0], kept), "and each time"
    random_selection(config)(None, marks, None)
    assert torch.equal(seen[2][0], kept), "the same for the same seed"
    random_selection(config, seed=1)(None, marks, None)
    assert not torch.equal(seen[3][0], kept)


def test_random_selection_is_fair():
    config = synthetic.config(keep=35)
    marks = torch.eye(140).expand(400, 140, 140)
    counts = torch.zeros(140)

    def count(e_g, regions, t, config, select):
        counts.add_(regions.sum(dim=(0, 1)))

    real, scores.score = scores.score, count
    try:
        random_selection(config)(None, marks, None)
    finally:
        scores.score = real
    assert counts.sum() == 400 * 35
    assert (counts - 100).abs().max() < 5 * (400 * 0.25 * 0.75) ** 0.5


def test_controls_keep_as_many_regions_as_the_method_does_without_hcg():
    config = synthetic.config(hcg=False, lam=1.0, normalize_fusion=False)
    regions, t = draw(2, 196, 8), draw(3, 8, seed=2)
    keep = scores.regions_to_keep(config, 196)
    expected = scores.region_scores(scores.select_regions(regions, t, keep), t).sum(dim=1) / 3
    torch.testing.assert_close(uniform_weights(config)(draw(2, 8), regions, t), expected)


def test_controls_are_named():
    assert set(controls.CONTROLS) == {"RSA with uniform weights", "RSS with random selection"}
    assert all(callable(make(synthetic.config())) for make in controls.CONTROLS.values())


# -- the plain VLP -----------------------------------------------------------------------------------------------------


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


def test_embedded_is_all_that_scoring_needs(model):
    """A made-up split: the region score finds what one region shows."""
    t = torch.eye(3, 8) * 20
    regions = torch.zeros(2, 140, 8)
    regions[0, 17, 1], regions[1, 99, 2] = 1.0, 1.0
    s = evaluation.score_all(Embedded(torch.ones(2, 8), regions.half()), t, model.score_embeddings)
    assert s.argmax(dim=1).tolist() == [1, 2]


# -- probes of what the regions say ------------------------------------------------------------------------------------


def test_each_level_is_scored_alone(model, features):
    table = probe.by_level(model, features)
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
    assert probe.region_entropy(torch.zeros(2, 3, 4), t) == pytest.approx((math.log(4), math.log(4)))
    assert probe.region_entropy(1e4 * t.expand(2, 4, 4), t)[0] == pytest.approx(0, abs=1e-6)


def test_relevance_auc_by_hand():
    share = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0]])  # the last is a level of its own, without background
    relevance = torch.tensor([[3.0, 1.0, 2.0, 0.0, 5.0]])
    auc = probe.relevance_auc(relevance[:, :4], share[:, :4], [2])
    assert auc["level 1"] == pytest.approx(0.75)


def test_rules_of_selection_keep_what_they_say():
    """One label; regions whose score, certainty and norm differ in a known way."""
    t = torch.eye(2)
    regions = torch.tensor([[[3.0, 0.0], [1.0, 1.0], [0.0, -4.0], [2.0, 2.1]]])
    best = {rule: values(regions, t).argmax().item() for rule, values in controls.RULES.items()}
    assert best == {"largest score": 0, "least entropy": 2, "norm": 2}
    config = synthetic.config(keep=70)  # half of them
    seen = []
    scorer = controls.select_by("largest score")(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "score", lambda e, kept, t, config, select: seen.append((kept, select)))
        scorer(None, regions, t)
    assert torch.equal(seen[0][0], regions[:, [0, 3]]) and seen[0][1] is False, "in order, and RSS chooses no further"
    with pytest.raises(ValueError, match="no rule of selection 'largest'; did you mean 'largest score'"):
        controls.select_by("largest")


def test_levels_by_hand(model, features):
    """Shares of votes sum to 1; norms and certainty are those of each level's own regions."""
    held = embed(model, features)
    with torch.no_grad():
        t = model.label_embeddings(features.space.seen)
    table = probe.level_statistics(held.regions.float(), t, model.gather)
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
    out = probe.left_out_by_rss(regions, t, 2)
    assert out == {"regions": 0.5, "votes": pytest.approx(mass[3] / sum(mass), rel=1e-5)}
    assert probe.left_out_by_rss(regions, t, 4) == {"regions": 0.0, "votes": 0.0}


def test_unseen_labels_among_all_labels(model, features, embedded):
    """Columns of GZSL scores, which are not ZSL scores."""
    names, n = features.space.names, features.space.n_seen
    with torch.no_grad():
        values = evaluation.score_all(embedded, model.label_embeddings(names), model.eval().score_embeddings)[:, n:]
    expected = 100 * metrics.mean_average_precision(values, features.labels[:, n:])
    assert probe.within_all_labels(model, features, embedded) == pytest.approx(expected)
    own = evaluate(model, features, ("ZSL",), embedded=embedded).loc["ZSL", "mAP"]
    assert own != pytest.approx(expected)
