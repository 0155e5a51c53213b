"""The dry run: generated downloads, stages that may fail, the count of operations, and the command as a whole."""

import dataclasses
import json
import os

import pandas as pd
import pytest

from hrcf_lib import config
from hrcf_lib.data import load, table_format
from hrcf_lib.data.official import checks, nus_wide, open_images
from hrcf_lib.speed import cost, dry_run, generated
from hrcf_lib.speed.dry_run import Plan
from hrcf_lib.speed.generated import Size

SMALL = Size(300, 200, 2_000, 1_400, 1_400, pictures=3)

# Generated downloads ------------------------------------------------------------------------------------------------


def test_a_generated_nus_wide_is_prepared_with_the_right_counts(tmp_path):
    source = generated.nus_wide(tmp_path / "download", SMALL)
    out = nus_wide.prepare(source, tmp_path / "out", images=False)
    about = table_format.read_about(out)
    assert {name: c["rows"] for name, c in about["splits"].items()} == {"train": 300, "test": 200}
    assert not about["problems"] and not about["notes"]  # every file is there, folder zebra shows zebras
    positives, negatives = load(out).label_counts()
    assert (positives + negatives == 500).all()  # no label of NUS-WIDE is unknown
    assert positives[925:].sum() / 500 == pytest.approx(generated.CONCEPTS, abs=0.3)
    assert positives[:925].sum() / 500 == pytest.approx(generated.TAGS * 0.925, abs=0.8)


def test_generated_open_images_are_prepared_with_the_right_counts(tmp_path):
    source = generated.open_images(tmp_path / "download", SMALL)
    rows = (source / "train-annotations-human-imagelabels.csv").read_text().splitlines()
    assert len(rows) == 1 + 2_000
    out = open_images.prepare(source, tmp_path / "out", images=False)
    about = table_format.read_about(out)
    expected = {name: int(getattr(SMALL, f"open_{name}") / n) for name, n in generated.LABELS.items()}
    assert {name: c["rows"] for name, c in about["splits"].items()} == expected
    assert not about["problems"]  # every row can be read, every mid is known
    train = about["splits"]["train"]
    assert train["positives"] / (train["positives"] + train["negatives"]) == pytest.approx(0.48, abs=0.05)


@pytest.mark.parametrize("dataset", list(dry_run.READERS))
def test_the_first_pictures_of_each_split_exist(tmp_path, dataset):
    plan = Plan(str(tmp_path), size=SMALL)
    dry_run.generate(plan, dataset)
    dry_run.prepare(plan, dataset)
    for split in ("train", "test"):
        pictures = dry_run._first(plan, dataset, split, 3, side=112)
        assert [tuple(pictures[i][0].shape) for i in range(3)] == [(3, 112, 112)] * 3
        with pytest.raises(ValueError, match="4 pictures are needed, 3 exist: take fewer steps"):
            dry_run._first(plan, dataset, split, 4, side=112)


def test_equal_seeds_give_equal_trees_and_a_tree_is_used_again(tmp_path):
    paths = []
    for name in "ab":
        generated.nus_wide(tmp_path / name, SMALL)
        paths.append(sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()))
    for a, b in zip(*paths, strict=True):
        assert a.read_bytes() == b.read_bytes()
    before = (tmp_path / "a" / "generated.json").stat().st_mtime_ns
    generated.nus_wide(tmp_path / "a", SMALL)
    assert (tmp_path / "a" / "generated.json").stat().st_mtime_ns == before
    generated.nus_wide(tmp_path / "a", dataclasses.replace(SMALL, nus_train=301))
    assert len(checks.lines(tmp_path / "a" / "ImageList" / "TrainImagelist.txt")) == 301


