"""Runs of a study: trained once, scored in every setting, read back; and what their differences say."""

import json
from types import SimpleNamespace

import pandas as pd
import processes
import pytest
import synthetic
import torch

from hrcf_lib import config as configs
from hrcf_lib import evaluation, methods, metrics, scores, studies
from hrcf_lib.data import mojiscenes
from hrcf_lib.data.feeds.embeddings import embed
from hrcf_lib.data.feeds.features import FrozenFeatures
from hrcf_lib.engine import weights
from hrcf_lib.labels import LabelSpace
from hrcf_lib.model import HRCF
from hrcf_lib.studies import compare, controls, runs
from hrcf_lib.studies.compare import KEYS

# words that the mini VLP knows
SPACE = LabelSpace(seen=["ant", "axe", "bat", "bed", "bell"], unseen=["anchor", "bone"])
PHASES = (("hcg", 1, 4), ("prompts", 1, 4))  # of 8 pictures: 2 + 2 steps
SETTINGS = {"": {}, "without RSS": {"rss": False}, "uniform": controls.uniform_weights}


def config(**changes):
    return synthetic.config(**{"phases": PHASES, "train_size": 8} | changes)


@pytest.fixture(scope="module")
def feats():
    return {
        split: synthetic.features(n, seed, SPACE)
        for split, n, seed in [("train", 10, 0), ("val", 6, 1), ("test", 12, 2)]
    }


@pytest.fixture(scope="module")
def done(feats, tmp_path_factory):
    """Two variants, two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    variants = {"HRCF": {}, "without HCG": {"hcg": False}}
    return folder, studies.run_all(config(), variants, [0, 1], feats, folder, SETTINGS, resamples=30)


@pytest.mark.slow
def test_a_row_is_what_evaluation_says(done, feats):
    folder, outcomes = done
    run = outcomes["without HCG", 1]
    model = HRCF(config(hcg=False, seed=1))
    runs.train(model, feats["train"].take(range(8)), run.folder)
    for name, other in SETTINGS.items():
        c, rows = model.config, run.table[run.table["setting"].eq(name) & run.table["split"].eq("test")]
        own = controls.uniform_weights(c) if callable(other) else controls.without_rss(c) if other else None
        table = evaluation.evaluate(model, feats["test"], runs.TASKS, own)
        pd.testing.assert_frame_equal(rows.set_index("task")[table.columns], table, check_dtype=False, atol=1e-9)


def test_the_table_is_tidy(done):
    _, outcomes = done
    frame = compare.table(outcomes)
    assert frame.columns[:5].tolist() == ["variant", "seed", "setting", "split", "task"]
    assert (
        len(frame) == 2 * 2 * 3 * 2 * 3 and not frame.duplicated(["variant", "seed", "setting", "split", "task"]).any()
    )


def test_the_first_resample_is_the_split_itself(done):
    _, outcomes = done
    run = outcomes["HRCF", 0]
    rows = run.table.set_index(["setting", "split", "task"])
    for setting in SETTINGS:
        for task in runs.TASKS:
            values = run.resampled[setting, "test", task, "mAP"]
            assert len(values) == 31
            assert 100 * values[0].item() == pytest.approx(rows.loc[(setting, "test", task), "mAP skip"], abs=1e-3)
            f1 = run.resampled[setting, "test", task, "F1@2"][0].item()
            assert 100 * f1 == pytest.approx(rows.loc[(setting, "test", task), "F1@2"], abs=1e-3)
    assert {split for _, split, _, _ in run.resampled} == {"test"}, "val is for choices, not for claims"


def test_a_run_is_not_computed_twice(done, feats, monkeypatch):
    folder, outcomes = done
    monkeypatch.setattr(runs, "train", None)
    again = studies.run(config(), feats, folder, SETTINGS, resamples=30)
    pd.testing.assert_frame_equal(again.table, outcomes["HRCF", 0].table, check_dtype=False)
    assert all(torch.equal(again.resampled[key], value) for key, value in outcomes["HRCF", 0].resampled.items())
    fewer = studies.run(config(), feats, folder, {"": {}}, resamples=30)
    assert fewer.table["setting"].unique().tolist() == [""]


@pytest.mark.parametrize("how", ["cut", "of another run", "gone"])
def test_resampled_metrics_that_are_damaged_are_scored_again(tmp_path, how):
    model, rows = SimpleNamespace(vlp=SimpleNamespace(hash="h"), trained_parameters=lambda: 3), dict.fromkeys(KEYS, "")
    key, values = ("", "test", "ZSL", "mAP"), torch.arange(3.0)
    known = runs.Outcome(pd.DataFrame([rows | {"mAP": 1.0}]), {key: values}, {"training": {"seconds": 1.0}}, tmp_path)
    runs._write_outcome(known, config(), model, {"resamples": 2})
    assert torch.equal(runs._read_outcome(tmp_path, {"resamples": 2}).resampled[key], values)
    path = tmp_path / runs.RESAMPLED
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif how == "gone":
        path.unlink()
    else:
        weights.write_tensors({"|".join(key): values + 1}, path)
    with pytest.warns(UserWarning, match="resampled.safetensors.*: the run is scored again"):
        found = runs._read_outcome(tmp_path, {"resamples": 2})
    assert found.resampled == {} and len(found.table) == 0


def test_a_new_setting_is_scored_without_training(done, feats, monkeypatch):
    folder, outcomes = done
    before = compare.read_comparison(folder)

    def refuse(*_):
        raise AssertionError("it trained")

    monkeypatch.setattr("hrcf_lib.training._step", refuse)
    run = studies.run(config(), feats, folder, {"": {}, "lam = 1": {"lam": 1.0}}, resamples=30)
    assert set(run.table["setting"]) == {"", "lam = 1"}
    model = HRCF(config())
    runs.train(model, feats["train"].take(range(8)), run.folder)
    data, held = feats["test"], embed(model, feats["test"])
    t = model.label_embeddings(data.space.unseen)
    kept = scores.select_regions(held.regions.float(), t, 108)
    s = torch.nn.functional.normalize(scores.aggregate(kept, t), dim=-1)
    expected = metrics.mean_average_precision(s, data.labels[:, 5:])
    row = run.table.query("setting == 'lam = 1' and split == 'test' and task == 'ZSL'")
    assert row["mAP"].item() == pytest.approx(100 * expected)
    assert len(compare.read_comparison(folder)) == len(before) + 6, "and the others are kept"


def test_other_data_are_refused(done, feats):
    folder, _ = done
    other = feats | {"test": synthetic.features(12, 3, SPACE)}
    with pytest.raises(ValueError, match="scored on other data or with other resamples: remove it"):
        studies.run(config(), other, folder, SETTINGS, resamples=30)


@pytest.mark.slow
def test_a_killed_run_goes_on(feats, tmp_path):
    """Training that ends half-way leaves a checkpoint and no record; the next call gives the unbroken run's numbers."""
    whole = studies.run(config(), feats, tmp_path / "whole", resamples=5)
    folder = tmp_path / "broken" / studies.run_name(config())
    runs.train(HRCF(config()), feats["train"].take(range(8)), folder, stop_after=3)
    assert not (folder / "record.json").exists()
    again = studies.run(config(), feats, tmp_path / "broken", resamples=5)
    pd.testing.assert_frame_equal(again.table, whole.table)


