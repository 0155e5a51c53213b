r"""The paper's tables row by row: what it prints, ours beside it, and what the difference says. All cells are text."""

import numpy as np
import pandas as pd

from hrcf_lib.report import effects
from hrcf_lib.report.records import MAIN, METRICS, TRAINED, Missing, Records
from hrcf_lib.studies.records import published

DATA = "NUS-WIDE"  # of the paper's columns
HEAD = " / ".join(METRICS)
COUNTED = ("P@3", "R@3", "P@5", "R@5")  # what F1 is made of; Table III does not print it
PARTS = ["HCG", "RSA", "RSS"]  # switched on in a row of Table II
PRINTED = {  # table -> its file, and the column that names its rows
    "Table I": ("hrcf_table1_sota", "method"),
    "Table II": ("hrcf_table2_hcg_hsa", PARTS),
    "Table III": ("hrcf_table3_prompts", "prompt"),
    "Table IV": ("hrcf_table4_distillation", "model"),
    "Table V": ("hrcf_table5_preclip", "model"),
}
SHORT = {f"{m}_{size}": f"{m}@{k}" for m in ("P", "R", "F1") for size, k in (("small", 3), ("large", 5))}
NOT_COMPARABLE = "not comparable: on VGG-19 and GloVe; see CLIP-BiAM"  # ours stands on the VLP, like CLIP-BiAM
OPEN_IMAGES = {"F1_small": "F1@10", "F1_large": "F1@20", "mAP": "mAP"}  # columns of Table I -> what they are there


def beside(item: str, sources: list[Records]) -> pd.DataFrame:
    """One of the ``PRINTED`` tables: each row and task as printed, ours on each data set, and the direction.

    The direction is in the row in which an effect differs from the others of its table and task.
    """
    runs, shown = effects.runs_of(item), _shown(effects.of_item(item))
    notebook, table, printed = effects.of_item(item)[0].notebook, [], _printed(item)
    heads = {HEAD: METRICS} | ({" / ".join(COUNTED): COUNTED} if "P@3" in printed else {})
    for row in printed.to_dict("records"):
        name, task = row["row"], row["task"]
        among = [notebook, TRAINED] if (notebook, name) == (MAIN, "HRCF") else [notebook]
        cells = {"row": name, "task": task}
        for head, metrics in heads.items():
            cells[f"the paper ({DATA}): {head}"] = _numbers(row[m] for m in metrics)
            for records in sources:
                ours = scores(records, among, runs[name], task, metrics) if name in runs else NOT_COMPARABLE
                cells[f"ours ({records.data}): {head}"] = ours
        for records in sources:
            cells[f"direction ({records.data})"] = _direction(shown.get((name, task)), records)
        table.append(cells)
    return pd.DataFrame(table)


def _printed(item: str) -> pd.DataFrame:
    """Rows of a table on ``DATA``: ``row`` (its name), ``task`` and the metrics.

    Table I gets the rows of CLIP-BiAM, BiAM on CLIP's features, which OVML-VLP's Table II prints.
    """
    file, names = PRINTED[item]
    frame = published(file).rename(columns=SHORT)
    if "dataset" in frame:
        frame = frame[frame["dataset"] == DATA]
    if item == "Table I":
        clip_biam = published("ovml_table2_clip_backbones_nuswide").query("method == 'CLIP-BiAM'")
        frame = pd.concat([frame, clip_biam], ignore_index=True)
    if names == PARTS:
        on = [[part for part in PARTS if row[part]] for row in frame.to_dict("records")]
        frame["row"] = [" + ".join(parts) or "none of the three" for parts in on]
    else:
        frame["row"] = frame[names]
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
