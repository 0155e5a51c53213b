"""The report: directions only where intervals allow them, numbers of the records and of no other data, one file."""

import functools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import report_records as made

from hrcf_lib import report
from hrcf_lib.report import __main__, claims, costs, effects, export, missing_labels, overview, tables
from hrcf_lib.report.records import METRICS, MINI, NUS, Missing, Records, printed
from hrcf_lib.studies.records import REPOSITORY, published, read_record
from hrcf_lib.studies.records import record as write_record

OURS, DIRECTION = f"ours ({MINI})", f"direction ({MINI})"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Records of notebooks 04 and 06-10 on MojiScenes, and of 06 and 08 on NUS-WIDE."""
    path = tmp_path_factory.mktemp("records")
    made.write(path / "mini")
    made.write_trained(path / "mini")
    shutil.copy(REPOSITORY / "notebooks" / "records" / "10_parameters_and_speed.json", path / "mini")
    for name in ("06_ablation_hcg_rsa_rss", "08_ablation_distillation"):
        made.write(path / "nus" / name / "records", "nus_wide", 60.0, [name])
    return path


@pytest.fixture(scope="module")
def full(folder) -> report.Report:
    return made_once(folder)


def made_once(folder: Path) -> report.Report:
    """The report on both data sets; its tables are computed once for all tests."""
    found = report.Report(folder / "mini", folder / "nus")
    found.tables = functools.cache(found.tables)
    return found


@pytest.fixture
def empty(tmp_path) -> Records:
    return Records(tmp_path)


def rows(frame: pd.DataFrame, **where) -> pd.DataFrame:
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


# -- directions


@pytest.mark.parametrize(
    ("sign", "low", "high", "expected"),
    [
        (1, 0.1, 2.0, "agrees"),
        (1, -2.0, -0.1, "opposite"),
        (-1, -2.0, -0.1, "agrees"),
        (-1, 0.1, 2.0, "opposite"),
        (1, -0.1, 2.0, "open"),
        (1, 0.0, 2.0, "open"),
        (1, -np.inf, np.inf, "open"),
        (0, 0.1, 2.0, effects.NONE),
        (1, np.nan, np.nan, "not measured"),
    ],
)
def test_direction(sign, low, high, expected):
    assert effects.direction(sign, low, high) == expected


def test_the_papers_differences_are_those_of_its_tables():
    planned = {(e.item, e.label, e.task, e.metric): e for e in effects.planned()}
    assert planned["Table II", "RSS added", "ZSL", "mAP"].paper == pytest.approx(45.8 - 45.3)
    assert planned["Table IV", "distillation", "GZSL", "mAP"].paper == pytest.approx(22.7 - 19.0)
    fixed = planned["Table III", "hybrid against fixed prompt", "ZSL", "mAP"]
    assert fixed.paper == pytest.approx(-0.1) and fixed.sign == 0, "within the rounding of the print"
    assert planned["Table I", "HRCF against MKT", "ZSL", "mAP"].paper == pytest.approx(8.2)
    assert planned["Fig. 4(b)", "108 regions kept against 140", "GZSL", "mAP"].dataset == "Open Images"
    assert len(planned) == len(effects.planned()) == 93
    assert planned["Table II", "HCG added", "ZSL", "F1@3"].paper == pytest.approx(2.5), "ten times what mAP shows"
    assert planned["Table I", "HRCF against CLIP-BiAM", "ZSL", "mAP"].paper == pytest.approx(45.8 - 29.5)
    assert planned["Table I", "HRCF against OVML-VLP", "ZSL", "F1@3"].sign == -1, "second best in print"


def test_directions_of_made_up_records(full):
    frame = full.effects[MINI].query("paper == 'HRCF'").set_index(["item", "label", "task", "metric"])["direction"]
    assert frame["Table II", "HCG added", "ZSL", "mAP"] == "open"
    assert frame["Table II", "RSA added", "ZSL", "mAP"] == "agrees"
    assert frame["Table II", "RSS added", "ZSL", "mAP"] == "opposite"
    assert frame["Table III", "hybrid against fixed prompt", "ZSL", "mAP"] == effects.NONE
    assert frame["Table V", "HRCF against the plain VLP", "GZSL", "mAP"] == "agrees"
    assert frame["Table I", "HRCF against MKT", "ZSL", "mAP"] == "not measured"
    summary = full.summary("HRCF")[OURS]
    assert (
        summary.loc["all, mAP"].sum() == 36
        and frame["Table I", "HRCF against LESA (M=10)", "ZSL", "mAP"] == "not comparable"
    )
    counted = full.counts().query("ours == @NUS and paper == 'HRCF'")
    assert len(counted) == len(summary) and full.summary()[OURS].loc["HRCF"].equals(summary.loc["all"])
    assert summary.loc["all"].tolist() == summary.filter(like="all, ", axis=0).sum().tolist()
    f1 = {metric: frame["Table II", "HCG added", "ZSL", metric] for metric in ("F1@3", "F1@5")}
    assert f1 == {"F1@3": "open", "F1@5": "opposite"}, "F1@5 by seeds: the record has no interval of it"


def test_either_of_a_pair_may_come_first(folder):
    records = Records(folder / "mini")
    effect = effects.Effect("09_hyperparameters", *made.LAM, "HRCF", "lam = 0.5", direction=1)
    found = effects.measure(effect, records)
    assert [found[k] for k in ("difference", "low", "high", "direction")] == [-2.0, -3.0, -1.0, "opposite"]


@pytest.mark.parametrize(
    ("differences", "expected"), [((1, 2), "agrees"), ((1, -1), "open"), ((-1, -2), "opposite"), ((5,), "open")]
)
def test_without_intervals_every_seed_must_be_on_one_side(tmp_path, differences, expected):
    made.write_trained(tmp_path, differences)
    (effect,) = (e for e in effects.of_item("Table V") if (e.task, e.metric) == ("ZSL", "mAP"))
    found = effects.measure(replace(effect, interval="seeds"), Records(tmp_path))
    assert found["direction"] == expected and found["difference"] == pytest.approx(np.mean(differences))
    assert "seed" in found["basis"]


# -- what is not there


def test_a_missing_record_is_named_with_its_notebook(empty):
    assert effects.frame(empty)["direction"].isin(["not measured", "not comparable"]).all()
    frame = tables.beside("Table II", [empty])
    assert frame.filter(like="ours").iloc[0, 0] == "notebook 06 makes it"
    assert costs.times([empty]).filter(like="ours").iloc[2, 0] == "notebook 10 makes it"
    assert claims.claims([empty])[OURS].str.contains("notebook 0[59]|ViT-B/16|Open Images|word vectors").all()
    made_by = overview.overview("HRCF", [empty]).set_index("of the paper")
    assert (
        made_by.loc["Fig. 6", OURS] == "notebook 11: its pictures" and made_by.loc["Fig. 6", DIRECTION] == "to look at"
    )
    assert made_by.loc["Table II", OURS] == "not measured yet: notebook 06 makes it"
    assert made_by.loc["Fig. 3", OURS] == "not measured yet: notebook 05 makes it"
    assert made_by.loc["Table VI", OURS] == "not measured yet: notebook 10 makes it"


def test_a_record_without_its_table_says_so(tmp_path):
    write_record("06_ablation_hcg_rsa_rss", {}, {}, 1.0, "p", tmp_path, config={"name": "mini"})
    found = effects.measure(next(e for e in effects.planned() if e.item == "Table II"), Records(tmp_path))
    assert found["direction"] == "not measured" and found["basis"] == "the record of notebook 06 has no 'differences'"


def test_the_report_runs_with_what_is_stored(monkeypatch):
    monkeypatch.delenv("HRCF_SIZE", raising=False)
    found = report.Report()
    assert "No records of NUS-WIDE" in found.about()
    for frame in found.tables().values():
        assert not frame.columns.str.contains("ours.*NUS-WIDE").any(), "no such column without such records"
        assert not frame.isna().any().any()
    assert len(found.summary()) == len(effects.PAPERS) + 1 + len(effects.SHOWN)


def test_missing_labels_beside_their_papers(tmp_path):
    def row(variant, seed, value):
        own = {"variant": variant, "setting": "", "seed": seed, "split": "test", "task": "seen"}
        return own | dict.fromkeys(METRICS, value)

    runs = [row("TRM-ML @ 0.1", seed, 20.0 + seed) for seed in (0, 1)] + [row("TRM-ML @ 0.5", 0, 30.0)]
    runs += [row("DualCoOp @ 0.1", 0, 21.0), row("DualCoOp @ 0.1", 1, 22.5), row("ASL @ 0.1", 0, 5.0)]
    difference = dict(zip(effects.COLUMNS, ("Semantic-aware: w/csp", "", "Semantic-aware", "", "test", "seen", "mAP")))
    difference |= {"difference": 2.0, "low": 1.0, "high": 3.0}
    other = dict(zip(effects.COLUMNS, ("TRM-ML @ 0.1", "", "DualCoOp @ 0.1", "", "test", "seen", "mAP")))
    other |= {"difference": -1.25, "low": -1.5, "high": -1.0}
    kept = {"runs": pd.DataFrame(runs), "differences": pd.DataFrame([difference, other])}
    write_record("13_partial_labels", {}, kept, 1.0, "p", tmp_path, config={"name": "mini_short"})
    records = [Records(tmp_path)]
    ours = missing_labels.over_known(records).set_index("method").filter(like="ours").iloc[:, 0]
    assert (
        ours["TRM-ML"] == "20.5 / 30.0 / –, 25.2 over 2" and ours["HRCF"] == "the record of notebook 13 has no 'HRCF'"
    )
    paper = missing_labels.over_known(records).set_index("method").filter(like="MS-COCO").iloc[:, 0]
    assert paper["TRM-ML"] == "83.3 / 85.6 / 86.5, 85.4 over 9" and paper["ASL"] == ""
    trm, semantic = (
        effects.table(effects.planned(paper), records).set_index("effect") for paper in ("TRM-ML", "semantic-aware")
    )
    assert semantic.loc["decoupling", DIRECTION] == "opposite" and semantic.loc["decoupling", OURS][:4] == "−2.0"
    assert trm.loc["TRM-ML against DualCoOp, 10 % known", DIRECTION] == "opposite"
    assert trm.loc["TRM-ML against DualCoOp, 10 % known", "the paper (data in brackets)"] == "+4.6 (MS-COCO)"
    assert trm.loc["text prototypes alone", "the paper (data in brackets)"] == "+1.05 (VOC 2007)"
    assert semantic.loc["prompts of each category's own", DIRECTION] == "not measured"
    single = missing_labels.single_positive(records).set_index("method")
    assert single.loc["HSPNet"].tolist() == ["74.8", ""] and single.loc["HRCF"].iloc[1] == "notebook 14 makes it"


def test_an_effect_that_does_not_compare_has_no_direction(main):
    """Ours may be there all the same."""
    effect = effects.Effect(
        "05_main_results", "HRCF", "", "MKT", "", printed=2, printed_against=1, not_comparable="why"
    )
    found = effects.measure(effect, main.sources[0])
    assert found["difference"] == 2.0 and found["direction"] == "not comparable"


# -- a row for every table and figure


@pytest.mark.parametrize("paper", effects.PAPERS)
def test_every_item_of_a_paper_has_its_row(full, paper):
    frame = full.tables()[f"{paper}: tables and figures"]
    entries = overview.index(paper)
    assert frame["of the paper"].tolist() == [entry["item"] for entry in entries]
    assert (frame["the paper (data in brackets)"] != "").all() and (frame[DIRECTION] != "").all()
    for entry, direction in zip(entries, frame[DIRECTION]):
        if entry["compare"] in ("picture", "no", "nothing"):
            assert direction == overview.COMPARE[entry["compare"]]


def test_an_unknown_paper_is_an_error():
    with pytest.raises(KeyError, match="MKT"):
        overview.index("MKT")


def test_rows_of_the_overview(main):
    frame = main.tables()["HRCF: tables and figures"].set_index("of the paper")
    first = frame.loc["Table I"]
    assert first["the paper (data in brackets)"] == "HRCF against OVML-VLP, ZSL mAP: +3.2 (NUS-WIDE); 53 more", (
        "those that are measured come first"
    )
    assert first[DIRECTION].endswith("24 not comparable")
    assert (
        frame.loc["Fig. 3", "the paper (data in brackets)"]
        == "unseen labels on which HRCF's AP beats MKT's: 65 of 81 (NUS-WIDE); 2 more"
    )
    assert (
        frame.loc["Fig. 3", OURS] == "2 of 4 (sign test: p = 1.000)"
        and frame.loc["Fig. 3", DIRECTION] == "1 agrees, 2 open"
    )
    others = main.tables()["BiAM: tables and figures"].set_index("of the paper")
    assert others.loc["Table 2", DIRECTION] == "not comparable" and "weighted" in others.loc["Table 2", "remark"]
    assert others.loc["Table 2", "the paper (data in brackets)"] == "12 rows of numbers"


@pytest.mark.parametrize(
    ("millions", "direction"),
    [(6.8012, "as printed"), (6.9, "not as printed"), (7.1303, "as printed, where M is 2^20"), (None, "not measured")],
)
def test_parameters_are_compared_as_numbers(tmp_path, millions, direction):
    counted = pd.DataFrame(
        {"method": ["TRM-ML"], "all": [millions]} if millions else {"method": ["CoOp"], "all": [1.0]}
    )
    write_record("13_partial_labels", {}, {"parameters": counted}, 1.0, "p", tmp_path, config={"name": "mini_short"})
    row = overview.overview("TRM-ML", [Records(tmp_path)]).set_index("of the paper").loc["Table 5"]
    assert row["the paper (data in brackets)"] == "6.80M" and row[DIRECTION] == direction
    assert row[OURS] == (
        f"{millions:.6f}M" if millions else "not measured yet: the record of notebook 13 has no row 'TRM-ML'"
    )


def test_folders_are_checked(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder of records"):
        report.Report(tmp_path, tmp_path / "nowhere")
    for name in "ab":
        made.write_trained(tmp_path / name)
    with pytest.raises(ValueError, match="both records of 04_alternate_training: name the folder of one run"):
        report.Report(tmp_path)


# -- numbers


def test_numbers_are_those_of_the_records(full, folder):
    runs = read_record("08_ablation_distillation", folder / "mini")["tables"]["runs"]
    part = rows(runs, variant="weight 0", split="test", task="GZSL")[["F1@3", "F1@5", "mAP"]]
    expected = " / ".join(f"{m:.1f} ± {s:.1f}" for m, s in zip(part.mean(), part.std()))
    table = rows(full.tables()["Table IV"], row="HRCF (w/o L_kd)", task="GZSL")
    assert table[f"{OURS}: F1@3 / F1@5 / mAP"].item() == expected
    assert table["the paper (NUS-WIDE): F1@3 / F1@5 / mAP"].item() == "21.8 / 24.9 / 19.0"
    assert table["the paper (NUS-WIDE): P@3 / R@3 / P@5 / R@5"].item() == "35.6 / 15.7 / 29.4 / 21.6"
    counted = runs.loc[part.index, ["P@3", "R@3", "P@5", "R@5"]]
    expected = " / ".join(f"{m:.1f} ± {s:.1f}" for m, s in zip(counted.mean(), counted.std()))
    assert table[f"{OURS}: P@3 / R@3 / P@5 / R@5"].item() == expected
    cost = full.tables()["Table III, cost"].set_index("prompt")
    assert cost.loc["Tuning Embedding", f"{OURS}: seconds an epoch"] == "9.5"
    assert cost["as printed"].to_dict()["Learnable Prompt"] == "no"
    assert full.tables()["Table VI"]["as printed"].tolist() == [""] * 5 + ["yes"]


def test_claims(full):
    table = full.tables()["HRCF: claims"]
    assert table["claim"].tolist() == published("hrcf_text_claims")["claim"].tolist()
    said = full.tables()["TRM-ML: claims"]
    assert said["claim"].tolist() == published("trmml_text_claims")["claim"].tolist()
    assert rows(said, where="Sec. 4.4, Table 6")[OURS].eq("notebook 13 makes it").all()
    assert rows(said, where="Sec. 4.2")[DIRECTION].eq("not comparable").all()
    best = rows(table, where="Fig. 4(a)", claim="best lambda").iloc[0]
    assert best[OURS].startswith("1 (ZSL mAP") and best[DIRECTION] == "opposite", "0.5 is better than 0.25"
    assert rows(table, where="Fig. 4(a) text").iloc[0][DIRECTION] == "open", "not held against every other value"
    assert rows(table, where="Fig. 4(b)").iloc[0][DIRECTION] == "open"
    assert rows(table, where="Fig. 4(c)").iloc[0][DIRECTION] == "agrees"
    assert claims.combine(["agrees", "not measured"]) == "open" and claims.combine([]) == "not measured"
    assert full.tables()["Fig. 4"]["value"].tolist() == ["0", "0.25", "0.5", "1", "20", "108", "140", *"48", "12", "16"]


def test_no_number_of_one_data_set_lands_in_the_column_of_another(full, main, folder):
    """Scores are 30 to 45 in the mini records and from 60 on in those of NUS-WIDE; shares of them differ too."""
    for title, frame in (*full.tables().items(), *main.tables().items()):
        for column in frame.columns[frame.columns.str.startswith("ours")]:
            for text in frame[column] if "F1@3" in column else ():
                for value in map(float, re.findall(r"([\d.]+) ±", text)):
                    assert (value >= 60) == (NUS in column), (title, column, text)
    assert full.effects[NUS].query("item == 'Table V'")["direction"].eq("not measured").all()
    mini_only = Records(folder / "mini", NUS)
    with pytest.raises(Missing, match="notebook 06 makes it .there is one of preset 'mini'."):
        mini_only.record("06_ablation_hcg_rsa_rss")
    with pytest.raises(Missing, match="without a preset"):
        mini_only.record("10_parameters_and_speed")
    with pytest.raises(Missing, match="preset 'nus_wide'"):
        Records(folder / "nus", MINI).record("06_ablation_hcg_rsa_rss")


# -- methods side by side: notebook 05


@pytest.fixture(scope="module")
def main(tmp_path_factory) -> report.Report:
    """Records of notebooks 04, 05 and 20 on MojiScenes, and of 05 on NUS-WIDE."""
    path = tmp_path_factory.mktemp("main")
    made.write_trained(path / "mini")
    made.write_fine_tuned(path / "mini")
    made.write_main(path / "mini")
    made.write_main(path / "nus", preset="nus_wide", base=60.0, gains=(-11.0, -12.0, 0.5))
    return made_once(path)


def test_other_methods_of_table_1_are_those_of_the_record(main):
    folder = main.sources[0].folder
    runs, tuned = (read_record(n, folder)["tables"]["runs"] for n in ("05_main_results", "20_fine_tuned_clip"))
    table, head = main.tables()["Table I"], f"{OURS}: F1@3 / F1@5 / mAP"
    for method in ("MKT", "OVML-VLP", "CLIP-FT", "CLIP-BiAM", "HRCF"):
        variant = {"CLIP-BiAM": "BiAM"}.get(method, method)
        own = tuned if method == "CLIP-FT" else runs  # the VLP fine-tuned has a notebook of its own
        part = rows(own, variant=variant, split="test", task="GZSL")[["F1@3", "F1@5", "mAP"]]
        expected = " / ".join(f"{m:.1f} ± {s:.1f}" for m, s in zip(part.mean(), part.std()))
        assert rows(table, row=method, task="GZSL")[head].item() == expected, method
    assert rows(table, row="BiAM")[head].eq(tables.OTHERS).all()
    assert rows(table, row="MKT", task="ZSL")[DIRECTION].item() == "+2.0 [+1.0, +3.0]: agrees"
    assert rows(table, row="OVML-VLP", task="ZSL")[DIRECTION].item() == "−2.0 [−3.0, −1.0]: opposite"
    assert rows(table, row="LESA (M=10)", task="ZSL")[head].item() == "the record of notebook 05 has no 'LESA'"
    assert main.summary("HRCF")[OURS].loc["all, mAP"].tolist() == [4, 2, 2, 20, 8], "Tables I and V"
    lead = rows(main.tables()["HRCF: claims"], where="Sec. IV-B")
    assert lead[OURS].iloc[0] == "−2.0 [−3.0, −1.0] (OVML-VLP; 3 methods measured)"
    assert lead[DIRECTION].tolist() == ["opposite", "opposite", "not measured"]


def test_hrcf_of_table_1_is_that_of_the_run_it_is_compared_in(main, full):
    """Notebook 05 where it has run, 04 otherwise: the scores are 35 and more in the one, 26 to 28 in the other."""
    head = f"{OURS}: F1@3 / F1@5 / mAP"
    first, second = (float(rows(r.tables()["Table I"], row="HRCF", task="ZSL")[head].item()[:4]) for r in (main, full))
    assert first > 35 and second == 27.0
    assert rows(full.tables()["Table I"], row="MKT", task="ZSL")[head].item() == "notebook 05 makes it"


def test_claims_of_figure_3(main):
    table = main.tables()["HRCF: claims"]
    table = table[table["where"] == "Fig. 3"]
    assert table[OURS].tolist() == [
        "2 of 4 (sign test: p = 1.000)",
        "+12.0 points ('label 0')",
        "−1.0 points ('label 3')",
    ]
    assert table[DIRECTION].tolist() == ["open", "open", "agrees"]
    assert table[f"direction ({NUS})"].tolist() == ["open", "open", "opposite"]
    assert table[f"ours ({NUS})"].iloc[2] == "−12.0 points ('label 1'); 2 of 3 lose 10 or more"


@pytest.mark.parametrize(
    ("better", "worse", "text", "expected"),
    [
        (65, 16, "65 of 81 (sign test: p < 0.001)", "agrees"),  # the paper's own
        (23, 10, "23 of 33 (sign test: p = 0.035)", "agrees"),
        (22, 11, "22 of 33 (sign test: p = 0.080)", "open"),
        (10, 23, "10 of 33 (sign test: p = 0.035)", "opposite"),
        (0, 0, "0 of 0 (sign test: p = 1.000)", "open"),
    ],
)
def test_labels_won_need_a_sign_test(better, worse, text, expected):
    assert claims.labels_won(pd.Series([1.0] * better + [-1.0] * worse)) == (text, expected)


@pytest.mark.parametrize(("gain", "expected"), [(31.0, "agrees"), (30.0, "open"), (0.5, "open"), (-0.5, "opposite")])
def test_the_largest_gain_is_held_against_the_papers_bound(gain, expected):
    text, direction = claims.largest_gain(pd.Series({"cat": gain, "dog": -1.0}), 30)
    assert direction == expected and text.startswith(f"{gain:+.1f}".replace("-", "−")) and "'cat'" in text


@pytest.mark.parametrize(("loss", "expected"), [(9.9, "agrees"), (10.0, "opposite"), (0.0, "agrees"), (-1.0, "agrees")])
def test_losses_are_held_against_the_papers_bound(loss, expected):
    text, direction = claims.largest_loss(pd.Series({"cat": 3.0, "dog": -loss}), 10)
    assert direction == expected and (text == "no label loses") == (loss <= 0)


def test_frozen_blocks_of_both_methods(main, full, tmp_path):
    blocks = lambda r: rows(r.tables()["HRCF: claims"], where="Sec. IV-F").iloc[0]
    assert blocks(main)[OURS].endswith("11 of 12 are frozen; MKT trains 2, 10 of 12 are frozen")
    assert blocks(main)[DIRECTION] == "agrees"
    assert blocks(full)[OURS].endswith("(MKT: notebook 05)") and blocks(full)[DIRECTION] == "agrees"
    made.write_main(tmp_path, without=("frozen blocks",))
    assert blocks(report.Report(tmp_path))[OURS].endswith("(MKT: notebook 05)")


def test_parameters_of_other_methods_with_and_without_what_is_never_used(main, full):
    table = main.tables()["Table VI"]
    ours = table.columns[2]
    assert table["method"].tolist() == [
        "LESA (M=10)",
        "ZS-SDL",
        "BiAM",
        "Gen-MLZSL",
        "MKT",
        "MKT with the unused MLP",
        "HRCF",
    ]
    mkt, whole, biam = (rows(table, method=m).iloc[0] for m in ("MKT", "MKT with the unused MLP", "BiAM"))
    assert mkt[ours] == "14.570496 / 25.296896 / 39.867392" and mkt["as printed"] == "no"
    assert whole[ours] == "15.227648 / 25.296896 / 40.524544" and whole["as printed"] == "yes"
    assert mkt.iloc[1] == whole.iloc[1] == "15.2 / 25.3 / 40.5"
    assert biam[ours] == "3.840000 /  / 3.840000" and biam["as printed"] == "yes"
    lesa = rows(table, method="LESA (M=10)").iloc[0]
    assert lesa[ours] == "1.579530 /  / 1.579530" and lesa["as printed"] == "no", "called LESA in the record"
    assert rows(table, method="ZS-SDL")[ours].item() == "the record of notebook 05 has no row 'ZS-SDL'"
    runs = read_record("05_main_results", main.sources[0].folder)["tables"]["runs"]
    part = rows(runs, variant="MKT", split="test", task="ZSL")[list(METRICS)]
    expected = " / ".join(f"{m:.1f} ± {s:.1f}" for m, s in zip(part.mean(), part.std()))
    head = "{} ({}, ZSL): F1@3 / F1@5 / mAP".format
    assert mkt[head("ours", MINI)] == expected and mkt[head("the paper", "NUS-WIDE")] == "34.1 / 31.1 / 37.6"
    assert biam[head("ours", MINI)] == tables.OTHERS, "printed on VGG-19 and GloVe"
    without = full.tables()["Table VI"]
    assert len(without) == 6 and without[ours].tolist()[:5] == ["notebook 05 makes it"] * 5


def test_times_on_the_mini_vlp_stand_apart_from_the_papers(main, full, empty):
    tables = main.tables()
    costs_, times = tables["costs on the mini VLP"], tables["inference times"]
    assert costs_["method"].tolist() == list(made.METHODS) and not costs_.columns.str.contains("paper").any()
    assert costs_.columns.str.startswith("ours (mini VLP").sum() == 2
    assert costs_.iloc[3].tolist() == ["OVML-VLP", "61.2 s", "3 ms"]
    assert not times.astype(str).apply(lambda column: column.str.contains("61.2")).any(axis=None)
    assert rows(times, method="MKT").filter(like="ours").iloc[0].tolist()[:2] == [costs.ELSEWHERE] * 2
    assert rows(full.tables()["inference times"], method="MKT").filter(like="ours").iloc[0, 0] == "notebook 05 makes it"
    assert costs.mini_costs([empty]).iloc[0].tolist() == ["all", "notebook 05 makes it"]


def test_a_record_without_its_tables_of_labels_and_costs_says_so(tmp_path):
    made.write_main(tmp_path, without=("per label", "costs", "parameters"))
    found = report.Report(tmp_path).tables()
    lacks = "the record of notebook 05 has no '{}'".format
    assert rows(found["HRCF: claims"], where="Fig. 3")[OURS].eq(lacks("per label")).all()
    assert rows(found["HRCF: claims"], where="Fig. 3")[DIRECTION].eq("not measured").all()
    assert found["costs on the mini VLP"].iloc[0, 1] == lacks("costs")
    assert rows(found["Table VI"], method="MKT").iloc[0, 2] == lacks("parameters")


def test_every_column_of_scores_names_its_data(full):
    for title, frame in full.tables().items():
        scores = frame.columns.str.contains("ours|the paper|direction") & (frame.columns != "of the paper")
        for column in frame.columns[scores]:
            assert re.search(r"\(.+\)", column) or title in ("Table VI", "Table III, cost", "Fig. 4", "coverage"), (
                column
            )


def test_smoke_runs_are_passed_over(tmp_path):
    made.write_trained(tmp_path / "smoke" / "records")
    with pytest.raises(Missing):
        Records(tmp_path).record("04_alternate_training")


@pytest.mark.parametrize(("value", "text", "same"), [(4096, "0.004M", True), (6144, "0.004M", False), (0, "0", True)])
def test_printed(value, text, same):
    assert printed(value, text) is same


def test_the_figure_has_a_row_for_each_measured_effect(full, empty):
    axis = full.figure().axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(labels) == 16 and "RSS added, ZSL mAP" in labels and MINI in axis.get_xlabel()
    assert "distillation, ZSL F1@3" in [t.get_text() for t in full.figure(metric="F1@3").axes[0].get_yticklabels()]
    assert report.Report(empty.folder).figure() is None
    report.figures.plt.close("all")


def test_the_notebook_shows_every_table(full):
    cells = nbformat.read(REPOSITORY / "notebooks" / "12_report.ipynb", 4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert not [title for title in full.tables() if f'"{title}"' not in code]


# -- the file


def test_markup_is_the_same_every_time_and_shows_directions(full):
    table = full.tables()["Table II"]
    first, second = (report.show(table, "Table II").to_html() for _ in range(2))
    assert first == second and report.PALE["opposite"] in first


@pytest.mark.slow
def test_the_html_needs_nothing_else(folder, tmp_path, monkeypatch):
    """The one test that starts a kernel; in a shell whose backend shows no figures."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    before = {path: path.read_bytes() for path in (REPOSITORY / "notebooks").rglob("12_report.*")}
    out = tmp_path / "report.html"
    __main__.main(["--records", str(folder / "mini"), "--nus-wide", str(folder / "nus"), "--out", str(out)])
    text = out.read_text("utf-8")
    assert not re.search(r"<(script|link|img|iframe)\b[^>]*(src|href)\s*=\s*[\"']?(https?:)?//", text)
    assert "<script" not in text and "<link" not in text and not export.FETCHED.search(text)
    assert len(text) < 3_000_000 and text.count("data:image/png;base64,") == 2 and "records.start" not in text
    assert "ours (NUS-WIDE)" in text and "opposite" in text and str(folder) not in text
    assert {path: path.read_bytes() for path in before} == before, "what is stored stays as it is"