def test_a_generated_tree_takes_no_other_folders_place(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(FileExistsError, match="holds something other than a generated tree; choose another folder"):
        generated.nus_wide(tmp_path / "mine", SMALL)


def test_the_default_size_is_the_published_one():
    size = Size()
    assert {"train": size.nus_train, "test": size.nus_test} == nus_wide.IMAGES
    assert (size.open_train, size.open_val, size.open_test) == (27_894_289, 551_390, 1_667_399)


@pytest.mark.parametrize(
    "changes, message",
    [({"nus_test": 5}, "nus_test = 5: choose at least 100"), ({"pictures": 250}, "a split has fewer rows")],
)
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


# Stages -------------------------------------------------------------------------------------------------------------


def fails(plan, dataset):
    raise ValueError(f"no {dataset} today")


def dies(plan, dataset):
    os._exit(9)


def holds(plan, dataset):
    return {"note": f"{len(bytearray(300_000_000)):,} bytes"}


def nothing(plan, dataset):
    return {"note": "nothing"}


@pytest.mark.slow
def test_a_failing_stage_is_reported_by_name_and_the_others_go_on(tmp_path, monkeypatch):
    stages = {"fails": fails, "dies": dies, "works": nothing}
    monkeypatch.setattr(dry_run, "STAGES", stages)
    said = []
    record = dry_run.dry_run(Plan(str(tmp_path), mini=True), ["nus_wide"], show=said.append)
    rows = {row["stage"]: row for row in record["stages"]}
    assert list(rows) == [f"nus_wide: {name}" for name in stages]
    assert rows["nus_wide: fails"]["error"] == "ValueError: no nus_wide today"
    assert "killed; most likely there was too little memory" in rows["nus_wide: dies"]["error"]
    assert rows["nus_wide: works"]["error"] is None and rows["nus_wide: works"]["note"] == "nothing"
    assert said[0].startswith("nus_wide: fails") and "FAILED" in said[0] and said[0].endswith("no nus_wide today")


def test_a_stages_peak_is_its_own():
    before, large, after = (dry_run.run_stage("", stage, None, None)["peak_gb"] for stage in (nothing, holds, nothing))
    assert large - before == pytest.approx(0.3, abs=0.1)
    assert after - before == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"datasets": ["nuswide"]}, "unknown data set 'nuswide'; did you mean 'nus_wide'"),
        ({"plan": Plan("x", steps=0)}, "steps = 0, .* must be above 0"),
        ({"tflops": 0}, "tflops = 0, .* must be above 0"),
    ],
)
def test_wrong_arguments_are_refused_before_the_work(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        dry_run.dry_run(**{"plan": Plan(str(tmp_path / "new")), "datasets": ["nus_wide"]} | changes)
    assert not (tmp_path / "new").exists()


def test_the_command_refuses_in_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        dry_run.main(["--datasets", "coco"])
    assert capsys.readouterr().err.startswith("unknown data set 'coco'; ")


# The budget ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    """ViT-B/16, two pictures, five labels of one token each: every prompt has 1 + 8 + 3 + 1 + 2 tokens."""
    return cost.flops(config.PRESETS["nus_wide"](), ["cat", "dog", "bus", "sun", "tree"], 2)


def test_the_count_of_operations_is_that_made_by_hand_for_vit_b_16(parts):
    T, C, D, J, K = 1 + 14**2, 768, 512, 140, 5
    block = 2 * T * 12 * C**2 + 2 * 2 * T**2 * C  # weights: 4 C^2 of attention, 8 C^2 of the perceptron
    patches = 2 * 196 * C * 3 * 16**2
    assert parts["trunk"] == patches + 11 * block
    assert parts["teacher"] == block + 2 * C * D
    convolutions = 2 * 9 * C**2 * sum(side**2 for side in (12, 10, 8, 6, 4, 2))
    heads = 2 * (1 + J) * C * D
    assert parts["student"] == block + convolutions + heads
    assert parts["student backward"] == pytest.approx(2 * parts["student"], rel=0.01)
    assert parts["scores"] == 2 * (1 + J) * D * K

    def text(rows, S, before):
        width = 512
        return 12 * (2 * rows * S * 12 * width**2 + 2 * 2 * rows * S * (before + S) * width)

    assert parts["label embeddings"] == text(1, 12, 0) + text(5, 3, 12) + 2 * 5 * 512 * 512


def test_a_step_costs_what_the_design_says(parts):
    image, _ = cost.per_step(parts, "hcg", 1)
    cached = parts["student"] + parts["student backward"]
    assert [round(x / 1e9) for x in (cached, image, image + parts["trunk"])] == [21, 56, 88]


@pytest.mark.slow
def test_hours_follow_from_steps_and_throughput_or_from_measured_seconds():
    settings = config.PRESETS["nus_wide"]().replace(vlp="hrcf-mini", vlp_weights=None)
    names = ["cat", "dog", "bus"]
    parts = cost.flops(settings, names, 64)
    table = cost.budget(settings, names, tflops=60, tflops_f32=10).set_index("side")
    assert table.loc["hcg", "steps"] == 50 * 2528 and table.loc["prompts", "steps"] == 4 * 10_112
    image = table.loc["hcg", "bf16 TFLOP a step"]
    assert image == 64 * sum(parts[name] for name in ("trunk", "teacher", "student", "student backward")) / 1e12
    expected = 50 * 2528 * (image / 60 + table.loc["hcg", "f32 TFLOP a step"] / 10) / 3600
    assert table.loc["hcg", "hours"] == pytest.approx(expected)
    assert table.loc["all", "hours"] == pytest.approx(table["hours"][["hcg", "prompts"]].sum())
    assert "estimate at 60 and 10" in table.loc["hcg", "basis"]
    measured = cost.budget(settings, names, measured={"hcg": 0.5}).set_index("side")
    assert measured.loc["hcg", "hours"] == pytest.approx(50 * 2528 * 0.5 / 3600)
    assert [measured.loc[side, "basis"][:8] for side in ("hcg", "prompts")] == ["measured", "estimate"]
    with pytest.raises(ValueError, match="no number of training pictures for 'coco'"):
        cost.budget(settings.replace(dataset="coco"), names)


# The whole ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dry_run_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    words = ["--datasets", "nus_wide", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    assert dry_run.main(words) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    rows = pd.DataFrame(record["stages"]).set_index("stage")
    assert list(rows.index) == [f"nus_wide: {title}" for title in dry_run.STAGES]
    assert list(rows.columns) == dry_run.COLUMNS[1:]
    assert (rows["seconds"] >= 0).all() and (rows["peak_gb"] > 0.1).all() and rows["error"].isna().all()
    units = rows["unit"].dropna()
    assert set(units) == {"s a step", "pictures a second"} and (rows.loc[units.index, "each"] > 0).all()
    assert rows.loc["nus_wide: train prompts", "note"].startswith("2 steps of 16 pictures, 925 labels")
    hours = pd.DataFrame(record["budget"])
    assert list(hours["side"]) == ["hcg", "prompts", "all"] and (hours["hours"] > 0).all()
    assert record["device"] and record["versions"]["torch"] and record["plan"]["size"]["nus_train"] == 400
    printed = capsys.readouterr().out
    assert all(title in printed for title in rows.index) and "Whole training on one GPU" in printed
    assert (tmp_path / "work" / "nus_wide" / "about.json").is_file()  # a folder that was asked for stays
