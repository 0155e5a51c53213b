r"""Missing labels: what the papers of TRM-ML and of the semantic-aware method print, notebooks 13 and 14 beside it."""

import numpy as np
import pandas as pd

from hrcf_lib.report import effects
from hrcf_lib.report.effects import Effect
from hrcf_lib.report.records import Missing, Records, names
from hrcf_lib.report.tables import measured, scores, signed
from hrcf_lib.studies import missing_labels
from hrcf_lib.studies import records as results

DATA = "MS-COCO"  # of both papers' tables
AT = (0.1, 0.5, 0.9)  # the p that are shown
HEAD = "mAP at " + " / ".join(f"{100 * p:.0f}" for p in AT) + " %, mean over p"
PRINTED = {"TRM-ML": ("TRM-ML", "DualCoOp"), "SemanticAware": ("SemanticAware",)}  # paper -> its rows
TITLES = {"SemanticAware": "Semantic-aware"}  # method as printed -> as we call it


def over_known(sources: list[Records]) -> pd.DataFrame:
    """A row for each method and paper, or for each method that no paper has: mAP over p, printed and ours, as text."""
    printed = results.published("partial_labels_map").query("dataset == @DATA").set_index(["source", "method"])
    rows = [(TITLES.get(m, m), printed.loc[(s, m)], s) for s, own in PRINTED.items() for m in own]
    rows += [(title, None, "") for title in missing_labels.METHODS if title not in {row[0] for row in rows}]
    order, ours, found = list(missing_labels.METHODS), {r.data: _ours(r) for r in sources}, []
    for title, numbers, source in sorted(rows, key=lambda row: order.index(row[0])):
        cells = {"method": title, "paper": TITLES.get(source, source), f"the paper ({DATA}): {HEAD}": ""}
        if numbers is not None:
            some = [numbers[f"{100 * p:.0f}"] for p in AT]
            cells[f"the paper ({DATA}): {HEAD}"] = f"{_listed(some)}, {numbers['avg']:.1f} over 9"
        found.append(cells | {f"ours ({data}): {HEAD}": texts[title] for data, texts in ours.items()})
    return pd.DataFrame(found)


def _listed(values) -> str:
    return " / ".join("–" if np.isnan(value) else f"{value:.1f}" for value in values)


def _ours(records: Records) -> dict[str, str]:
    """Method -> its mAP over p as text, or why there is none."""
    try:
        rows = missing_labels.over_known(records.runs(names()["13"]))
    except Missing as why:
        return dict.fromkeys(missing_labels.METHODS, str(why))
    found = {title: f"the record of notebook 13 has no {title!r}" for title in missing_labels.METHODS}
    for title, means in rows.groupby(["method", "known"])["mAP"].mean().groupby("method"):
        means = means.droplevel("method")
        found[title] = f"{_listed(means.reindex(AT))}, {means.mean():.1f} over {len(means)}"
    return found


def planned():
    """What the papers print and notebook 13 measures, at p = 0.1: parts of one method, and a method beside another."""
    printed = results.published("semanticaware_table4_ablation").query("dataset == @DATA").set_index("method")["10"]
    parts = {"decoupling": ("CoOp w/csp", "Semantic-aware: w/csp")}
    parts |= {"prompts of each label's own": ("CoOp w/sd", "Semantic-aware: w/sd"), "both of them": ("CoOp", "CoOp")}
    about = {"task": "seen", "data": DATA}
    for label, (theirs, ours) in parts.items():
        both, paper = (("Semantic-aware", ""), (ours, "")), printed["Ours"] - printed[theirs]
        yield Effect("semantic-aware, Table 4", label, names()["13"], *both, paper, **about)
    printed = results.published("partial_labels_map").query("dataset == @DATA and source == 'TRM-ML'")
    printed = printed.set_index("method")["10"]
    both = tuple((f"{name}{missing_labels.AT}0.1", "") for name in ("TRM-ML", "DualCoOp"))
    paper = printed["TRM-ML"] - printed["DualCoOp"]
    yield Effect("TRM-ML, Table 1", "TRM-ML against DualCoOp", names()["13"], *both, paper, by_seed=True, **about)


def directions(sources: list[Records]) -> pd.DataFrame:
    """A row an effect: the papers' difference, ours with its interval, and what that says of the direction, as text."""
    table = []
    for effect in planned():
        cells = {"of the paper": effect.item, "effect at p = 0.1": effect.label}
        cells[f"the paper ({DATA})"] = signed(effect.paper)
        for records in sources:
            found = effects.measure(effect, records)
            cells[f"ours ({records.data})"] = measured(found)
            cells[f"direction ({records.data})"] = found["direction"]
        table.append(cells)
    return pd.DataFrame(table)


def single_positive(sources: list[Records]) -> pd.DataFrame:
    """A row a method: mAP where a single positive of each picture is known, printed and ours, as text."""
    printed = results.published("trmml_table2_single_positive").set_index("method")["COCO_LL"]
    found = []
    for title in [*printed.index.difference(list(missing_labels.METHODS), sort=False), *missing_labels.METHODS]:
        paper = f"{printed[title]:.1f}" if title in printed else ""
        cells = {"method": title, f"the paper, TRM-ML's Table 2 ({DATA}): mAP": paper}
        row = {"record": names()["14"], "ours": (title, ""), "task": "seen"}
        for records in sources:
            cells[f"ours ({records.data}): mAP"] = (
                scores(records, row, ["mAP"]) if title in missing_labels.METHODS else ""
            )
        found.append(cells)
    return pd.DataFrame(found)
