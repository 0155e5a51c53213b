r"""The papers' figures and the claims of their texts, each with what we measured of it.

``papers/published/claims_measured.csv`` says what answers each claim of the tables ``*_text_claims.csv`` (a key of
``ANSWERS``), and what the answer needs: numbers of the paper, labels of effects, or where a record has it.
"""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from hrcf_lib.report import effects
from hrcf_lib.report.effects import Effect
from hrcf_lib.report.records import HYPERPARAMETERS, MAIN, PARTIAL, Missing, Records, printed
from hrcf_lib.studies.records import published

BLOCKS = 1  # of the ViT that HRCF trains: ``model.HRCF.block``, a copy of the last
CURVES = {  # figure -> the setting as our records spell it, and as the report does
    "Fig. 4(a)": ("lam", "λ"),
    "Fig. 4(b)": ("keep", "regions kept"),
    "Fig. 4(c)": ("M", "prompt vectors M"),
}


def combine(directions) -> str:
    """One direction of several: ``opposite`` if any is, ``agrees`` if all do, ``open`` otherwise."""
    found = set(directions)
    if found <= {"not measured"}:
        return "not measured"
    return "opposite" if "opposite" in found else "agrees" if found == {"agrees"} else "open"


def claims(sources: list[Records], paper: str = "HRCF") -> pd.DataFrame:
    """Each claim of a paper's text: where, what it says and on which data, ours, and the direction."""
    said, answers = published(f"{effects.PAPERS[paper]}_text_claims"), published("claims_measured")
    answers, rows = answers[answers["paper"] == paper], []
    for row in said.merge(answers, how="left", on=["where", "claim", "dataset"]).to_dict("records"):
        cells = {"where": row["where"], "claim": row["claim"]}
        cells["the paper (data in brackets)"] = f"{row['value']} ({row['dataset']})"
        for records in sources:
            try:
                ours, direction = _answer(row, records)
            except Missing as why:
                ours, direction = str(why), "not measured"
            cells |= {f"ours ({records.data})": ours, f"direction ({records.data})": direction}
        rows.append(cells)
    return pd.DataFrame(rows)


def _answer(row: dict, records: Records) -> tuple[str, str]:
    """What we measured of a claim, as text, and its direction. Raises ``Missing``."""
    needs = [] if pd.isna(row["numbers"]) else str(row["numbers"]).split("; ")
    if row["answer"] == "none":
        return row["numbers"], effects.DIRECTIONS[-1]
    if row["answer"] == "not yet":
        raise Missing(row["numbers"])
    if row["answer"] == "effects":
        return by_effects(records, row["paper"], row["where"], needs)
    if row["answer"] not in ANSWERS:
        raise Missing(f"nothing here answers {row['claim']!r}")
    return ANSWERS[row["answer"]](records, *needs)


def by_effects(records: Records, paper: str, where: str, labels: list[str]) -> tuple[str, str]:
    """The effects with these labels, or of this figure if there are none; all have to agree. Raises ``Missing``."""
    planned = [e for e in effects.planned(paper) if e.label in labels] or effects.of_item(where, paper)
    measured = [(effect, effects.measure(effect, records)) for effect in planned]
    texts = [
        f"{effect.label}, {effect.task} {effect.metric}: {effects.with_interval(found)}"
        for effect, found in measured
        if not np.isnan(found["difference"])
    ]
    if not texts:
        raise Missing(measured[0][1]["basis"])
    return "; ".join(texts), combine(found["direction"] for _, found in measured if found["direction"] != effects.NONE)


# -- Secs. IV-B and IV-D: the lead in Table I


def lead(records: Records, task: str) -> tuple[str, str]:
    """HRCF's mAP against the best of the methods that are measured: the effect of Table I that is least in its favour.

    Raises ``Missing`` where none is measured.
    """
    planned = [e for e in effects.of_item("Table I") if (e.task, e.metric) == (task, "mAP") and not e.not_comparable]
    found = [(effect, effects.measure(effect, records)) for effect in planned]
    measured = [(effect, row) for effect, row in found if not np.isnan(row["difference"])]
    if not measured:
        raise Missing(found[0][1]["basis"])
    effect, least = min(measured, key=lambda pair: pair[1]["difference"])
    text = f"{effects.with_interval(least)} ({effect.against_variant}; {len(measured)} methods measured)"
    return text, effects.direction(1, least["low"], least["high"])


# -- Fig. 3: average precision of each unseen label


def gains(
    records: Records, notebook: str = MAIN, title: str = "per label", method: str = "HRCF", against: str = "MKT"
) -> pd.Series:
    """AP of each label, one method's minus another's in points, means over seeds. Raises ``Missing``."""
    frame = records.table(notebook, title, ["label", method, against])
    return (frame[method] - frame[against]).astype(float).set_axis(frame["label"])


def labels_won(gain: pd.Series) -> tuple[str, str]:
    """On how many labels the gain is positive; a direction needs p < 0.05 in a two-sided sign test over the labels."""
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
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


