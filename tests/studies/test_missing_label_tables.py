"""Tables and figures over the share of known labels."""

import doctest
import json

import numpy as np
import pandas as pd
import pytest
import torch

import hrcf_lib.methods.missing_labels
import hrcf_lib.metrics
from hrcf_lib import config as configs
from hrcf_lib import figures as plain
from hrcf_lib import studies
from hrcf_lib.figures import missing_labels
from hrcf_lib.studies import compare, records
from hrcf_lib.studies import missing_labels as quality


def frame(seeds=(0, 1, 2), methods=("CoOp", "HRCF"), shares=(0.1, 0.5)) -> pd.DataFrame:
    """As ``compare.table`` gives it: mAP is 10 (method's place) + 100 p + seed; of val it is 0."""
    rows = []
    for split in ("val", "test"):
        for m, name in enumerate(methods):
            for p in shares:
                for seed in seeds:
                    value = (10 * m + 100 * p + seed) if split == "test" else 0.0
                    rows.append(
                        {"variant": f"{name} @ {p:g}", "seed": seed, "setting": "", "split": split, "mAP": value}
                    )
    return pd.DataFrame(rows).assign(task="seen")


def test_variants_differ_in_what_is_known_alone():
    found = quality.variants({"HRCF": configs.mini()}, (0.1, 0.5))
    assert [c.known for c in found.values()] == [0.1, 0.5]
    assert found["HRCF @ 0.5"].replace(known=1.0) == configs.mini()
    assert len(quality.variants({"a": configs.mini(), "b": configs.mini()})) == 18


def test_methods_of_the_comparison_by_title():
    base, names = configs.mini().replace(known=0.1), ["owl", "bus"]
    found = quality.methods(base, names)
    assert [c.method for c in found.values()] == ["asl", "asl", "coop", "dual_coop", "semantic_aware", "trm_ml", "hrcf"]
    assert [getattr(c, "unknown", "") for c in found.values()] == ["negative", *["ignored"] * 5, ""]
    assert all(c.known == 0.1 and getattr(c, "categories", ("owl", "bus")) == ("owl", "bus") for c in found.values())
    single = quality.methods(configs.mini(), names, single=True)
    assert all(c.single_positive for c in single.values())
    assert {title for title, c in single.items() if getattr(c, "unknown", "") == "ignored"} == {"ASL"}


def test_every_method_gets_the_same_small_search(monkeypatch):
    """Of its rate: what its config has among values three times apart. What is chosen is what all its titles get."""
    asked = []
    monkeypatch.setattr(quality.runs, "search", lambda *words: asked.append(words) or ({"found": len(asked)}, None))
    base, names = configs.mini_short().replace(known=0.1), ["owl", "bus"]
    found = quality.searched(base, names, "feats", "folder")
    assert list(found) == list(dict.fromkeys(quality.METHODS.values())) and found["trm_ml"] == ({"found": 5}, None)
    for config, grid, *words in asked:
        ((field, rates),) = grid.items()
        assert getattr(config, field) in rates and len(rates) >= 3 and config.known == 0.1
        assert [more / less for less, more in zip(rates, rates[1:])] == pytest.approx([3] * (len(rates) - 1), rel=0.2)
        assert words == ["feats", "folder"] and getattr(config, "categories", ("owl", "bus")) == ("owl", "bus")
    chosen = quality.methods(base, names, chosen={"asl": {"prompt_lr": 0.5}})
    assert {title for title, c in chosen.items() if c.prompt_lr == 0.5} == {"ASL, unknown absent", "ASL"}


def test_each_part_is_taken_out_by_settings_that_the_method_has():
    whole = quality.methods(configs.mini(), ["owl", "bus"])
    for title, own in quality.parts().items():
        made = {name: whole[title].replace(**changes) for name, changes in own.items()}
        assert len({json.dumps(c.to_dict()) for c in [*made.values(), whole[title]]}) == len(made) + 1


def test_differences_are_of_tasks_that_both_methods_were_asked():
    values = {(split, task): torch.rand(5) for split in ("test", "test-line") for task in ("ZSL", "seen")}
    both = {("", *key, "mAP"): value for key, value in values.items()}
    seen = {key: value + 0.1 for key, value in both.items() if key[2] == "seen"}
    outcome = lambda resampled: studies.Outcome(pd.DataFrame(), resampled, {}, None)
    outcomes = {("HRCF", 0): outcome(both), ("CoOp", 0): outcome(seen)}
    frame = compare.differences(outcomes, [("HRCF", "CoOp"), ("CoOp", "HRCF")], ("mAP",))
    assert set(frame["task"]) == {"seen"} and len(frame) == 4
    np.testing.assert_allclose(frame["difference"], [-10, -10, 10, 10], atol=1e-4)