def test_a_picture_from_the_network_is_refused(tmp_path):
    cell = nbformat.v4.new_markdown_cell('<img src="https://example.org/a.png">')
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    with pytest.raises(ValueError, match="would be fetched from the network: embed it"):
        export.html(tmp_path / "a.ipynb")


def test_a_wrong_folder_ends_the_command_with_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--records", str(tmp_path / "none"), "--out", str(tmp_path / "report.html")])
    assert "none is not a folder of records" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_short_runs_of_the_mini_set_and_a_batch_with_all_seeds_are_read(tmp_path):
    """By seed and once with the notebook's own parameters: the last is the one that counts."""
    for folder, seconds in (("seeds=0", 1), ("seeds=1", 2), ("stored", 3)):
        path = tmp_path / "07_ablation_prompts" / folder / "records" / "07_ablation_prompts.json"
        path.parent.mkdir(parents=True)
        record = {"parameters": {}, "config": {"name": "mini_short"}, "seconds": seconds, "tables": {}}
        path.write_text(json.dumps(record), encoding="utf-8")
    assert Records(tmp_path, MINI).record("07_ablation_prompts")["seconds"] == 3
    with pytest.raises(Missing, match="there is one of preset 'mini_short'"):
        Records(tmp_path, NUS).record("07_ablation_prompts")