def _train(folder):
    feats = {"train": synthetic.features(10, 0, SPACE), "test": synthetic.features(12, 2, SPACE)}
    studies.run(config(), feats, folder, resamples=5)


def test_a_launched_run_is_taken_up_and_launched_once(feats, tmp_path, monkeypatch):
    """The launcher is replaced: what it leaves is the folder of ``one_run``."""
    calls = []

    def train_there(config, out, processes, data, cache, words):
        calls.append((processes, cache))
        runs.train(methods.registry.for_config(config), feats["train"].take(range(8)), out)

    monkeypatch.setattr(runs.one_run, "launch", train_there)
    for _ in range(2):
        studies.launch(config(), tmp_path, 2, cache=tmp_path / "features")
    assert calls == [(2, tmp_path / "features")]
    own = {split: feats[split] for split in ("train", "val")}
    assert studies.run(config(), own, tmp_path, resamples=0).about["training"]["steps"] == 4


@pytest.mark.slow
def test_two_processes_train_one_run_once(tmp_path):
    assert processes.run(_train, tmp_path, processes=2, strangers=True) == [0, 0]
    assert len(compare.read_comparison(tmp_path)) == 3 and len(list(tmp_path.iterdir())) == 1


def test_names_of_runs(monkeypatch):
    base = configs.mini_short()
    assert studies.run_name(base.replace(seed=2)).startswith("mini_short-seed-2-")
    name = studies.run_name(base.replace(hcg=False, levels=(1, 3)))
    assert name.startswith("mini_short-hcg-False-levels--1-3-seed-0-") and "/" not in name and " " not in name
    assert studies.run_name(base) != studies.run_name(base.replace(lr=2e-3))
    assert base.replace(lam=0.25).changes() == {"lam": 0.25}


THEN = {  # what the mini presets had when these runs were made
    "mini": {"tag_noise": 0.0, "lr": 1e-3, "phases": configs.alternate(2, 1, 2, 32, 32)},
    "mini_short": {"tag_noise": 0.0, "lr": 1e-3, "phases": configs.alternate(1, 1, 2, 32, 32)},
}


