r"""Missing labels: what the papers of TRM-ML and of the semantic-aware method print, notebooks 13 and 14 beside it."""

import numpy as np
import pandas as pd

from hrcf_lib import results
from hrcf_lib.partial import tables
from hrcf_lib.report import effects
from hrcf_lib.report.effects import Effect
from hrcf_lib.report.records import Missing, Records, names
from hrcf_lib.report.tables import interval

DATA = "MS-COCO"  # of both papers' tables
AT = (0.1, 0.5, 0.9)  # the p that are shown
HEAD = "mAP at " + " / ".join(f"{100 * p:.0f}" for p in AT) + " %, mean over p"
PRINTED = {"TRM-ML": ("TRM-ML", "DualCoOp"), "SemanticAware": ("SemanticAware",)}  # paper -> its rows
TITLES = {"SemanticAware": "Semantic-aware"}  # method as printed -> as we call it


def over_known(sources: list[Records]) -> pd.DataFrame:
    """A row for each method and paper, or for each method that no paper has: mAP over p, printed and ours, as text."""
    printed = results.published("partial_labels_map").query("dataset == @DATA").set_index(["source", "method"])
    rows = [(TITLES.get(m, m), printed.loc[(s, m)], s) for s, own in PRINTED.items() for m in own]
    rows += [(title, None, "") for title in tables.METHODS if title not in {row[0] for row in rows}]
    order, found = list(tables.METHODS), []
    for title, numbers, source in sorted(rows, key=lambda row: order.index(row[0])):
        cells = {"method": title, "paper": TITLES.get(source, source), f"the paper ({DATA}): {HEAD}": ""}
        if numbers is not None:
            some = [numbers[f"{100 * p:.0f}"] for p in AT]
            cells[f"the paper ({DATA}): {HEAD}"] = f"{_listed(some)}, {numbers['avg']:.1f} over 9"
        found.append(cells | {f"ours ({r.data}): {HEAD}": _ours(r, title) for r in sources})
    return pd.DataFrame(found)


def _listed(values) -> str:
    return " / ".join("–" if np.isnan(value) else f"{value:.1f}" for value in values)


def _ours(records: Records, title: str) -> str:
    try:
        runs = records.runs(names()["13"])
    except Missing as why:
        return str(why)
    rows = tables.over_known(runs)
    rows = rows[rows["method"] == title]
    if not len(rows):
        return f"the record of notebook 13 has no {title!r}"
    means = rows.groupby("known")["mAP"].mean()
    return f"{_listed(means.reindex(AT))}, {means.mean():.1f} over {len(means)}"


def planned() -> list[Effect]:
    """What the papers print and notebook 13 measures, at p = 0.1: parts of one method, and a method beside another."""
    found, record = [], names()["13"]
    printed = results.published("semanticaware_table4_ablation").query("dataset == @DATA").set_index("method")["10"]
    parts = {"decoupling": ("CoOp w/csp", "w/csp"), "prompts of each label's own": ("CoOp w/sd", "w/sd")}
    for label, (theirs, ours) in parts.items():
        both = ("Semantic-aware", ""), (f"Semantic-aware: {ours}", "")
        found.append(_effect("semantic-aware, Table 4", label, record, *both, printed["Ours"] - printed[theirs]))
    both = ("Semantic-aware", ""), ("CoOp", "")
    found.append(_effect("semantic-aware, Table 4", "both of them", record, *both, printed["Ours"] - printed["CoOp"]))
    printed = results.published("partial_labels_map").query("dataset == @DATA and source == 'TRM-ML'")
    printed = printed.set_index("method")["10"]
    both = tuple((f"{name}{tables.AT}0.1", "") for name in ("TRM-ML", "DualCoOp"))
    paper = printed["TRM-ML"] - printed["DualCoOp"]
    found.append(_effect("TRM-ML, Table 1", "TRM-ML against DualCoOp", record, *both, paper))
    return found


def _effect(item, label, record, ours, against, paper) -> Effect:
    return Effect(item, label, record, ours, against, paper, task="seen", data=DATA)


def directions(sources: list[Records]) -> pd.DataFrame:
    """A row an effect: the papers' difference, ours with its interval, and what that says of the direction, as text."""
    table = []
    for effect in planned():
        said = f"{effect.paper:+.1f}".replace("-", "−")
        cells = {"of the paper": effect.item, "effect at p = 0.1": effect.label, f"the paper ({DATA})": said}
        for records in sources:
            by_seed = tables.AT in effect.ours[0]
            found = effects.measure(effect, records, by_seed)
            measured = not np.isnan(found["difference"])
            cells[f"ours ({records.data})"] = f"{interval(found)} ({found['basis']})" if measured else found["basis"]
            cells[f"direction ({records.data})"] = found["direction"]
        table.append(cells)
    return pd.DataFrame(table)


def single_positive(sources: list[Records]) -> pd.DataFrame:
    """A row a method: mAP where a single positive of each picture is known, printed and ours, as text."""
    printed = results.published("trmml_table2_single_positive").set_index("method")["COCO_LL"]
    found = []
    for title in [*printed.index.difference(list(tables.METHODS), sort=False), *tables.METHODS]:
        paper = f"{printed[title]:.1f}" if title in printed else ""
        cells = {"method": title, f"the paper, TRM-ML's Table 2 ({DATA}): mAP": paper}
        for records in sources:
            cells[f"ours ({records.data}): mAP"] = _single(records, title) if title in tables.METHODS else ""
        found.append(cells)
    return pd.DataFrame(found)


def _single(records: Records, title: str) -> str:
    try:
        scores = records.scores(names()["14"], title, "", "seen")["mAP"]
    except Missing as why:
        return str(why)
    return f"{scores.mean():.1f}" + (f" ± {scores.std():.1f}" if len(scores) > 1 else "")