# -- a GPU


def test_times_on_a_gpu_stand_beside_the_papers_where_they_were_measured(empty, tmp_path):
    """NUS-WIDE's test set has 107,859 pictures: 2 ms each are 216 s. A rehearsal on the CPU measured nothing."""
    assert (costs.times([empty]).filter(like="a GPU") == "not measured").all(axis=None)
    rows = [{"name": "HRCF, bfloat16, B = 1", "ms": 4.0}, {"name": "HRCF, bfloat16, B = 471", "ms": 2.0}]
    rows += [{"name": "MKT, bfloat16, B = 1", "error": "out of GPU memory"}]
    stages = {"machine": {"device": "Some GPU"}, "inference": {"rows": rows}}
    record = {"name": "gpu", "rehearsal": True, "device": "cuda", "stages": stages}
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(record))
    assert (costs.times([Records(tmp_path)]).filter(like="a GPU") == "not measured").all(axis=None)
    path.write_text(json.dumps(record | {"rehearsal": False}))
    found = costs.times([Records(tmp_path)]).set_index("method").filter(like="Some GPU")
    assert found.loc["HRCF"].tolist() == ["4 ms", "216 s"]
    assert found.loc["MKT"].tolist() == ["not measured", "not measured"]


def test_a_record_of_the_first_benchmark_counts_as_missing(tmp_path):
    """Its numbers are of 33 unseen labels; the config of a run on it has no coverage."""
    made.write_trained(tmp_path, (1, 2))
    path = tmp_path / "04_alternate_training.json"
    record = json.loads(path.read_text())
    for config, counts in (
        ({"name": "mini", "dataset": "mojiscenes"}, False),
        ({"name": "mini", "dataset": "mojiscenes", "coverage": 0.8}, True),
        ({"name": "mini", "dataset": "folder"}, True),
    ):
        path.write_text(json.dumps(record | {"config": config}))
        assert Records(tmp_path).has("04_alternate_training") is counts
    path.write_text(json.dumps(record | {"config": {"name": "mini", "dataset": "mojiscenes"}}))
    with pytest.raises(
        Missing, match="notebook 04 makes it .there is one of the first benchmark, which does not count"
    ):
        Records(tmp_path).record("04_alternate_training")