def test_a_row_says_method_and_share():
    rows = quality.over_known(frame())
    assert len(rows) == 12 and set(rows["known"]) == {0.1, 0.5} and set(rows["method"]) == {"CoOp", "HRCF"}
    one = rows[rows["method"].eq("HRCF") & rows["known"].eq(0.5) & rows["seed"].eq(1)]
    assert one["mAP"].tolist() == [61.0]
    assert (quality.over_known(frame(), split="val")["mAP"] == 0).all()


def test_averages_are_of_each_seed_and_spreads_over_seeds():
    table = quality.by_share(quality.over_known(frame()))
    assert list(table.columns) == [0.1, 0.5, "avg"] and list(table.index) == ["CoOp", "HRCF"]
    assert table.loc["CoOp"].tolist() == ["11.0 ± 1.0", "51.0 ± 1.0", "31.0 ± 1.0"]
    alone = quality.by_share(quality.over_known(frame(seeds=(0,))))
    assert alone.loc["HRCF"].tolist() == [20.0, 60.0, 40.0], "one seed has no spread"


def test_what_would_not_compare_is_refused():
    rows = quality.over_known(frame())
    for part in (rows.drop(rows.index[[0, 1, 2]]), rows.drop(rows.index[[0, 3]])):
        with pytest.raises(ValueError, match="'CoOp' has not been run at every p and seed of the others"):
            quality.by_share(part)
    with pytest.raises(ValueError, match="no rows of split 'tset'; did you mean 'test'"):
        quality.over_known(frame(), split="tset")
    with pytest.raises(ValueError, match="no column 'OF1'"):
        quality.by_share(rows, "OF1")
    odd = frame().replace("HRCF @ 0.5", "HRCF")
    with pytest.raises(ValueError, match=r"variant 'HRCF' does not say its p: name it as variants\(\) does"):
        quality.over_known(odd)


def test_published_numbers_stay_as_printed():
    printed = quality.published(records.published("partial_labels_map"))
    one = printed.query("source == 'TRM-ML' and dataset == 'VOC 2007' and method == 'TRM-ML' and known == 0.3")
    assert one["mAP"].tolist() == [94.9] and len(printed) == 17 * 9
    ablation = quality.published(records.published("semanticaware_table4_ablation"))
    assert set(ablation["known"]) == {0.1, 0.3, 0.5, 0.7, 0.9} and "source" not in ablation


def test_our_numbers_and_printed_ones_are_in_panels_of_their_own():
    printed = quality.published(records.published("partial_labels_map").query("source == 'SemanticAware'"))
    figure = missing_labels.over_known(quality.over_known(frame()), printed)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["measured: MojiScenes", "printed: MS-COCO", "printed: VOC 2007"]
    ours = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    assert ours == {"CoOp": [11.0, 51.0], "HRCF": [21.0, 61.0]}
    assert figure.axes[1].lines[0].get_ydata()[0] == 70.6
    assert all(line.get_markerfacecolor() == "white" for axis in figure.axes[1:] for line in axis.lines)
    assert len(missing_labels.over_known(quality.over_known(frame())).axes) == 1
    plain.plt.close("all")


def test_pseudo_labels_over_epochs():
    about = [{"epoch": e, "known": p, "kind": kind} for e in (1, 2, 3) for p in (0.1, 0.5) for kind in quality.KINDS]
    worth = lambda row: (0.1 * row["epoch"] + row["known"]) / (1 if row["kind"] == "present" else 2)
    rows = [row | {"precision": worth(row), "share": worth(row) / 2, "chance": 0.02} for row in about]
    figure = missing_labels.pseudo_labels(pd.DataFrame(rows).sample(frac=1, random_state=3))
    drawn = lambda axis: [line.get_ydata() for line in axis.lines if line.get_ls() == "-" or line.get_ls() == "--"]
    np.testing.assert_allclose(drawn(figure.axes[0]), [[20, 30, 40], [60, 70, 80]])
    np.testing.assert_allclose(drawn(figure.axes[3]), [[5, 7.5, 10], [15, 17.5, 20]])
    dotted = [sum(line.get_ls() == ":" and len(line.get_xdata()) > 0 for line in axis.lines) for axis in figure.axes]
    assert dotted == [2, 2, 0, 0], "chance, where something is right"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["p = 0.1", "p = 0.5", missing_labels.AT_RANDOM]
    with pytest.raises(ValueError, match="pseudo_labels: the frame has no column 'share'"):
        missing_labels.pseudo_labels(pd.DataFrame(rows).drop(columns="share"))
    plain.plt.close("all")


def test_doctests():
    for module in (quality, hrcf_lib.methods.missing_labels, hrcf_lib.metrics):
        assert doctest.testmod(module).failed == 0