def _points(value: float) -> str:
    return f"{effects.signed(value)} points"


# -- Fig. 4: one setting at a time


def curve(records: Records, kind: str) -> pd.DataFrame:
    """mAP on ``test`` for each value of a setting: value, text, seed, task, mAP. Raises ``Missing``."""
    frame = records.runs(HYPERPARAMETERS)
    text = frame["variant"] if kind == "M" else frame["setting"].where(frame["variant"] == "HRCF", "")
    text = text.str.extract(rf"^{kind} = ([\d.]+)$")[0]
    frame = frame.assign(value=text.astype(float), text=text)[text.notna()]
    if not len(frame):
        raise Missing(f"the record of notebook {HYPERPARAMETERS[:2]} has no {kind} = ...")
    return frame.sort_values("value")[["value", "text", "seed", "task", "mAP"]]


def best(records: Records, kind: str, value: str) -> tuple[str, str]:
    """Our best value by ZSL mAP, and whether the paper's is better than every other (``agrees`` only then)."""
    frame = curve(records, kind)
    means = frame[frame["task"] == "ZSL"].groupby("text")["mAP"].mean()
    if value not in means:
        raise Missing(f"the record of notebook {HYPERPARAMETERS[:2]} has no {kind} = {value}")
    run = lambda v: (f"M = {v}", "") if kind == "M" else ("HRCF", f"{kind} = {v}")
    others = [Effect(HYPERPARAMETERS, *run(value), *run(other), direction=1) for other in means.index.drop(value)]
    text = f"{means.idxmax()} (ZSL mAP {means.max():.1f}; at {value}: {means[value]:.1f})"
    return text, combine(effects.measure(effect, records)["direction"] for effect in others)


def figure4(sources: list[Records]) -> pd.DataFrame:
    """The curves of Fig. 4 as numbers: means over seeds. The paper prints no curve, only what it chose."""
    rows = []
    for where, (kind, title) in CURVES.items():
        choice = effects.of_item(where)[0].row
        columns = {
            f"ours ({records.data}): mAP, ZSL / GZSL": _curve_texts(records, kind, choice) for records in sources
        }
        for value in sorted({choice}.union(*columns.values()), key=float):
            cells = {"of the paper": where, "setting": title, "value": value}
            cells["the paper"] = "its choice" if value == choice else ""
            rows.append(cells | {head: texts.get(value, "") for head, texts in columns.items()})
    return pd.DataFrame(rows)


def _curve_texts(records: Records, kind: str, choice: str) -> dict[str, str]:
    """Value -> mean mAP of both tasks, or at the paper's choice why there is none."""
    try:
        means = curve(records, kind).groupby(["text", "task"])["mAP"].mean().unstack()
    except Missing as why:
        return {choice: str(why)}
    return {value: f"{row['ZSL']:.1f} / {row['GZSL']:.1f}" for value, row in means.iterrows()}


# -- Sec. IV-F


def frozen_blocks(records: Records, frozen: int, frozen_mkt: int, total: int) -> tuple[str, str]:
    """HRCF trains ``BLOCKS`` blocks of the ViT; how many MKT trains is in the record of notebook 05, if it is there."""
    ours = [total - BLOCKS]
    try:
        table = records.table(MAIN, "frozen blocks", ["method", "trained blocks"]).set_index("method")
        ours.append(total - int(table["trained blocks"]["MKT"]))
        other = f"; MKT trains {total - ours[1]}, {ours[1]} of {total} are frozen"
    except (Missing, KeyError):
        other = f" (MKT: notebook {MAIN[:2]})"
    same = "agrees" if ours == [frozen, frozen_mkt][: len(ours)] else "opposite"
    return f"ViT-B/16: HRCF trains the last block alone, {ours[0]} of {total} are frozen{other}", same


def trained_parameters(records: Records, method: str, as_in: str) -> tuple[str, str]:
    """Trained parameters of a method in a table ``parameters``, beside what the paper prints. Raises ``Missing``."""
    frame = records.table(PARTIAL, "parameters", ["method", "all"]).set_index("method")
    if method not in frame.index:
        raise Missing(f"the record of notebook {PARTIAL[:2]} has no row {method!r}")
    millions = float(frame.loc[method, "all"])
    return f"{millions:.6f}M", "agrees" if printed(1e6 * millions, as_in) else "opposite"


ANSWERS = {  # what answers a claim, from our records and what it needs; "effects", "none", "not yet": ``_answer``
    "lead": lead,
    "labels won": lambda records, *of: labels_won(gains(records, *of)),
    "largest gain": lambda records, least: largest_gain(gains(records), float(least)),
    "largest loss": lambda records, most: largest_loss(gains(records), float(most)),
    "best lam": lambda records, value: best(records, "lam", value),
    "best M": lambda records, value: best(records, "M", value),
    "frozen blocks": lambda records, *numbers: frozen_blocks(records, *map(int, numbers)),
    "count": trained_parameters,
}
