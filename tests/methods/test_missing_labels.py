"""Every method for missing labels, and HRCF beside them, through the same tests; then the setting itself."""

import dataclasses
import itertools
import json

import numpy as np
import pandas as pd
import pytest
import synthetic
import torch
from torch.testing import assert_close

from hrcf_lib import config as configs
from hrcf_lib import methods, studies
from hrcf_lib.data import hide_labels
from hrcf_lib.data.feeds import sources
from hrcf_lib.data.feeds.features import FrozenFeatures
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.data.labelled_folder import label_matrix
from hrcf_lib.labels import LabelSpace
from hrcf_lib.methods.missing_labels import base as parts
from hrcf_lib.methods.settings import PartialConfig
from hrcf_lib.studies import one_run, runs
from hrcf_lib.training import train

METHODS = methods.names("missing_labels")
NAMES = ["owl", "pizza", "bus", "cat", "dog"]  # words that the mini VLP was trained on
SPACE = LabelSpace(seen=NAMES, unseen=["zebra", "sea"])


def build(name, pretrained=False, categories=NAMES, **changes):
    changes = {"prompt_lr": 1e-3} | changes  # random weights: at higher rates sigmoids are saturated at once
    return methods.build(name, synthetic.config(), pretrained=pretrained, categories=categories, **changes)


def features(n=10, seed=0, hidden=0.5):
    """Half of the labels are unknown; picture 0 has no known label, picture 1 no known positive."""
    data = synthetic.features(n, seed, SPACE)
    rng = np.random.default_rng(seed + 1)
    data.labels[torch.from_numpy(rng.uniform(size=data.labels.shape) < hidden)] = 0
    data.labels[0], data.labels[1] = 0, -data.labels[1].abs()
    return data


def pictures(n=3, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, 3, 112, 112), dtype=np.uint8))


@pytest.fixture(scope="module")
def fitted():
    return synthetic.Fitted(build, features)


