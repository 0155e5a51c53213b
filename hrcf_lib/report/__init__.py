r"""The report: every table and figure of the HRCF paper beside ours, then missing labels.

It trains and evaluates nothing: the paper's numbers come from ``papers/published``, ours from the notebooks' records.

python -m hrcf_lib.report --out runs/report.html
"""

from pathlib import Path

import numpy as np
import pandas as pd

from hrcf_lib import figures
from hrcf_lib.report import claims, costs, effects, missing_labels, tables
from hrcf_lib.report.records import MINI, NUS, Records
from hrcf_lib.studies.records import REPOSITORY

PALE = {"agrees": "#cfe6f5", "opposite": "#f7d9c4", "open": "#eeeeee"}  # behind the cells of a direction


class Report:
    r"""All tables of the report.

    Args:
        records: folder of the records on MojiScenes; empty for those stored in the repository.
        nus_wide: folder of records of the same notebooks with ``preset = "nus_wide"``; empty for no such column.

    Raises ``NotADirectoryError`` for a folder that does not exist, ``ValueError`` for two records of one notebook.
    """

    def __init__(self, records: str | Path = "", nus_wide: str | Path = ""):
        own = Records(records or REPOSITORY / "notebooks" / "records", MINI)
        self.sources = [own, *([Records(nus_wide, NUS)] if nus_wide else [])]
        self.effects = {source.data: effects.frame(source) for source in self.sources}

    def about(self) -> str:
        """One line: what the columns are measured on."""
        text = f"Ours: {' and '.join(source.data for source in self.sources)}."
        return (
            text if len(self.sources) > 1 else f"{text} No records of NUS-WIDE were given: no column of ours shows it."
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        """Title -> table of text, in the paper's order."""
        s = self.sources
        return {
            "Table I": tables.beside("Table I", s),
            "Table I, Open Images": tables.open_images(),
            "Table II": tables.beside("Table II", s),
            "Table III": tables.beside("Table III", s),
            "Table III, cost": costs.prompt_costs(s),
            "Table IV": tables.beside("Table IV", s),
            "Table V": tables.beside("Table V", s),
            "Table VI": costs.table6(s),
            "inference times": costs.times(s),
            "costs on the mini VLP": costs.mini_costs(s),
            "Fig. 4": claims.figure4(s),
            "claims of figures and text": claims.claims(s),
            "coverage": claims.coverage(s),
            "missing labels": missing_labels.over_known(s),
            "missing labels, effects": missing_labels.directions(s),
            "a single positive": missing_labels.single_positive(s),
            "effects": effects.table(effects.planned(), s),
        }

    def summary(self) -> pd.DataFrame:
        """How many effects agree, are opposite, open or not measured, for each item of the paper and data of ours."""
        counts = {f"ours ({data})": effects.count(frame) for data, frame in self.effects.items()}
        return pd.concat(counts, axis=1)

    def counts(self) -> pd.DataFrame:
        """The summary for a record: one row for each data of ours and item of the paper."""
        parts = {data: effects.count(frame) for data, frame in self.effects.items()}
        return pd.concat(parts, names=["ours"]).reset_index()

    def figure(self, data: str = MINI, width: float = figures.PAGE, metric: str = "mAP"):
        """Forest plot of the measured effects on one metric, the paper's differences as diamonds; None if none is."""
        frame = self.effects[data]
        frame = frame[frame["metric"] == metric]
        frame = frame[frame["direction"].isin(PALE) & np.isfinite(frame["low"].astype(float))]
        if not len(frame):
            return None
        label = frame["label"] + ", " + frame["task"] + " " + frame["metric"]
        drawn = frame.assign(label=label, verdict=frame["direction"], group=frame["item"])
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
