r"""The paper's figures and the claims of its text, each with what we measured of it."""

import re
from math import comb

import numpy as np
import pandas as pd

from hrcf_lib.report import costs, tables
from hrcf_lib.report.effects import Effect, chosen, measure, planned
from hrcf_lib.report.records import Missing, Records, names
from hrcf_lib.studies import records as results

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
        return _labels(row, records)
    if where.startswith("Sec. IV-F"):
        return _blocks(row, records)
    if row["claim"].startswith("best"):
        return best(records, "M" if "(c)" in where else "lam", re.findall(r"[\d.]+", row["value"])[0])
    held = [(e, measure(e, records)) for e in planned() if e.item == where]
    texts = [f"{e.label}, {e.task} {e.metric}: {tables.interval(m)}" for e, m in held if not np.isnan(m["difference"])]
    if not texts:
        raise Missing(held[0][1]["basis"])
    return "; ".join(texts), combine(m["direction"] for _, m in held)


def _labels(row: dict, records: Records) -> tuple[str, str]:
    """Fig. 3: AP of each unseen label, HRCF's minus MKT's, means over seeds."""
    frame = records.table(names()["05"], "per label", ["label", "HRCF", "MKT"])
    gain = (frame["HRCF"] - frame["MKT"]).astype(float).set_axis(frame["label"])
    for words, answer in FIGURE3.items():
        if words in row["claim"]:
            return answer(gain, *map(float, re.findall(r"\d+", row["value"])[:1]))
    raise Missing(f"nothing here answers {row['claim']!r}")


def won(gain: pd.Series, *_) -> tuple[str, str]:
    """On how many labels the gain is positive; a direction needs p < 0.05 in a two-sided sign test over the labels."""
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    n, most = better + worse, max(better, worse)
    p = min(1.0, 2 * sum(comb(n, k) for k in range(most, n + 1)) / 2**n)  # as many or more, if either is as likely
    text = f"{better} of {len(gain)} (sign test: p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})"
    return text, "open" if p >= 0.05 else "agrees" if better > worse else "opposite"


def largest_gain(gain: pd.Series, least: float) -> tuple[str, str]:
    """``agrees`` above the paper's bound, ``open`` for a smaller gain (its size belongs to the data), else opposite."""
    text = f"{_points(gain.max())} ({gain.idxmax()!r})"
    return text, "agrees" if gain.max() > least else "open" if gain.max() > 0 else "opposite"


def largest_loss(gain: pd.Series, most: float) -> tuple[str, str]:
    """``agrees`` where every loss stays under the paper's bound."""
    if gain.min() >= 0:
        return "no label loses", "agrees"
    over = int((gain <= -most).sum())
    more = f"; {over} of {len(gain)} lose {most:g} or more" if over else ""
    return f"{_points(gain.min())} ({gain.idxmin()!r}){more}", "opposite" if over else "agrees"


FIGURE3 = {"beats": won, "largest gain": largest_gain, "losses": largest_loss}  # words of a claim -> what answers it


def _points(value: float) -> str:
    return f"{value:+.1f} points".replace("-", "−")


def _blocks(row: dict, records: Records) -> tuple[str, str]:
    """Counted from what the image side trains; MKT's part from the record of notebook 05, if it is there."""
    frozen = [int(number) for number in re.findall(r"\d+", row["value"])]  # HRCF, MKT
    total = int(re.findall(r"of (\d+)", row["claim"])[0])
    ours = [total - costs.trained_blocks()]
    try:
        table = records.table(names()["05"], "frozen blocks", ["method", "trained blocks"]).set_index("method")
        ours.append(total - int(table["trained blocks"]["MKT"]))
        other = f"; MKT trains {total - ours[1]}, {ours[1]} of {total} are frozen"
    except (Missing, KeyError):
        other = " (MKT: notebook 05)"
    same = "agrees" if ours == frozen[: len(ours)] else "opposite"
    return f"ViT-B/16: HRCF trains the last block alone, {ours[0]} of {total} are frozen{other}", same


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