@pytest.mark.parametrize("name", METHODS)
def test_scores_are_logits_of_any_of_its_labels_in_any_order(fitted, name):
    model = fitted[name][0]
    s = model.score(pictures(), NAMES)
    assert s.shape == (3, 5) and s.isfinite().all() and s.std(dim=1).min() > 0 and s.std(dim=0).max() > 0
    p = model.probabilities(s)
    assert ((p >= 0.5) == (s >= model.threshold)).all() and p.isfinite().all()
    some = [3, 0]
    if getattr(model.config, "prediction", "sigmoid") == "sigmoid":
        assert_close(model.score(pictures(), [NAMES[k] for k in some]), s[:, some], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert_close(model(pictures(), NAMES), s, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_labels_it_was_not_built_for(fitted, name):
    model = fitted[name][0]
    if model.open_vocabulary:
        assert model.score(pictures(1), ["boat", "owl"]).shape == (1, 2)
        return
    with pytest.raises(ValueError, match="answers for the 5 labels it was built for, 'boot' is not among them"):
        model.score(pictures(1), ["owl", "boot"])
    with pytest.raises(ValueError, match=r"something for each label.*categories=sources.categories\(config\)"):
        build(name, categories=())


@pytest.mark.parametrize("name", METHODS)
def test_fit_trains_what_the_groups_say_and_nothing_else(fitted, name):
    model, before, _ = fitted[name]
    after = synthetic.weights(model)
    listed = [n for side in ("images", "prompts") for group in model.groups(side) for n in group["names"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {n for n, _ in model.named_parameters() if not n.startswith("vlp.")}
    assert set(listed) == {n for group in model.groups(model.config.trains) for n in group["names"]}
    buffers = {n for n, _ in model.named_buffers()}
    moved = {n for n in after if not torch.equal(before[n], after[n])}
    assert set(listed) <= moved <= set(listed) | buffers, set(listed) - moved
    assert model.reference_labels == SPACE.seen and not model.training


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_bits_also_where_it_was_interrupted(fitted, name, tmp_path):
    model, _, history = fitted[name]
    train(build(name), features(), tmp_path, stop_after=4)
    again = build(name)
    rerun = train(again, features(), tmp_path)
    assert synthetic.same(synthetic.weights(again), synthetic.weights(model))
    columns = [c for c in history.columns if c not in ("seconds", "waited")]
    pd.testing.assert_frame_equal(rerun[columns], history[columns])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("unknown", ["ignored", "negative"])
def test_scores_of_unknown_labels_are_not_taught_anything_where_they_are_ignored(name, unknown, monkeypatch):
    model, data, scores = build(name, unknown=unknown, shift=0.0), features(), []
    say = model.probabilities
    monkeypatch.setattr(model, "probabilities", lambda s: scores.append(s) or s.retain_grad() or say(s))
    e_g, regions = model.image_embeddings(data.trunk[:].float())
    labels = data.labels[:, :5]
    model.losses(e_g, regions, model.label_embeddings(NAMES), labels, e_g)["classification"].backward()
    assert scores
    for s in scores:  # of TRM-ML two: the region's and the query's
        assert (s.grad[labels != 0] != 0).any()
        assert (s.grad[labels == 0] == 0).all() == (unknown == "ignored")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*METHODS, "hrcf"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_what_is_hidden_never_reaches_a_method_that_ignores_it(name, share):
    """Hidden labels of the data set are changed at random: from there on neither losses nor weights change by a bit."""
    config, found = synthetic.config(known=share), []
    for seed in (1, 2):
        dataset = Annotated(seed, share)
        data = synthetic.features(10, 0, SPACE).relabel(hide_labels.hide_as(config, dataset))
        own = {} if name == "hrcf" else {"categories": NAMES}
        model = methods.build(name, config, pretrained=False, **own)
        history = train(model, data).drop(columns=["seconds", "waited"])
        found.append((history, synthetic.weights(model)))
    pd.testing.assert_frame_equal(found[0][0], found[1][0])
    assert synthetic.same(found[0][1], found[1][1])
    assert found[0][0].iloc[:, 5:].notna().any().all()


class Annotated:
    """Ten pictures whose labels hidden at p = ``share`` depend on the seed, and whose known ones do not."""

    labels, side = SPACE, 112

    def __init__(self, seed=0, share=1.0):
        one, other = (np.random.default_rng(s).choice([-1.0, 1.0], (10, 7)) for s in (0, seed + 1))
        known = np.pad(hide_labels.known_mask(10, 5, share), ((0, 0), (0, 2)))
        self.y = torch.from_numpy(np.where(known, one, other)).float()

    def __len__(self):
        return 10

    def __getitem__(self, index):
        raise AssertionError("nobody looks at pictures here")

    def label_vector(self, index):
        return self.y[index]


@pytest.mark.parametrize("name", METHODS)
def test_save_and_load(name, tmp_path):
    model = build(name, pretrained=True)
    train(model, features())
    s = model.score(pictures(), NAMES)
    again = methods.load(model.save_pretrained(tmp_path))
    assert type(again) is type(model) and again.config == model.config
    assert torch.equal(again.score(pictures(), NAMES), s)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_loss(name):
    model = build(name)
    model = build(name, phases=tuple((p.trains, 25, 5) for p in model.config.phases))
    history = train(model, features())
    assert history["classification"].tail(6).mean() < history["classification"].head(6).mean()


# Temperature and offset before training -------------------------------------------------------------------------------


def start_of(name, data, **changes):
    """A method before and after ``begin``, and its loss of the known labels of all pictures at either time."""
    model, losses = build(name, **changes), []
    for _ in range(2):
        s, y = parts.first_scores(model, data)
        with torch.no_grad():
            p = model.probabilities(model.spread(model.likeness(s)))
            losses.append(float(model.classification(p, y)))
        if len(losses) == 1:
            before = synthetic.weights(model)
            model.begin(data)
    return model, before, losses


@pytest.mark.parametrize("name", sorted({*METHODS} - {"asl", "trm_ml", "semantic_aware"}))  # these fit if asked to
def test_temperature_and_offset_are_fitted_to_the_known_labels_before_training(name):
    model, before, losses = start_of(name, features(40))
    assert losses[1] < losses[0]
    after = synthetic.weights(model)
    assert {n for n in after if not torch.equal(before[n], after[n])} == {"likeness.log_scale", "likeness.offset"}
    s, y = parts.first_scores(model, features(40))
    for p, step in itertools.product(model.likeness.parameters(), (-0.1, 0.1)):  # no neighbour is better
        with torch.no_grad():
            old = p.clone()
            p.copy_((p + step).clamp(min=0) if p is model.likeness.log_scale else p + step)  # temperatures up to 1
            assert float(model.classification(model.probabilities(model.likeness(s)), y)) > losses[1] - 1e-5
            p.copy_(old)


@pytest.mark.slow
def test_the_fit_sees_known_labels_alone_and_in_single_positives_takes_unknown_ones_for_absent():
    data = features()
    for i in (0, 3):  # nothing is known of picture 0: another in its place moves where the search starts, no more
        trunk = data.trunk[:].numpy().copy()
        trunk[i] += np.random.default_rng(0).standard_normal(trunk[i].shape).astype(trunk.dtype)
        other = FrozenFeatures(trunk, data.teacher, data.labels, data.space)
        one, two = (start_of("coop", d)[0].likeness.offset.item() for d in (data, other))
        assert (abs(one - two) < 1e-3) == (i == 0)
    single = features()
    single.labels[single.labels == -1] = 0
    absent = dataclasses.replace(
        single, labels=single.labels.where(single.labels == 1, -torch.ones_like(single.labels))
    )
    offsets = [start_of("coop", d)[0].likeness.offset for d in (single, absent)]
    assert torch.equal(*offsets) and not build("coop").config.unknown == "negative"


def test_a_fit_that_leads_nowhere_changes_nothing():
    likeness = parts.Likeness(0.1, -2.0)
    likeness.fit(torch.rand(4, 3), lambda s: s.sum() * torch.nan)
    assert_close(likeness.log_scale.exp().item(), 10.0)
    likeness.fit(torch.rand(4, 3), lambda s: s.mean().square(), offset=False)
    assert likeness.offset == -2 and likeness.offset.grad is None
    before = build("asl")
    weights = synthetic.weights(before)
    before.begin(features())
    assert synthetic.same(synthetic.weights(before), weights)


@pytest.mark.parametrize("name", METHODS)
def test_configs(name):
    base = configs.mini().replace(known=0.3, seed=4)
    config = methods.configure(name, base, categories=NAMES)
    assert (config.known, config.seed, config.train_size) == (0.3, 4, 8000)
    assert sum(p.epochs for p in config.phases) == sum(p.epochs for p in base.phases)
    assert configs.from_dict(json.loads(json.dumps(config.to_dict())), type(config)) == config
    assert "categories" not in studies.run_name(config) and "known-0.3" in studies.run_name(config)
    for changes, says in [
        ({"loss": "hinge"}, "loss = 'hinge': choose one of asymmetric, cross_entropy"),
        ({"unknown": "maybe"}, "unknown = 'maybe': choose one of ignored, negative"),
        ({"shift": 1.0}, "shift = 1.0 must be below 1"),
        ({"categories": ["cat", "cat"]}, "'cat' occurs 2 times in categories"),
    ]:
        with pytest.raises(ValueError, match=says):
            config.replace(**changes)
    assert isinstance(config, PartialConfig)


# The setting ----------------------------------------------------------------------------------------------------------


def test_the_config_of_hidden_labels():
    assert not hide_labels.hides(configs.mini()) and hide_labels.hides(configs.mini().replace(known=0.5))
    for changes, says in [
        ({"known": 0.0}, "known = 0.0: give the share of training labels that are known, above 0"),
        ({"known": 1.5}, "known = 1.5 must be from 0 to 1"),
        ({"known": -0.1}, "known = -0.1 must be from 0 to 1"),
        ({"known": 0.5, "single_positive": True}, "single_positive with known = 0.5: choose one way"),
        ({"mask_seed": 0.5}, "mask_seed = 0.5 must be a whole number"),
    ]:
        with pytest.raises(ValueError, match=says):
            configs.mini().replace(**changes)


def test_runs_with_complete_labels_are_found_under_the_name_they_always_had():
    """Hashes of runs that were trained before these fields existed."""
    then = {"tag_noise": 0.0, "lr": 1e-3, "phases": configs.alternate(2, 1, 2, 32, 32)}  # what mini was
    assert studies.run_name(configs.mini().replace(**then)).endswith("-seed-0-5a054c02")
    assert studies.run_name(configs.mini().replace(known=0.5)).startswith("mini-known-0.5-seed-0-")


@pytest.mark.parametrize("setting", [{"known": 0.2}, {"known": 0.2, "mask_seed": 3}, {"single_positive": True}])
def test_a_source_of_training_has_the_mask_and_no_other_split(setting):
    config = synthetic.config(train_size=6, val_size=4, **setting)
    model = methods.build("asl", config, pretrained=False, categories=sources.categories(config))
    whole = sources.source(
        methods.build("asl", config.replace(**runs.COMPLETE), pretrained=False, categories=NAMES), "train"
    )
    with pytest.warns(UserWarning, match="labels have no known positive .* and [0-9]+ more"):
        found = sources.source(model, "train")
    seen = slice(0, found.space.n_seen)
    if "known" in setting:
        mask = torch.from_numpy(hide_labels.known_mask(6, found.space.n_seen, 0.2, setting.get("mask_seed", 0)))
    else:
        mask = torch.from_numpy(hide_labels.single_positive(whole.labels[:, seen].numpy()))
        some = (whole.labels[:, seen] == 1).any(dim=1).tolist()  # a scene may show unseen things alone
        assert (found.labels == 1).sum(dim=1).tolist() == some and not (found.labels == -1).any()
    assert torch.equal(found.labels[:, seen], whole.labels[:, seen] * mask)
    assert torch.equal(found.trunk[:], whole.trunk[:])
    assert (sources.source(model, "val").labels[:, seen] != 0).all()


@pytest.mark.parametrize("kind", [{}, {"augment": "rand-m9-mstd0.5-inc1"}])
def test_every_kind_of_source_shows_the_same_labels(kind):
    config = synthetic.config(train_size=4, known=0.5, **kind)
    model = methods.build("asl", config, pretrained=False, categories=sources.categories(config))
    with pytest.warns(UserWarning, match="no known positive"):
        found = sources.source(model, "train")
    expected = torch.from_numpy(hide_labels.known_mask(4, found.space.n_seen, 0.5))
    assert torch.equal(found.labels[:, : found.space.n_seen] != 0, expected)
    _, _, labels = next(iter(found.batches(BatchOrder(4, seed=1))))
    order = torch.cat(BatchOrder(4, seed=1).rows(4))
    assert torch.equal(labels[:, : found.space.n_seen] != 0, expected[order])


def test_a_stream_cannot_hide_labels():
    config = synthetic.config(known=0.5, stream=True).replace(dataset="coco")
    model = methods.build("asl", config, pretrained=False, categories=NAMES)
    with pytest.raises(ValueError, match="labels are hidden by row, which a stream does not count: set stream"):
        sources.source(model, "train")


def test_masks_nest_and_differ_by_seed():
    masks = [hide_labels.known_mask(50, 20, p / 10) for p in range(1, 10)]
    assert all((a <= b).all() for a, b in zip(masks, masks[1:], strict=False))
    assert not np.array_equal(masks[4], hide_labels.known_mask(50, 20, 0.5, seed=1))


def test_gaps_are_counted_and_named():
    dataset = Annotated()
    dataset.y[:, 3] = -1
    with pytest.warns(UserWarning, match=r"1 labels have no known positive \(cat\), 0 of 10 pictures"):
        hide_labels.hide_as(synthetic.config(known=0.99), dataset)
    hidden = label_matrix(hide_labels.hide(dataset, 0.05))[:, :5]
    pictures, labels = hide_labels.gaps(hidden)
    assert pictures == [i for i in range(10) if not hidden[i].any()] and pictures
    assert labels == [k for k in range(5) if not (hidden[:, k] == 1).any()] and labels


@pytest.mark.slow
def test_a_shelf_computes_features_once_and_studies_ask_only_what_a_method_answers(tmp_path):
    base = synthetic.config(train_size=24, val_size=20, test_size=20)
    shelf = studies.shelf(base)
    few = base.replace(known=0.3)
    config = methods.configure("asl", few, categories=sources.categories(few))
    with pytest.warns(UserWarning, match="no known positive"):
        found = shelf(config)
    whole = shelf(config.replace(known=1.0))
    assert found["test"] is whole["test"] and found["train"].trunk is whole["train"].trunk
    assert (found["train"].labels == 0).sum() > (whole["train"].labels == 0).sum()
    assert shelf(config)["train"] is found["train"]
    outcome = studies.run(config, shelf, tmp_path, resamples=20)
    assert set(outcome.table["task"]) == {"seen"} and set(outcome.table["split"]) == {"val", "test", "test-line"}
    table = outcome.table.set_index("split")
    assert table.loc["test", "threshold"] == 0 and table["OF1"].notna().all()
    assert table.loc["test", "threshold val"] == table.loc["val", "threshold val"], "chosen on val"
    hrcf = studies.run(few, shelf, tmp_path, resamples=20).table
    assert "OF1" not in hrcf and hrcf["OF1 val"].notna().all() and set(hrcf["task"]) == {"ZSL", "GZSL", "seen"}
    with pytest.raises(ValueError, match="mojiscenes has no val, and labels .* hidden: .* set held_out, such as 0.2"):
        studies.search(config, {"lr": [1e-3]}, {s: d for s, d in found.items() if s != "val"}, tmp_path / "search")
    best, table = studies.search(config, {"prompt_lr": [1e-3, 1e-2]}, shelf, tmp_path / "search")
    assert best["prompt_lr"] in (1e-3, 1e-2) and "mAP seen" in table and "mAP ZSL" not in table


@pytest.mark.slow
def test_fit_from_the_command_line_takes_the_names_from_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    with pytest.warns(UserWarning, match="no known positive"):
        table = one_run.run("mini", out=tmp_path, changes={"known": 0.3}, method="asl")
    assert list(table.index) == ["seen"]
    assert methods.load(tmp_path / "model").config.categories == sources.categories(configs.mini())


def test_unknown_as_negative():
    """Every unknown label then costs as an absent one, and a picture without a known label takes part."""
    model = build("asl", unknown="negative")
    data = features()
    y = data.labels[:, :5]
    assert model.usable(y).all() and not build("asl").usable(y).all()
    p = torch.rand(10, 5)
    assert torch.equal(model.classification(p, y), build("asl").classification(p, y.where(y != 0, -torch.ones(()))))
    assert model.classification(p, y) > build("asl").classification(p, y)


def test_a_field_of_a_frozen_config_is_a_tuple_of_clean_names():
    config = methods.configure("asl", synthetic.config(), categories=[" polar  bear", "sea"])
    assert config.categories == ("polar bear", "sea") and dataclasses.is_dataclass(config)
