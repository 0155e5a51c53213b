"""Table I: each of our rows has a published one, and a method that was not run says so in its row."""

import pandas as pd
import pytest

from hrcf_lib import methods, studies
from hrcf_lib.studies import compare, records, table1


def test_every_method_has_a_row():
    titles = {methods.method(name).title for name in ("hrcf", *methods.names("compared"))}
    assert set(table1.ROWS) == titles and list(table1.ROWS)[-1] == "HRCF"


def test_published_values():
    values = table1.printed()
    assert values.loc["HRCF", ("ZSL", "mAP")] == 45.8 and values.loc["Pre-CLIP", ("GZSL", "F1@3")] == 6.3
    assert values.loc["BiAM", ("ZSL", "mAP")] == 29.5, "on CLIP, not on VGG-19"
    assert values.notna().all(axis=None) and set(values["features", ""]) == {table1.CLIP, table1.IMAGENET}


def test_published_differences_are_those_that_the_report_reads():
    found = {metric: table1.differences(metric=metric) for metric in table1.METRICS}
    effects = records.published("hrcf_effects").query("item == 'Table I'").set_index("against")
    for title, (_, name, _) in table1.ROWS.items():
        if title in ("HRCF", "Pre-CLIP"):
            continue
        for _, row in effects.loc[[name]].iterrows():
            ours = found[row["metric"]][f"HRCF against {title}", row["task"]]
            assert round(ours - (row["printed"] - row["printed_against"]), 9) == 0, (title, row["task"])


def test_rows_in_order_and_what_was_not_run():
    columns = pd.MultiIndex.from_product([("ZSL", "GZSL"), table1.METRICS])
    index = pd.MultiIndex.from_product([("HRCF", "MKT", "Pre-CLIP, photo"), ("",)], names=["variant", "setting"])
    summary = pd.DataFrame("1.0 ± 0.1", index, columns)
    own = table1.in_order(summary, "GZSL")
    assert list(own.index) == list(table1.ROWS) and own.index.name == "GZSL"
    assert own.loc["MKT", "mAP"] == "1.0 ± 0.1" and own.loc["LESA"].eq("is left out").all()
    both = table1.beside(summary, "ZSL")
    assert both.loc["MKT", [("ours", "mAP"), ("published", "mAP")]].tolist() == ["1.0 ± 0.1", 37.6]
    assert both.loc["LESA", ("ours", "mAP")] == "is left out" and both["published on"]["MKT"] == "CLIP"


def test_pairs_of_a_published_table():
    pairs, printed = compare.published_pairs(
        "ovml_effects", "05_main_results", ["attention", "attention, L_con", "CLIP-ML"]
    )
    assert pairs["contrastive loss added"] == (("attention, L_con", ""), ("attention", "")) and len(pairs) == 2
    assert printed["contrastive loss added", "ZSL"] == pytest.approx(42.6 - 36.3) and len(printed) == 2
    hrcf = compare.published_pairs("hrcf_effects", "06_ablation_hcg_rsa_rss", ["HRCF", "without RSA"])[0]
    assert hrcf["RSA added"] == (("HRCF", "without RSS"), ("without RSA", "without RSS"))


def test_choices_in_few_words():
    rows = [{"field": "lr", "value": v, "setting": "", "mAP ZSL": 10 * v, "mean": v} for v in (1, 2, 3)]
    frame = pd.DataFrame(rows).assign(chosen=[False, False, True])
    grids = {"A": {"lr": [1, 2, 3], "topk": [16, 4], "blocks": [None, 2]}, "B": {"lr": [1, 3, 4]}}
    found = studies.choices({"A": ({"lr": 3, "topk": 4, "blocks": None}, frame), "B": ({"lr": 3}, frame)}, grids)
    assert found.loc["A"].tolist() == ["lr = 3, topk = 4, blocks = None", 30, "lr"], "of two values each is an end"
    assert found.columns.tolist() == ["chosen", "mAP ZSL on val", "at the edge"] and found.loc["B", "at the edge"] == ""
