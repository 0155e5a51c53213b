"""Trained runs on other test pictures and by other sets of labels, and where differences change sign."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import synthetic
import torch

from hrcf_lib import config as configs
from hrcf_lib import evaluation, methods, studies
from hrcf_lib.data import benchmarks
from hrcf_lib.data.feeds.embeddings import embed
from hrcf_lib.data.mojiscenes.scenes import MojiScenes, SceneLaw
from hrcf_lib.labels import LabelSpace
from hrcf_lib.studies import bootstrap, compare, conditions, runs
from hrcf_lib.studies.conditions import AMONG_ALL, TASKS, Ask

# words that the mini VLP knows
SPACE = LabelSpace(seen=["ant", "axe", "bat", "bed", "bell"], unseen=["anchor", "bone", "owl", "pizza"])
ASKS = TASKS | AMONG_ALL | {"by twos": Ask(together=2, beside=1), "beside 3": Ask(beside=3, measured="asked")}


def config(**changes):
    return synthetic.config(phases=(("hcg", 1, 4),), train_size=4, **changes)


@pytest.fixture(scope="module")
def feats():
    return {"train": synthetic.features(4, 0, SPACE)}


@pytest.fixture(scope="module")
def feeds():
    return {"few": synthetic.features(6, 1, SPACE), "many": synthetic.features(9, 2, SPACE)}


@pytest.fixture(scope="module")
def done(feats, feeds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    variants = {"HRCF": config(), "without RSA": config(rsa=False)}
    settings = {"": {}, "without RSS": {"rss": False}}
    return folder, conditions.run_all(variants, [0], feats, folder, feeds, ASKS, settings, resamples=20)


def test_groups_divide_the_unseen_labels_and_nest_the_seen():
    space = LabelSpace([f"s{i}" for i in range(30)], [f"u{i}" for i in range(81)])
    for together, sizes in [(20, [21, 20, 20, 20]), (40, [41, 40]), (100, [81]), (None, [81]), (1, [1] * 81)]:
        found = conditions.groups(space, Ask(together=together, beside=3))
        assert [len(measured) for _, measured in found] == sizes
        assert sorted(c for _, measured in found for c in measured) == list(range(30, 111))
        assert all(asked == sorted(asked) and asked[3:] == measured for asked, measured in found)
    beside = [conditions.groups(space, Ask(beside=n))[0][0][:-81] for n in (0, 5, 20, None)]
    assert [len(b) for b in beside] == [0, 5, 20, 30] and all(set(a) <= set(b) for a, b in zip(beside, beside[1:]))
    asks = [Ask(together=20), Ask(together=100), Ask(), Ask(beside=5), *TASKS.values()]
    assert [conditions.number_asked(space, ask) for ask in asks] == [20, 81, 81, 86, 81, 111]
    assert conditions.groups(space, TASKS["GZSL"]) == [(list(range(111)), list(range(111)))]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Ask(together=0), "together = 0"),
        (lambda: Ask(beside=-1), "beside = -1"),
        (lambda: Ask(measured="seen"), "unknown measured 'seen'"),
        (lambda: Ask(together=2, measured="asked"), "in common"),
        (lambda: conditions.groups(SPACE, Ask(beside=6)), "beside = 6, and 5 labels are seen"),
        (lambda: conditions.groups(LabelSpace(["a"]), Ask()), "no unseen labels"),
        (lambda: conditions.by_positives(synthetic.features(5), {"nine": (9, 9)}), "no picture for 'nine'"),
    ],
)
def test_bad_asks_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_tasks_are_those_of_evaluation(done, feats, feeds):
    folder, outcomes = done
    model = studies.trained(config(), feats, folder)
    for name, data in feeds.items():
        table = evaluation.evaluate(model, data)
        own = outcomes["HRCF", 0].table.query(f"setting == '' and split == '{name}'").set_index("task")
        for task in ("ZSL", "GZSL"):
            for metric in ("P@1", "R@1", "F1@2"):
                assert own.loc[task, metric] == pytest.approx(table.loc[task, metric], abs=1e-4)
            assert own.loc[task, "mAP"] == pytest.approx(table.loc[task, "mAP skip"], abs=1e-4)


def test_labels_are_scored_among_those_asked_together(done, feats, feeds):
    folder, outcomes = done
    model, data = studies.trained(config(), feats, folder).eval(), feeds["many"]
    held = embed(model, data)
    with torch.no_grad():
        t = model.label_embeddings(SPACE.names)
        slow = model.score_embeddings(held.e_g, held.regions.float(), t)[:, 5:]
        parts = {}
        for asked, measured in conditions.groups(SPACE, ASKS["by twos"]):
            own = model.score_embeddings(
                held.e_g, held.regions.float(), model.label_embeddings([SPACE.names[c] for c in asked])
            )
            parts |= {c: own[:, asked.index(c)] for c in measured}
    drawn = bootstrap.draw(len(data), 20)
    found = outcomes["HRCF", 0].resampled
    among = bootstrap.resampled_map(slow, data.labels[:, 5:], drawn)
    grouped = bootstrap.resampled_map(torch.stack([parts[c] for c in range(5, 9)], 1), data.labels[:, 5:], drawn)
    torch.testing.assert_close(found["", "many", "ZSL among all", "mAP"].double(), among, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["", "many", "by twos", "mAP"].double(), grouped, atol=1e-5, rtol=0)
    assert ("", "many", "by twos", "F1@1") not in found and ("", "many", "beside 3", "F1@1") in found


def test_classifiers_that_are_fitted_to_a_list_are_fitted_to_each_group_and_by_each_setting(feeds):
    model = methods.build("gen_mlzsl", config(), pretrained=False, hidden=16, classifier_epochs=2).eval()
    held, setting, known = embed(model, feeds["few"]), {"classifier_lr": 0.1}, {}
    together = [SPACE.unseen, SPACE.names]
    found = [s for changes in ({}, setting) for s in conditions.scores(model, held, together, changes, known)]
    fast = model.under(model.config.replace(**setting))
    for s, names, own in zip(found, together * 2, (model, model, fast, fast), strict=True):
        torch.testing.assert_close(s, own.score_embeddings(held.e_g, held.regions, own.label_embeddings(names)))
    assert not torch.equal(found[0], found[1][:, -4:]) and not torch.equal(found[1], found[3])
    rows, _ = runs.score_settings(model, {"val": feeds["many"]}, {"": {}, "fast": setting})
    alone, _ = runs.score_settings(model, {"val": feeds["many"]}, {"fast": setting})
    assert rows.query("setting == 'fast'")["mAP"].tolist() == alone["mAP"].tolist() != rows["mAP"].tolist()[:3]


@pytest.mark.slow
def test_what_is_there_is_read_and_what_is_new_is_added(done, feats, feeds, monkeypatch):
    folder, outcomes = done
    before = outcomes["HRCF", 0]
    called = []
    measured = conditions._measured
    monkeypatch.setattr(conditions, "_measured", lambda *a: called.append(list(a[2].values())) or measured(*a))
    again = conditions.run(config(), None, folder, feeds, ASKS, {"other name": {}}, resamples=20)
    assert not called
    pd.testing.assert_frame_equal(
        again.table.drop(columns="setting"),
        before.table[before.table["setting"] == ""].drop(columns="setting").reset_index(drop=True),
    )
    new = {"renamed": feeds["few"]}
    conditions.run(config(), feats, folder, new, {"ZSL": Ask(), "beside 2": Ask(beside=2)}, resamples=20)
    assert called == [[({}, Ask(beside=2))]]
    conditions.run(config(), feats, folder, {"some": feeds["few"].take([0, 1, 2])}, {"ZSL": Ask()}, resamples=20)
    assert len(called) == 2
    kept = sorted((again.folder / "conditions").glob("*.safetensors"))
    assert len(kept) == 3
    for path in kept:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="scored again"):
        mended = conditions.run(config(), feats, folder, feeds, {"ZSL": Ask()}, resamples=20)
    assert len(called) == 4 and torch.equal(
        mended.resampled["", "few", "ZSL", "mAP"], before.resampled["", "few", "ZSL", "mAP"]
    )


PANELS = {"ZSL mAP": ("ZSL", "mAP"), "GZSL F1": ("GZSL", "F1@2")}


def test_tables_and_differences_are_those_of_compare(done):
    outcomes = done[1]
    pairs = {"RSA": ("HRCF", "without RSA"), "RSS": ("HRCF", ("HRCF", "without RSS"))}
    found = compare.differences(outcomes, pairs.values(), ("mAP", "F1@2"))
    assert len(found) == 2 * 2 * (5 + 4)
    wide = compare.summary(compare.table(outcomes), "few", ("F1@2", "mAP"))
    assert list(wide.index.names) == ["variant", "setting"] and wide.shape == (4, 4)
    at = {"many": 9, "few": 6}
    drawn = conditions.curves(outcomes, pairs, at, PANELS)
    assert drawn["x"].tolist() == [6, 9] * 4 and drawn["split"].tolist() == ["few", "many"] * 4
    own = found.query("variant == 'HRCF' and against_setting == 'without RSS' and split == 'few'").set_index(
        ["task", "metric"]
    )
    row = drawn.query("label == 'RSS' and panel == 'GZSL F1' and x == 6").iloc[0]
    assert (
        row[["difference", "low", "high"]].tolist() == own.loc[("GZSL", "F1@2"), ["difference", "low", "high"]].tolist()
    )
    rows = conditions.crossings(outcomes, pairs, at, PANELS)
    assert rows["first"].tolist() == pytest.approx(drawn.query("x == 6")["difference"].tolist(), abs=1e-4)
    by_ask = conditions.curves(outcomes, pairs, {"ZSL": 4, "beside 3": 7}, {"few": ("few", "mAP")}, "task")
    assert by_ask["task"].tolist() == ["ZSL", "beside 3"] * 2
    with pytest.raises(ValueError, match="no row with split 'fewer'"):
        conditions.curves(outcomes, pairs, {"fewer": 1}, PANELS)
    with pytest.raises(ValueError, match="no row for 'F1', 'RSA': task 'by twos' with F1@2 was not measured"):
        conditions.curves(outcomes, pairs, at, {"F1": ("by twos", "F1@2")})


def test_lengths_of_training_become_splits(done):
    outcomes = done[1]
    renamed = lambda split: conditions.stacked({"test": outcomes}, split)
    parts = {"short": renamed("few"), "long": {("HRCF", 0): renamed("many")["HRCF", 0]}}
    found = conditions.stacked(parts)
    assert list(found) == [("HRCF", 0)] and set(found["HRCF", 0].table["split"]) == {"short", "long"}
    before, now = outcomes["HRCF", 0].resampled, found["HRCF", 0].resampled
    assert now["", "long", "ZSL", "mAP"] is before["", "many", "ZSL", "mAP"] and len(now) == len(before)


ZSL = {"ZSL": ("ZSL", "mAP")}


def made(values, spread=0.0):
    """Runs of two variants whose difference at x = 1, 2, 4 is ``values``, in points, with resamples around it."""
    noise = torch.linspace(-spread, spread, 41) / 100
    key = lambda name: ("", name, "ZSL", "mAP")
    ours = {key(n): torch.cat([torch.tensor([v / 100]), v / 100 + noise]) for n, v in zip("abc", values)}
    return {
        ("A", 0): SimpleNamespace(resampled=ours),
        ("B", 0): SimpleNamespace(resampled={k: torch.zeros(42) for k in ours}),
    }


@pytest.mark.parametrize(
    "values, words, at",
    [
        ((-1, 1, 3), "ahead above 1.5", 1.5),
        ((3, 1, -1), "ahead below 3", 3),
        ((1, 2, 3), "ahead everywhere", None),
        ((-1, -2, -3), "behind everywhere", None),
        ((-1, 1, -3), "ahead below 2.5, one of 2 crossings", 2.5),
    ],
)
def test_crossings(values, words, at):
    (row,) = conditions.crossings(made(values), {"A": ("A", "B")}, {"a": 1, "b": 2, "c": 4}, ZSL).to_dict("records")
    assert row["words"] == words and (row["first"], row["last"]) == pytest.approx((values[0], values[-1]))
    assert math.isnan(row["crosses"]) if at is None else row["crosses"] == pytest.approx(at, rel=1e-5)


def test_a_crossing_has_an_interval_and_may_lie_beyond_the_axis():
    axis = {"a": 1, "b": 2, "c": 4}
    (row,) = conditions.crossings(made((-1, 1, 3), 0.5), {"A": ("A", "B")}, axis, ZSL).to_dict("records")
    assert 1.2 < row["low"] < 1.35 and 1.65 < row["high"] < 1.8
    (row,) = conditions.crossings(made((-1, 1, 3), 2), {"A": ("A", "B")}, axis, ZSL).to_dict("records")
    assert row["low"] == -math.inf and 2 < row["high"] < 3
    (row,) = conditions.crossings(made((-1, 1, 3)), {"A": ("A", "B")}, axis, ZSL, log=True).to_dict("records")
    assert row["crosses"] == pytest.approx(math.sqrt(2), rel=1e-5)


def test_pictures_by_their_positives():
    data = synthetic.features(12, 3, SPACE)
    counts = (data.labels[:, 5:] == 1).sum(dim=1)
    found = conditions.by_positives(data, {"none": (0, 0), "some": (1, 4)})
    assert len(found["none"]) == int((counts == 0).sum()) and len(found["some"]) == int((counts > 0).sum())


@pytest.mark.slow
def test_laws_change_the_pictures_and_not_their_number(tmp_path):
    base = configs.mini().replace(test_size=2)
    read = conditions.laws(base, {"one thing": SceneLaw(objects=(1, 1)), "as it is": SceneLaw()}, cache=tmp_path)
    found = read(methods.configure("pre_clip", base.replace(test_size=7)))
    assert {name: len(feed) for name, feed in found.items()} == {"one thing": 2, "as it is": 2}
    assert read(methods.configure("biam", base))["one thing"] is found["one thing"]
    assert found["one thing"].identity() != found["as it is"].identity()
    assert torch.equal(found["as it is"].labels, studies.sources(base, cache=tmp_path, splits=("test",))["test"].labels)
    with pytest.raises(ValueError, match="a law of scenes for train"):
        benchmarks.open_split(base, "train", law=SceneLaw())
    with pytest.raises(ValueError, match="of coco"):
        benchmarks.open_split(configs.coco_48_17(), "test", law=SceneLaw())


def test_what_notebook_05_chose_is_taken_for_its_own_data_alone():
    base = configs.mini()
    record = {"config": base.to_dict(), "tuned": {"MKT": {"lr": 0.02}}}
    found = conditions.tuned(base, ["MKT", "HRCF"], record)
    assert found == {"MKT": methods.configure("mkt", base).replace(lr=0.02), "HRCF": base}
    assert conditions.tuned(configs.mini_short(), ["MKT"], record)["MKT"].lr == 0.02
    with pytest.warns(UserWarning, match="another dataset, vlp.*, preset: "):
        other = conditions.tuned(configs.nus_wide(), ["MKT"], record)
    assert other == {"MKT": methods.configure("mkt", configs.nus_wide())}
    with pytest.raises(ValueError, match="no method is called 'MKTT'"):
        conditions.tuned(base, ["MKTT"], record)


def test_axes_change_one_thing_of_a_law():
    found = conditions.axes(configs.mini().replace(coverage=0.6), (0.2, 1.0), (1, 3), (0.5,))
    assert {axis: {n: x for n, (x, _) in own.items()} for axis, own in found.items()} == {
        "coverage": {"coverage 0.2": 0.2, "coverage 1": 1.0},
        "things": {"things 1": 1, "things 3": 3},
        "size": {"size 0.5": 0.5},
    }
    assert found["coverage"]["coverage 0.2"][1] == SceneLaw(coverage=0.2)
    assert found["things"]["things 3"][1] == SceneLaw(objects=(3, 3), coverage=0.6)
    law = SceneLaw()
    half = SceneLaw(dominant=tuple(x / 2 for x in law.dominant), others=tuple(x / 2 for x in law.others), coverage=0.6)
    assert found["size"]["size 0.5"][1] == half
    assert conditions.axes(configs.mini()) == {}


def test_steps_of_the_image_side():
    assert conditions.image_steps(configs.mini()) == 1000 and conditions.image_steps(configs.mini_short()) == 250
    with pytest.raises(ValueError, match="train_size is None"):
        conditions.image_steps(configs.nus_wide())


def test_facts_of_laws():
    law = SceneLaw(objects=(2, 2), dominant=(0.3, 0.3), others=(0.3, 0.3))
    scenes = {"two": MojiScenes("test", 8, law=law), "little": MojiScenes("test", 8, law=SceneLaw(coverage=0.1))}
    found = conditions.facts(scenes, 6)
    assert found.index.tolist() == ["two", "little"] and found.loc["two", "things"] == 2
    two, unseen = [scenes["two"].scene(i) for i in range(6)], scenes["two"].labels.unseen
    assert found.loc["two", "covered by unseen labels"] == pytest.approx(sum(s.covered(unseen) for s in two) / 6)
    assert found.loc["two", "unseen labels"] == sum(len(set(unseen) & set(s.names)) for s in two) / 6
    assert 0.2 < found.loc["two", "size of a thing"] < 0.45 and (found["unseen labels"] < found["labels"]).all()
    assert found.loc["little", "covered by unseen labels"] < found.loc["two", "covered by unseen labels"]


def test_a_method_of_fixed_labels_is_refused(feats, feeds, tmp_path):
    fixed = methods.configure("asl", config(), categories=SPACE.seen)
    with pytest.raises(ValueError, match="scores only the labels that it was trained on"):
        conditions.run(fixed, feats, tmp_path, feeds, TASKS)
