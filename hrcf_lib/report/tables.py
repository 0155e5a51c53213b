r"""The paper's tables row by row: what it prints, ours beside it, and what the difference says. All cells are text."""

import numpy as np
import pandas as pd

from hrcf_lib.report.effects import PROMPTS, STEPS, measure, planned
from hrcf_lib.report.records import METRICS, Missing, Records, names
from hrcf_lib.studies import records as results

HEAD = " / ".join(METRICS)


def beside(rows: list[dict], sources: list[Records], data: str = "NUS-WIDE") -> pd.DataFrame:
    """Rows of (row, task, paper, record, ours, effect) as text: the paper's, then ours on each data set.

    ``record`` is the name of one, or several of which the first that is there is read.
    """
    table = []
    for row in rows:
        cells = {"row": row["row"], "task": row["task"], f"the paper ({data}): {HEAD}": _numbers(row["paper"])}
        for records in sources:
            cells[f"ours ({records.data}): {HEAD}"] = scores(records, row)
            if effect := row.get("effect"):
                found = measure(effect, records)
                measured = "" if np.isnan(found["difference"]) else f"{interval(found)}: "
                cells[f"direction ({records.data})"] = measured + found["direction"]
            else:
                cells[f"direction ({records.data})"] = ""
        table.append(cells)
    return pd.DataFrame(table)


def _numbers(values) -> str:
    return " / ".join("" if pd.isna(value) else f"{value:.1f}" for value in values)


def scores(records: Records, row: dict, metrics=METRICS) -> str:
    """Mean ± standard deviation over seeds of each metric, or why there is none; ``row`` as in ``beside``."""
    among = [row["record"]] if isinstance(row["record"], str) else row["record"]
    name = next(filter(records.has, among), among[-1])
    try:
        frame = records.scores(name, *row["ours"], row["task"])[list(metrics)].astype(float)
    except Missing as why:
        return str(why)
    spread = [f" ± {s:.1f}" if s > 0 else "" for s in frame.std(ddof=1)]
    return " / ".join(f"{m:.1f}{s}" for m, s in zip(frame.mean(), spread))


def interval(found: dict) -> str:
    """A difference and its bounds in percentage points; bounds that are infinite are left out.

    >>> interval({"difference": -0.84, "low": -1.2, "high": -0.5})
    '−0.8 [−1.2, −0.5]'
    """
    text = signed(found["difference"])
    if np.isfinite(found["low"]):
        text += f" [{signed(found['low'])}, {signed(found['high'])}]"
    return text


def signed(difference: float) -> str:
    """A difference with its sign.

    >>> signed(-0.84)
    '−0.8'
    """
    return f"{difference:+.1f}".replace("-", "−")


def measured(found: dict) -> str:
    """What ``measure`` found, with the basis of its interval; or the basis alone, which says why there is none."""
    return found["basis"] if np.isnan(found["difference"]) else f"{interval(found)} ({found['basis']})"


def _effects(item: str, metric: str = "mAP") -> dict:
    return {(e.ours, e.against, e.task): e for e in planned() if e.item == item and e.metric == metric}


def table1(sources, dataset: str = "NUS-WIDE") -> pd.DataFrame:
    """Every method of Table I on one of its two data sets; HRCF's difference from each in the last column."""
    effects = {(against[0], task): e for (_, against, task), e in _effects("Table I").items()}
    rows = []
    for row in results.published("hrcf_table1_sota").query("dataset == @dataset").to_dict("records"):
        among = [names()[number] for number in (("05", "04") if row["method"] == "HRCF" else ("05",))]
        about = {"row": row["method"], "task": row["task"], "record": among, "ours": (row["method"], "")}
        paper = (row["F1_small"], row["F1_large"], row["mAP"])
        rows.append(about | {"paper": paper, "effect": effects.get((row["method"], row["task"]))})
    return beside(rows, sources)


def open_images() -> pd.DataFrame:
    """Table I on Open Images, as printed: no run of ours is on that data yet."""
    frame = results.published("hrcf_table1_sota").query("dataset == 'Open Images v4'")
    heads = {"F1_small": "F1@10", "F1_large": "F1@20", "mAP": "mAP"}
    table = (
        frame.rename(columns=heads)[["method", "task", *heads.values()]]
        .astype(str)
        .replace("nan", "")
        .reset_index(drop=True)
    )
    return table.rename(columns={head: f"the paper (Open Images): {head}" for head in heads.values()})


def table2(sources) -> pd.DataFrame:
    effects, rows = {ours: e for (ours, _, _), e in _effects("Table II").items()}, []
    for row in results.published("hrcf_table2_hcg_hsa").to_dict("records"):
        on = tuple(int(row[part]) for part in ("HCG", "RSA", "RSS"))
        name = " + ".join(part for part, there in zip(("HCG", "RSA", "RSS"), on) if there) or "none of the three"
        about = {"row": name, "task": "ZSL", "record": names()["06"], "ours": STEPS[on][0]}
        rows.append(about | {"paper": [row[m] for m in METRICS], "effect": effects.get(STEPS[on][0])})
    return beside(rows, sources)


def table3(sources) -> pd.DataFrame:
    effects, rows = {against: e for (_, against, _), e in _effects("Table III").items()}, []
    for row in results.published("hrcf_table3_prompts").to_dict("records"):
        ours = (PROMPTS[row["prompt"]], "")
        about = {"row": row["prompt"], "task": "ZSL", "record": names()["07"], "ours": ours}
        rows.append(about | {"paper": [row[m] for m in METRICS], "effect": effects.get(ours)})
    return beside(rows, sources)


def table4(sources) -> pd.DataFrame:
    both = {"HRCF (w/o L_kd)": ("weight 0", ""), "HRCF": ("HRCF", "")}
    return _pairs("hrcf_table4_distillation", "Table IV", "08", both, sources)


def table5(sources) -> pd.DataFrame:
    both = {"Pre-CLIP": ("plain VLP", ""), "HRCF": ("HRCF", "")}
    return _pairs("hrcf_table5_preclip", "Table V", "04", both, sources)


def _pairs(published: str, item: str, number: str, both: dict, sources) -> pd.DataFrame:
    """A table of HRCF and one other, ZSL and GZSL; the difference stands in HRCF's row."""
    effects, rows = {(ours, task): e for (ours, _, task), e in _effects(item).items()}, []
    for row in results.published(published).to_dict("records"):
        ours = both[row["model"]]
        about = {"row": row["model"], "task": row["task"], "record": names()[number], "ours": ours}
        rows.append(about | {"paper": [row[m] for m in METRICS], "effect": effects.get((ours, row["task"]))})
    return beside(rows, sources)