def test_names_of_runs_older_than_a_field():
    base = configs.mini().replace(**THEN["mini"])
    assert studies.run_name(base).endswith("-seed-0-5a054c02")
    short = configs.mini_short().replace(data_seed=1, seed=2, **THEN["mini_short"])
    assert studies.run_name(short).endswith("-seed-2-804a167d")
    assert studies.run_name(methods.configure("mkt", base)).endswith("-e3b284f1")
    now = studies.run_name(configs.mini())
    assert now.startswith("mini-seed-0-") and now[-8:] != "5a054c02", "by other settings it is another run"
    other = [studies.run_name(configs.mini().replace(vocabulary_seed=seed)) for seed in (1, 2)]
    assert other[0].startswith("mini-vocabulary_seed-1-seed-0-") and other[1].startswith("mini-vocabulary_seed-2-")
    covered = studies.run_name(configs.mini().replace(coverage=0.4))
    assert covered.startswith("mini-coverage-0.4-seed-0-")
    assert len({name[-8:] for name in (*other, covered, now)}) == 4
    mkt = methods.configure("mkt", configs.mini().replace(vocabulary_seed=1))
    assert mkt.vocabulary_seed == 1 and studies.run_name(mkt).startswith("mini-mkt-vocabulary_seed-1-seed-0-")


HASHES = {  # another hash for the same config would train its run again
    "5a054c02": ("hrcf", {}),
    "2630f23a": ("mkt", {"blocks": 3, "topk": 4}),
    "9b63d222": ("biam", {"settings": "released", "glove": "x.txt"}),
    "25ac785d": ("pre_clip", {"similarity": "cosine"}),
    "7d50e909": ("trm_ml", {"known": 0.3, "seed": 2, "categories": ("a", "b")}),
}


@pytest.mark.parametrize("digest", HASHES)
def test_names_of_runs_stay(digest):
    method, changes = HASHES[digest]
    name = studies.run_name(methods.configure(method, configs.preset("mini", **THEN["mini"]), **changes))
    assert name.startswith(f"mini-{method}-" if method != "hrcf" else "mini-") and name.endswith(f"-{digest}")


@pytest.mark.slow
def test_each_split_of_the_vocabulary_has_features_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    base = configs.mini()
    first = studies.sources(base, cache=tmp_path)
    stored = set(tmp_path.glob("*/about.json"))
    other = studies.sources(base.replace(vocabulary_seed=1), cache=tmp_path)
    assert len(stored) == len(first) == 4 and len(set(tmp_path.glob("*/about.json")) - stored) == 4
    for split in first:
        a, b = first[split].identity(), other[split].identity()
        assert first[split].space != other[split].space == mojiscenes.label_space(split, 1) and a != b
    assert torch.equal(first["train"].trunk[:], other["train"].trunk[:]), "training pictures are the same"
    assert not torch.equal(first["test"].trunk[:], other["test"].trunk[:])
    monkeypatch.setattr("hrcf_lib.vlp.VLP.trunk", None)
    again = studies.sources(base.replace(vocabulary_seed=1), cache=tmp_path)
    assert again["val"].identity() == other["val"].identity(), "found, not computed"


def test_the_record_of_a_run(done):
    folder, outcomes = done
    run = outcomes["without HCG", 1]
    record = json.loads((run.folder / "record.json").read_text("utf-8"))
    assert record["config"]["hcg"] is False and record["seed"] == 1 and record["parameters"]["hcg"] is False
    for key in ("versions", "commit", "device", "date", "protocol", "vlp_hash"):
        assert record[key]
    assert record["training"]["steps"] == 4 and record["training"]["sides"]["prompts"]["steps"] == 2
    model = HRCF(config(hcg=False))
    assert record["trained_parameters"]["text side"] == model.prompt.vectors.numel()
    assert record["trained_parameters"]["image side"] == sum(
        p.numel() for n, p in model.named_parameters() if not n.startswith(("vlp.", "prompt."))
    )


def test_all_runs_as_one_frame(done, tmp_path):
    folder, outcomes = done
    frame = compare.read_comparison(folder)
    row = frame[frame["run"] == outcomes["without HCG", 1].folder.name].iloc[0]
    assert "hcg = False" in row["changes"] and row["seed"] == 1 and row["preset"] == "mini" and row["commit"]
    with pytest.raises(FileNotFoundError, match="holds no record.json of a run"):
        compare.read_comparison(tmp_path)


# -- differences -------------------------------------------------------------------------------------------------------


