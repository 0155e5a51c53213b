r"""Missing labels: what the papers of TRM-ML and of the semantic-aware method print, notebooks 13 and 14 beside it."""

import numpy as np
import pandas as pd

from hrcf_lib.report.records import PARTIAL, SINGLE, Missing, Records
from hrcf_lib.report.tables import scores
from hrcf_lib.studies import missing_labels
from hrcf_lib.studies.records import published

DATA = "MS-COCO"  # of both papers' tables
SHOWN = (0.1, 0.5, 0.9)  # values of p
HEAD = "mAP at " + " / ".join(f"{100 * p:.0f}" for p in SHOWN) + " %, mean over p"
PRINTED = {  # our method -> (paper, method) of the printed row
    "DualCoOp": ("TRM-ML", "DualCoOp"),
    "Semantic-aware": ("SemanticAware", "SemanticAware"),
    "TRM-ML": ("TRM-ML", "TRM-ML"),
}
PAPERS = {"TRM-ML": "TRM-ML", "SemanticAware": "Semantic-aware"}  # as the file names them -> as we do


def over_known(sources: list[Records]) -> pd.DataFrame:
    """One row per method: its mAP over p, as a paper prints it and ours, as text."""
    printed = published("partial_labels_map").query("dataset == @DATA").set_index(["source", "method"])
    ours = {records.data: _ours(records) for records in sources}
    rows = []
    for title in missing_labels.METHODS:
        cells = {"method": title, "paper": "", f"the paper ({DATA}): {HEAD}": ""}
        if title in PRINTED:
            numbers = printed.loc[PRINTED[title]]
            shown = _listed(numbers[f"{100 * p:.0f}"] for p in SHOWN)
            cells["paper"] = PAPERS[PRINTED[title][0]]
            cells[f"the paper ({DATA}): {HEAD}"] = f"{shown}, {numbers['avg']:.1f} over 9"
        rows.append(cells | {f"ours ({data}): {HEAD}": texts[title] for data, texts in ours.items()})
    return pd.DataFrame(rows)


def _listed(values) -> str:
    return " / ".join("–" if np.isnan(value) else f"{value:.1f}" for value in values)


def _ours(records: Records) -> dict[str, str]:
    """Method -> its mAP over p as text, or why there is none."""
    try:
        rows = records.runs(PARTIAL)
        rows = missing_labels.over_known(rows[rows["variant"].str.contains(missing_labels.AT, regex=False)])
    except Missing as why:
        return dict.fromkeys(missing_labels.METHODS, str(why))
    found = {title: f"the record of notebook {PARTIAL[:2]} has no {title!r}" for title in missing_labels.METHODS}
    for title, means in rows.groupby(["method", "known"])["mAP"].mean().groupby("method"):
        means = means.droplevel("method")
        found[title] = f"{_listed(means.reindex(SHOWN))}, {means.mean():.1f} over {len(means)}"
    return found


def single_positive(sources: list[Records]) -> pd.DataFrame:
    """One row per method: mAP where a single positive of each picture is known, printed and ours, as text."""
    printed = published("trmml_table2_single_positive").set_index("method")["COCO_LL"]
    ours, rows = list(missing_labels.METHODS), []
    for title in [*printed.index.difference(ours, sort=False), *ours]:
        cells = {"method": title}
        cells[f"the paper, TRM-ML's Table 2 ({DATA}): mAP"] = f"{printed[title]:.1f}" if title in printed else ""
        for records in sources:
            text = scores(records, [SINGLE], (title, ""), "seen", ["mAP"]) if title in ours else ""
            cells[f"ours ({records.data}): mAP"] = text
        rows.append(cells)
    return pd.DataFrame(rows)
