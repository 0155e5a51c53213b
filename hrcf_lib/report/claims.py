r"""The paper's figures and the claims of its text, each with what we measured of it."""

import re

import numpy as np
import pandas as pd

from hrcf_lib import results
from hrcf_lib.report import costs, tables
from hrcf_lib.report.effects import Effect, chosen, measure, planned
from hrcf_lib.report.records import Missing, Records, names

SETTINGS = {"lam": "λ", "keep": "regions kept", "M": "prompt vectors M"}
FIGURES = {  # item of the paper -> what it shows, notebook
    "Table I": ("HRCF against other methods", "05"),
    "Table II": ("HCG, RSA and RSS", "06"),
    "Table III": ("kinds of prompt", "07"),
    "Table IV": ("distillation", "08"),
    "Table V": ("HRCF against the plain VLP", "04"),
    "Table VI": ("trained parameters", "10"),
    "inference times": ("one picture, a test set", "10"),
    "Figs. 1-2": ("the method, drawn: nothing to measure", "03"),
    "Fig. 3": ("average precision of each unseen label against MKT's", "05"),
    "Fig. 4(a)": ("λ", "09"),
    "Fig. 4(b)": ("regions kept by RSS", "09"),
    "Fig. 4(c)": ("prompt vectors M", "09"),
    "Fig. 5": ("predictions on single pictures", "05"),
    "Figs. 6-7": ("where in the picture: Grad-CAM", "11"),
    "Sec. IV-F": ("frozen blocks of the ViT", "10"),
}


def coverage(sources) -> pd.DataFrame:
    """Every table and figure of the paper, the notebook that makes ours, and whether its record is there."""
    rows = []
    for item, (shows, number) in FIGURES.items():
        cells = {"of the paper": item, "shows": shows, "notebook": names()[number]}
        for records in sources:
            cells[f"record ({records.data})"] = "no record needed" if number == "03" else _there(records, number)
        rows.append(cells)
    return pd.DataFrame(rows)


def _there(records: Records, number: str) -> str:
    try:
        return records.record(names()[number])["date"]
    except Missing as why:
        return f"not yet: {why}"


def combine(directions) -> str:
    """One direction of several: ``opposite`` if any is, ``agrees`` if all do, ``open`` otherwise."""
    found = set(directions)
    if found <= {"not measured"}:
        return "not measured"
    return "opposite" if "opposite" in found else "agrees" if found == {"agrees"} else "open"


def claims(sources) -> pd.DataFrame:
    """Each row of ``hrcf_text_claims.csv``: where, what the paper says and on which data, ours, the direction."""
    rows = []
    for row in results.published("hrcf_text_claims").to_dict("records"):
        cells = {"where": row["where"], "claim": row["claim"]}
        cells["the paper (data in brackets)"] = f"{row['value']} ({row['dataset']})"
        for records in sources:
            try:
                ours, direction = _claim(row, records)
            except Missing as why:
                ours, direction = str(why), "not measured"
            cells |= {f"ours ({records.data})": ours, f"direction ({records.data})": direction}
        rows.append(cells)
    return pd.DataFrame(rows)


def _claim(row: dict, records: Records) -> tuple[str, str]:
    where = row["where"]
    if where.startswith("Fig. 3"):
        raise Missing("notebook 05 makes it")
    if where.startswith("Sec. IV-F"):
        return _blocks(row)
    if row["claim"].startswith("best"):
        return best(records, "M" if "(c)" in where else "lam", re.findall(r"[\d.]+", row["value"])[0])
    held = [(e, measure(e, records)) for e in planned() if e.item == where]
    texts = [f"{e.label}, {e.task} {e.metric}: {tables.interval(m)}" for e, m in held if not np.isnan(m["difference"])]
    if not texts:
        raise Missing(held[0][1]["basis"])
    return "; ".join(texts), combine(m["direction"] for _, m in held)


def _blocks(row: dict) -> tuple[str, str]:
    """Counted from what the image side trains; MKT's part of the claim belongs to notebook 05."""
    last = costs.trained_blocks()
    frozen = int(re.findall(r"\d+", row["value"])[0])
    total = int(re.findall(r"of (\d+)", row["claim"])[0])
    same = "agrees" if total - last == frozen else "opposite"
    return f"ViT-B/16: HRCF trains the last block alone, {total - last} of {total} are frozen (MKT: notebook 05)", same


def curve(records: Records, kind: str) -> pd.DataFrame:
    """mAP on ``test`` for each value of a setting: value, seed, task, mAP. Raises ``Missing``."""
    frame = records.runs(names()["09"])
    text = frame["variant"] if kind == "M" else frame["setting"].where(frame["variant"] == "HRCF", "")
    value = text.str.extract(rf"^{kind} = ([\d.]+)$")[0]
    frame = frame.assign(value=value.astype(float), text=value)[value.notna()]
    if not len(frame):
        raise Missing(f"the record of notebook 09 has no {kind} = ...")
    return frame.sort_values("value")[["value", "text", "seed", "task", "mAP"]]


def best(records: Records, kind: str, value: str) -> tuple[str, str]:
    """Our best value by ZSL mAP, and whether the paper's is better than every other (``agrees`` only then)."""
    frame = curve(records, kind)
    means = frame[frame["task"] == "ZSL"].groupby("text")["mAP"].mean()
    if value not in means:
        raise Missing(f"the record of notebook 09 has no {kind} = {value}")
    found = [
        measure(Effect("", "", names()["09"], *(_variant(kind, v) for v in (value, other)), sign=1), records)
        for other in means.index.drop(value)
    ]
    text = f"{means.idxmax()} (ZSL mAP {means.max():.1f}; at {value}: {means[value]:.1f})"
    return text, combine(one["direction"] for one in found)


def _variant(kind: str, value: str) -> tuple[str, str]:
    return (f"M = {value}", "") if kind == "M" else ("HRCF", f"{kind} = {value}")


def figure4(sources) -> pd.DataFrame:
    """The curves of Fig. 4 as numbers: mean over seeds. The paper prints no curve, only what it chose."""
    rows = {}
    places = {"lam": "Fig. 4(a)", "keep": "Fig. 4(b)", "M": "Fig. 4(c)"}
    for kind, where in places.items():
        choice = chosen(where)[0]
        rows[where, choice] = {
            "of the paper": where,
            "setting": SETTINGS[kind],
            "value": choice,
            "the paper": "its choice",
        }
        for records in sources:
            head = f"ours ({records.data}): mAP, ZSL / GZSL"
            try:
                frame = curve(records, kind)
            except Missing as why:
                rows[where, choice][head] = str(why)
                continue
            means = frame.groupby(["text", "task"], sort=False)["mAP"].mean().unstack()
            for text, mean in means.iterrows():
                about = {"of the paper": where, "setting": SETTINGS[kind], "value": text, "the paper": ""}
                cells = rows.setdefault((where, text), about)
                cells[head] = " / ".join(f"{mean[task]:.1f}" for task in ("ZSL", "GZSL"))
    ordered = sorted(rows, key=lambda key: (key[0], float(key[1])))
    return pd.DataFrame([rows[key] for key in ordered]).fillna("")