def test_differences(done):
    _, outcomes = done
    pairs = [("HRCF", "without HCG"), (("HRCF", ""), ("HRCF", "without RSS"))]
    frame = compare.differences(outcomes, pairs, ("mAP", "F1@2"))
    assert len(frame) == 2 * 3 * 2 and (frame["seeds"] == 2).all()
    assert ((frame["low"] <= frame["difference"] + 1e-9) & (frame["difference"] <= frame["high"] + 1e-9)).all()
    row = frame[(frame["against"] == "without HCG") & (frame["task"] == "ZSL") & (frame["metric"] == "mAP")].iloc[0]
    means = compare.table(outcomes).query("setting == '' and split == 'test' and task == 'ZSL'").groupby("variant")
    means = means["mAP skip"].mean()
    assert row["difference"] == pytest.approx(means["HRCF"] - means["without HCG"], abs=1e-3)


def test_a_run_against_itself_is_open(done):
    _, outcomes = done
    frame = compare.differences(outcomes, [("HRCF", "HRCF")])
    assert frame["difference"].eq(0).all() and frame["verdict"].eq("open").all()


def test_an_unknown_variant_or_setting_is_named(done):
    _, outcomes = done
    with pytest.raises(ValueError, match="no run of 'without HSA'; did you mean 'without HCG'"):
        compare.differences(outcomes, [("HRCF", "without HSA")])
    with pytest.raises(ValueError, match="'HRCF' has no setting 'lam = 2'"):
        compare.differences(outcomes, [("HRCF", ("HRCF", "lam = 2"))])


def test_smoke_runs_are_small_whatever_a_variant_asks_for(feats, tmp_path, monkeypatch):
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    small = {split: FrozenFeatures(f.trunk, f.teacher, f.labels, f.space) for split, f in feats.items()}
    outcomes = studies.run_all(config(), {"long": {"phases": (("hcg", 9, 4),)}}, [0], small, tmp_path, resamples=3)
    assert outcomes["long", 0].about["training"]["steps"] == 2


def test_rows_for_a_forest_plot(done):
    _, outcomes = done
    pairs = {"HCG": ("HRCF", "without HCG"), "RSS": ("HRCF", ("HRCF", "without RSS"))}
    frame = compare.differences(outcomes, pairs.values())
    shown = compare.labelled(frame, pairs, "test", "mAP", {"RSS": 0.5})
    assert shown["label"].tolist() == ["HCG", "RSS"] * 2 and shown["group"].tolist() == ["ZSL"] * 2 + ["GZSL"] * 2
    assert shown["paper"].tolist()[1] == 0.5 and shown["paper"].isna().sum() == 3, "the paper's is ZSL"
    nothing = compare.labelled(frame, {}, "test", "mAP")
    assert nothing.empty and set(nothing) == set(shown) and compare.said(frame, {}) == ""
    by_task = compare.labelled(frame, pairs, "test", "mAP", {("HCG", "GZSL"): 2.0})["paper"]
    assert by_task.tolist()[2] == 2.0 and by_task.isna().sum() == 3
    rss = frame[frame["against_setting"].eq("without RSS") & frame["task"].eq("GZSL") & frame["metric"].eq("mAP")]
    assert shown["difference"].tolist()[3] == rss["difference"].item()


def test_a_summary_is_mean_and_spread_over_seeds(done):
    _, outcomes = done
    frame = compare.table(outcomes)
    text = compare.summary(frame, "test", ("F1@2", "mAP"))
    assert text.columns.tolist() == [(task, m) for task in ("ZSL", "GZSL") for m in ("F1@2", "mAP")]
    assert text.index.tolist() == [(v, s) for v in ("HRCF", "without HCG") for s in SETTINGS]
    own = frame.query("variant == 'HRCF' and setting == 'uniform' and split == 'test' and task == 'GZSL'")["mAP"]
    assert text.loc[("HRCF", "uniform"), ("GZSL", "mAP")] == f"{own.mean():.1f} ± {own.std():.1f}"


def test_runs_that_differ_at_test_time_share_a_training(feats, tmp_path):
    """Another lambda at test time has a record of its own; the checkpoint is that of the run as its preset tests it."""
    first = studies.run(config(), feats, tmp_path, resamples=5)
    other = studies.run(config(lam_at_test=1.0, rss=False), feats, tmp_path, resamples=5)
    assert other.folder != first.folder and not (other.folder / "checkpoint.pt").exists()
    assert other.about["config"]["lam_at_test"] == 1.0 and other.about["training"] == first.about["training"]
    there = runs.score_settings(
        studies.trained(config(), feats, tmp_path).under(config(lam_at_test=1.0, rss=False)), feats, {"": {}}
    )
    pd.testing.assert_frame_equal(other.table[there[0].columns], there[0], check_dtype=False)
    assert runs.weights_config(config(lam=0.75)) == config(lam=0.75), "lambda of training makes other weights"
