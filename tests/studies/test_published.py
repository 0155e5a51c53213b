"""What printed precision and recall say of the images behind them."""

import numpy as np
import pandas as pd
import pytest

from hrcf_lib.studies import records
from hrcf_lib.studies.records import implied_positives

NEEDED = ["dataset", "task", "K_small", "P_small", "R_small", "K_large", "P_large", "R_large"]


def marked(table: str, **more) -> set:
    frame = implied_positives(records.published(table), **more)
    return {tuple(row) for row in frame.loc[frame["other protocol"], ["dataset", "method", "task"]].to_numpy()}


def printed(positives: float, recalls=(0.4, 0.6), n=100_000) -> dict:
    """A row as a paper prints it, of a method that finds these shares of the positives at K = 3 and 5."""
    row = {"dataset": "a", "task": "ZSL"}
    for size, k, recall in zip(("small", "large"), (3, 5), recalls):
        hits = round(recall * positives * n)
        row |= {f"K_{size}": k, f"P_{size}": round(100 * hits / (k * n), 1)}
        row |= {f"R_{size}": round(100 * hits / (positives * n), 1)}
    return row


def test_values_of_nus_wide():
    frame = implied_positives(records.published("hrcf_table1_sota")).query("dataset == 'NUS-WIDE' and task == 'ZSL'")
    values = frame.set_index("method")["positives per image"].round(2)
    assert values["OVML-VLP"] == 2.44 and values["ZS-SDL"] == 1.76
    assert values.drop(["OVML-VLP", "ZS-SDL", "BiAM", "(ML)2P-Encoder"]).between(1.87, 1.88).all()
    mkt = frame.set_index("method").loc["MKT"]
    assert mkt["KP/R_small"] == 3 * 27.7 / 44.3 and mkt["KP/R_large"] == 5 * 21.4 / 57.0
    assert mkt["positives per image"] == pytest.approx((3 * 27.7 / 44.3 + 5 * 21.4 / 57.0) / 2)


def test_the_rows_that_papers_readme_names_are_marked_and_no_others():
    both = lambda dataset, *methods: {(dataset, m, task) for m in methods for task in ("ZSL", "GZSL")}
    only_zsl = lambda *methods: {("Open Images v4", m, "ZSL") for m in methods}
    assert marked("hrcf_table1_sota") == both("NUS-WIDE", "OVML-VLP", "ZS-SDL") | only_zsl("LESA (M=10)", "Gen-MLZSL")
    older = only_zsl("CONSE", "LabelEM", "Fast0Tag", "LESA")
    assert marked("ovml_table1") == both("NUS-WIDE", "OVML", "CLIP-ML (RN50)", "ZSSDL") | older


def test_rows_without_precision_and_recall_say_nothing():
    frame = implied_positives(records.published("hrcf_table1_sota"))
    blank = frame["P_small"].isna()
    assert blank.sum() == 8 and frame.loc[blank, ["KP/R_small", "KP/R_large", "positives per image"]].isna().all(
        axis=None
    )
    assert not frame.loc[blank, "other protocol"].any() and frame["other protocol"].dtype == bool


def test_rounding_alone_marks_nothing():
    """Whatever a method finds on the same images; a low recall is known to few digits."""
    rng = np.random.default_rng(0)
    rows = [printed(1.88, recalls=sorted(rng.uniform(0.005, 0.6, 2))) for _ in range(300)]
    table = pd.DataFrame(rows)
    found = implied_positives(table, among=table)
    assert not found["other protocol"].any()
    assert (found["positives per image"] - 1.88).abs().max() > 0.04 * 1.88, "far more than the margin, by rounding"


@pytest.mark.parametrize(("positives", "expected"), [(1.90, False), (1.86, False), (2.0, True), (1.76, True)])
def test_other_images_are_marked_beyond_the_margin(positives, expected):
    table = pd.DataFrame([printed(1.88)] * 3 + [printed(positives)])
    assert implied_positives(table, among=table)["other protocol"].tolist() == [False] * 3 + [expected]


def test_groups_are_compared_apart_and_rows_keep_their_place():
    table = pd.DataFrame(
        [printed(1.88), printed(6.8) | {"task": "GZSL"}, printed(1.88), printed(6.8) | {"dataset": "b"}]
    )
    table.index = [7, 5, 3, 1]
    before = table.copy()
    found = implied_positives(table, among=table)
    assert not found["other protocol"].any() and found.index.tolist() == [7, 5, 3, 1]
    assert found["positives per image"].round(1).tolist() == [1.9, 6.8, 1.9, 6.8]
    pd.testing.assert_frame_equal(table, before)


def test_errors_say_what_is_missing():
    with pytest.raises(ValueError, match="no column 'P_small'"):
        implied_positives(records.published("hrcf_table5_preclip").assign(dataset="NUS-WIDE", K_small=3))
    table = pd.DataFrame([printed(1.88)])
    with pytest.raises(ValueError, match="no row of a, ZSL prints P and R to compare with"):
        implied_positives(table)
