r"""The paper's tables row by row: what it prints, ours beside it, and what the difference says. All cells are text."""

import numpy as np
import pandas as pd

from hrcf_lib.report import effects
from hrcf_lib.report.records import MAIN, METRICS, TRAINED, Missing, Records
from hrcf_lib.studies.records import published

DATA = "NUS-WIDE"  # of the paper's columns
HEAD = " / ".join(METRICS)
COUNTED = ("P@3", "R@3", "P@5", "R@5")  # what F1 is made of; not every table prints it
PRINTED = {  # paper and table -> its file, and the column that names its rows, or those of the parts switched on
    ("HRCF", "Table I"): ("hrcf_table1_sota", "method"),
    ("HRCF", "Table II"): ("hrcf_table2_hcg_hsa", ["HCG", "RSA", "RSS"]),
    ("HRCF", "Table III"): ("hrcf_table3_prompts", "prompt"),
    ("HRCF", "Table IV"): ("hrcf_table4_distillation", "model"),
    ("HRCF", "Table V"): ("hrcf_table5_preclip", "model"),
    ("OVML-VLP", "Table I"): ("ovml_table1", "method"),
    ("OVML-VLP", "Table II"): ("ovml_table2_clip_backbones_nuswide", "method"),
    ("OVML-VLP", "Table III"): ("ovml_table3_ablation_nuswide_zsl", ["finetune", "attention", "L_con"]),
    ("BiAM", "Table 3"): ("biam_table3_blocks_nuswide", "features"),
}
BORROWED = {
    ("HRCF", "Table I"): "ovml_table2_clip_backbones_nuswide"
}  # has rows that effects of the table compare with, too
SHORT = {f"{m}_{size}": f"{m}@{k}" for m in ("P", "R", "F1") for size, k in (("small", 3), ("large", 5))}
OTHERS = "not comparable, or not here"  # a row that no effect of the table names
OPEN_IMAGES = {"F1_small": "F1@10", "F1_large": "F1@20", "mAP": "mAP"}  # columns of Table I -> what they are there


def beside(item: str, sources: list[Records], paper: str = "HRCF") -> pd.DataFrame:
    """One of the ``PRINTED`` tables: each row and task as printed, ours on each data set, and the direction.

    The direction is in the row in which an effect differs from the others of its table and task.
    """
    planned, rows = effects.of_item(item, paper), _printed(item, paper)
    runs, shown, table = effects.runs_of(item, paper), _shown(planned), []
    heads = {HEAD: METRICS} | ({" / ".join(COUNTED): COUNTED} if "P@3" in rows else {})
    for row in rows.to_dict("records"):
        name, task = row["row"], row["task"]
        notebook, *run = runs.get(name, ("", "", ""))
        among = [notebook, *([TRAINED] if (notebook, name) == (MAIN, "HRCF") else [])]
        cells = {"row": name, "task": task}
        for head, metrics in heads.items():
            cells[f"the paper ({DATA}): {head}"] = _numbers(row[m] for m in metrics)
            for records in sources:
                ours = scores(records, among, run, task, metrics) if notebook else OTHERS
                cells[f"ours ({records.data}): {head}"] = ours
        for records in sources:
            cells[f"direction ({records.data})"] = _direction(shown.get((name, task)), records)
        table.append(cells)
    return pd.DataFrame(table)


def _printed(item: str, paper: str) -> pd.DataFrame:
    """Rows of a table on ``DATA``: ``row`` (its name), ``task`` and the metrics."""
    file, names = PRINTED[paper, item]
    frame = published(file).rename(columns=SHORT)
    if "dataset" in frame:
        frame = frame[frame["dataset"] == DATA]
    if isinstance(names, list):
        on = [[part for part in names if row[part]] for row in frame.to_dict("records")]
        frame["row"] = [" + ".join(parts) or "none of the three" for parts in on]
    else:
        frame["row"] = frame[names]
    if (paper, item) in BORROWED:
        other = published(BORROWED[paper, item]).rename(columns={"method": "row"})
        held = {effect.against for effect in effects.of_item(item, paper)} - set(frame["row"])
        frame = pd.concat([frame, other[other["row"].isin(held)]], ignore_index=True)
    return frame if "task" in frame else frame.assign(task="ZSL")


def _shown(planned) -> dict:
    """(row, task) -> the effect on mAP shown there: at the first of its rows, or the second where that is shared."""
    planned = [e for e in planned if e.metric == "mAP"]
    first = {(e.row, e.task): e for e in planned}
    return first if len(first) == len(planned) else {(e.against, e.task): e for e in planned}


def _direction(effect, records: Records) -> str:
    if effect is None:
        return ""
    found = effects.measure(effect, records)
    return ("" if np.isnan(found["difference"]) else f"{effects.with_interval(found)}: ") + found["direction"]


def _numbers(values) -> str:
    return " / ".join("" if pd.isna(value) else f"{value:.1f}" for value in values)


def scores(records: Records, notebooks: list[str], run: tuple[str, str], task: str, metrics=METRICS) -> str:
    """Mean ± standard deviation over seeds of each metric of a (variant, setting), or why there is none.

    The first of ``notebooks`` that has a record is read.
    """
    name = next(filter(records.has, notebooks), notebooks[-1])
    try:
        frame = records.scores(name, *run, task)[list(metrics)].astype(float)
    except Missing as why:
        return str(why)
    spread = [f" ± {s:.1f}" if s > 0 else "" for s in frame.std(ddof=1)]
    return " / ".join(f"{m:.1f}{s}" for m, s in zip(frame.mean(), spread))


def open_images() -> pd.DataFrame:
    """Table I on Open Images, as printed: no run of ours is on that data yet."""
    frame = published("hrcf_table1_sota").query("dataset == 'Open Images v4'").reset_index(drop=True)
    frame = frame[["method", "task", *OPEN_IMAGES]].astype(str).replace("nan", "")
    return frame.rename(columns={old: f"the paper (Open Images): {new}" for old, new in OPEN_IMAGES.items()})
