"""Lines of Fig. 4, what val chooses on them, and turns of the two sides with as many steps."""

import pandas as pd
import pytest

from hrcf_lib import config
from hrcf_lib.studies import compare, conditions, figure4

TASKS = ("ZSL", "GZSL")


def table(maps, name="lam", by="setting", split="test"):
    """Two seeds of each value: the second one point higher."""
    rows = [
        {"variant": "HRCF", "setting": "", "seed": seed, "split": split, "task": task, "mAP": value + seed}
        | {by: f"{name} = {at:g}"}
        for at, value in maps.items()
        for seed in (0, 1)
        for task in TASKS
    ]
    return pd.DataFrame(rows)


def test_changes_are_of_the_type_of_their_field_so_that_0_and_0_point_0_are_one_run():
    (found,) = figure4.changes("lam", [0]).values()
    assert found == {"lam": 0.0} and isinstance(found["lam"], float)
    (found,) = figure4.changes("keep", [140.0]).values()
    assert isinstance(found["keep"], int)
    assert figure4.changes("printed lam", [1], normalize_at_test=False) == {
        "printed lam = 1": {"lam": 1.0, "normalize_at_test": False}
    }


def test_a_line_has_its_own_rows_and_no_others():
    frame = pd.concat([table({0: 10, 0.25: 20}), table({0.25: 30}, "printed lam"), table({108: 40}, "keep")])
    assert figure4.line(frame, "lam")["value"].tolist() == [0.0] * 4 + [0.25] * 4
    assert set(figure4.line(frame, "printed lam")["mAP"]) == {30, 31}
    trained = table({4: 1}, "M", by="variant")
    assert set(figure4.line(trained, "M", "variant")["value"]) == {4}
    with pytest.raises(ValueError, match="no variant 'M' = ...: the table has HRCF"):
        figure4.line(frame, "M", "variant")


def test_val_chooses_and_test_is_not_read():
    frame = pd.concat([table({0: 9, 1: 1}), table({0: 1, 1: 2}, split="val")])
    line = figure4.line(frame, "lam")
    assert figure4.chosen(line, TASKS) == 1
    line.loc[line["split"].eq("val") & line["value"].eq(0) & line["task"].eq("ZSL"), "mAP"] = 99
    assert figure4.chosen(line, TASKS) == 0 and figure4.chosen(line, ("GZSL",)) == 1


def test_pairs_name_settings_of_a_variant_or_variants():
    assert figure4.against("lam", 0.25, [0, 0.25, 1], "HRCF") == {
        "λ = 0.25 against 0 (at test)": (("HRCF", "lam = 0.25"), ("HRCF", "lam = 0")),
        "λ = 0.25 against 1 (at test)": (("HRCF", "lam = 0.25"), ("HRCF", "lam = 1")),
    }
    assert list(figure4.against("printed lam", 1, [0], "HRCF")) == ["λ = 1 against 0 (at test, Eq. 14 as printed)"]


def test_the_pairs_are_those_that_the_report_looks_for():
    wanted = compare.published_pairs("hrcf_effects", "09_hyperparameters", ["HRCF", "lam = 0.25", "lam = 0", "lam = 1"])
    ours = figure4.against("lam", 0.25, [0, 1]) | figure4.against("lam", 0.25, [0, 1], "HRCF")
    ours |= figure4.against("keep", 108, [140, 20], "HRCF")
    named = {tuple(map(compare.named, pair)) for pair in ours.values()}
    assert set(wanted[0].values()) == named


def test_means_are_over_seeds():
    lines = {"a": figure4.line(table({0: 10, 0.25: 20}), "lam")}
    found = figure4.means(lines)
    assert found.loc[("a", 0.25), ("test", "GZSL", "mAP")] == 20.5


def test_turns_have_as_many_steps_as_the_preset_or_twice_as_many():
    short = config.preset("mini_short").replace(phases=config.alternate(1, 1, 2, 32, 64), train_size=4000)
    turns, longer = figure4.schedules(short)
    steps = {name: conditions.image_steps(short.replace(**changes)) for name, changes in (turns | longer).items()}
    assert set(steps[n] for n in turns) == {250} and set(steps[n] for n in longer) == {500}
    sides = lambda name: [p.trains for p in short.replace(**(turns | longer)[name]).phases]
    assert sides("alternating") == ["hcg", "prompts", "hcg"] and sides("both at once") == ["both"]
    assert sides("three alternations, longer") == ["hcg", "prompts"] * 3 + ["hcg"]
    prompts = [sum(p.epochs for p in c["phases"] if p.trains == "prompts") for c in longer.values()]
    assert prompts == [3, 3]
    assert {name for pair in figure4.TURNS.values() for name in pair} == {*turns, *longer}
