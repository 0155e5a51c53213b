r"""The report: every table and figure of five papers beside ours.

It trains and evaluates nothing: the papers' numbers come from ``papers/published``, ours from the notebooks' records.

python -m hrcf_lib.report --out runs/report.html
"""

from pathlib import Path

import numpy as np
import pandas as pd

from hrcf_lib import figures
from hrcf_lib.report import claims, costs, effects, missing_labels, overview, tables
from hrcf_lib.report.effects import PAPERS
from hrcf_lib.report.records import MINI, NUS, Records
from hrcf_lib.studies.records import STORED

PALE = {"agrees": "#cfe6f5", "opposite": "#f7d9c4", "open": "#eeeeee"}  # behind the cells of a direction


class Report:
    r"""All tables of the report.

    Args:
        records: folder of the records on MojiScenes; empty for those stored in the repository.
        nus_wide: folder of records of the same notebooks with ``preset = "nus_wide"``; empty for no such column.

    Raises ``NotADirectoryError`` for a folder that does not exist, ``ValueError`` for two records of one notebook.
    """

    def __init__(self, records: str | Path = "", nus_wide: str | Path = ""):
        own = Records(records or STORED, MINI)
        self.sources = [own, *([Records(nus_wide, NUS)] if nus_wide else [])]
        self.effects = {source.data: effects.frame(source) for source in self.sources}

    def about(self) -> str:
        """One line: what the columns are measured on."""
        text = f"Ours: {' and '.join(source.data for source in self.sources)}."
        return (
            text if len(self.sources) > 1 else f"{text} No records of NUS-WIDE were given: no column of ours shows it."
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        """Title -> table of text: three for each paper, then tables row by row (of HRCF where no paper is named)."""
        s, each = self.sources, {}
        for paper in PAPERS:
            each[f"{paper}: tables and figures"] = overview.overview(paper, s)
            each[f"{paper}: effects"] = effects.table(effects.planned(paper), s)
            each[f"{paper}: claims"] = claims.claims(s, paper)
        for paper, item in tables.PRINTED:
            each[item if paper == "HRCF" else f"{paper}: {item}"] = tables.beside(item, s, paper)
        return each | {
            "Table I, Open Images": tables.open_images(),
            "Table III, cost": costs.prompt_costs(s),
            "Table VI": costs.table6(s),
            "inference times": costs.times(s),
            "costs on the mini VLP": costs.mini_costs(s),
            "Fig. 4": claims.figure4(s),
            "missing labels": missing_labels.over_known(s),
            "a single positive": missing_labels.single_positive(s),
        }

    def summary(self, paper: str = "") -> pd.DataFrame:
        """How many effects have each direction, for each data of ours and each paper, or each item of one paper."""
        counts = {}
        for data, frame in self.effects.items():
            of = frame[frame["paper"] == paper] if paper else frame
            counts[f"ours ({data})"] = effects.count(of, "item" if paper else "paper")
        return pd.concat(counts, axis=1)

    def counts(self) -> pd.DataFrame:
        """The summary for a record: one row for each data of ours, paper and item."""
        parts = {
            (data, p): effects.count(of)
            for data, frame in self.effects.items()
            for p, of in frame.groupby("paper", sort=False)
        }
        return pd.concat(parts, names=["ours", "paper"]).reset_index()

    def figure(self, data: str = MINI, papers=("HRCF",), metric: str = "mAP", width: float = figures.PAGE):
        """Forest plot of the measured effects on one metric, the papers' differences as diamonds; None if none is."""
        frame = self.effects[data]
        frame = frame[frame["direction"].isin(PALE) & np.isfinite(frame["low"].astype(float))]
        frame = frame[frame["paper"].isin(papers) & frame["metric"].eq(metric)]
        if not len(frame):
            return None
        label = frame["label"] + ", " + frame["task"] + " " + frame["metric"]
        group = frame["item"] if len(papers) == 1 else frame["paper"] + ", " + frame["item"]
        drawn = frame.assign(label=label, verdict=frame["direction"], group=group, paper=frame["printed"])
        return figures.effects(drawn, width=width, xlabel=f"difference in percentage points, ours on {data}")


def show(table: pd.DataFrame, title: str = "table"):
    """A table for reading: no index, text to the left, directions on a pale ground; its markup is reproducible."""
    hide = isinstance(table.index, pd.RangeIndex)
    style = table.style.set_uuid("".join(c for c in title if c.isalnum())).set_table_attributes('class="report"')
    left = [{"selector": "th, td", "props": "text-align: left; vertical-align: top"}]
    styled = style.set_table_styles(left).map(_pale)
    return styled.hide(axis="index") if hide else styled


def _pale(cell) -> str:
    colour = PALE.get(str(cell).rpartition(": ")[2])
    return f"background-color: {colour}" if colour else ""
