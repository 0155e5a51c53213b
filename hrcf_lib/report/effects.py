r"""The paper's effects, what we measured of each, and whether the directions agree.

An effect is a difference of one metric between two variants, in percentage points. Ours has an interval; a direction is
claimed only where the interval leaves 0 out.
"""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hrcf_lib.report.records import Missing, Records, names
from hrcf_lib.studies import records as results

DIRECTIONS = ("agrees", "opposite", "open", "not measured")
NONE = "no direction"  # the paper's difference is within the rounding of what it prints
ROUNDING = 0.1  # two numbers with one decimal differ by less than this more than they seem to
COLUMNS = ["variant", "setting", "against", "against_setting", "split", "task", "metric", "difference", "low", "high"]
FEW = "20"  # regions: the fewest that notebook 09 keeps
KEYS = ["item", "label", "task", "metric"]


@dataclass(frozen=True)
class Effect:
    """What the paper says of one difference, and where ours is."""

    item: str  # of the paper: "Table II", "Fig. 4(a)"
    label: str
    record: str  # notebook that measures it
    ours: tuple[str, str]  # (variant, setting) in its record
    against: tuple[str, str]
    paper: float = np.nan  # difference in percentage points; NaN where it prints a direction only
    sign: int | None = None  # of the direction; by default that of ``paper``, 0 within ROUNDING
    task: str = "ZSL"
    metric: str = "mAP"
    data: str = "NUS-WIDE"  # what the paper measured it on
    by_seed: bool = False  # runs are compared seed by seed, where the record has no bootstrap of the difference

    @property
    def direction(self) -> int:
        """+1, -1, or 0 where the paper shows none."""
        if self.sign is not None:
            return self.sign
        return int(np.sign(self.paper)) if abs(self.paper) > ROUNDING + 1e-9 else 0


def planned() -> list[Effect]:
    """Every effect that the paper prints and that ours can be held against, numbers from ``papers/published``."""
    return [*_table1(), *_table2(), *_table3(), *_table4(), *_table5(), *_figure4()]


def _table1():
    frame = results.published("hrcf_table1_sota").query("dataset == 'NUS-WIDE'").set_index(["method", "task"])["mAP"]
    for method, task in frame.index:
        if method != "HRCF":
            paper = frame["HRCF", task] - frame[method, task]
            yield Effect(
                "Table I", f"HRCF against {method}", names()["05"], ("HRCF", ""), (method, ""), paper, task=task
            )


STEPS = {  # (HCG, RSA, RSS) of Table II -> (variant, setting), and what the row adds to the one before
    (0, 0, 0): (("without HCG and RSA", "without RSS"), ""),
    (1, 0, 0): (("without RSA", "without RSS"), "HCG added"),
    (1, 1, 0): (("HRCF", "without RSS"), "RSA added"),
    (1, 1, 1): (("HRCF", ""), "RSS added"),
}
PROMPTS = {
    "Fixed Prompt": "fixed",
    "Tuning Embedding": "tuning",
    "Learnable Prompt": "learnable",
    "Learnable + Fixed": "hybrid",
}


def _table2():
    frame = results.published("hrcf_table2_hcg_hsa").set_index(["HCG", "RSA", "RSS"])["mAP"]
    for before, after in zip(STEPS, list(STEPS)[1:]):
        (ours, label), (against, _) = STEPS[after], STEPS[before]
        yield Effect("Table II", label, names()["06"], ours, against, frame[after] - frame[before])


def _table3():
    frame = results.published("hrcf_table3_prompts").set_index("prompt")
    for prompt, variant in PROMPTS.items():
        for metric in ("mAP", "F1@3") if variant == "fixed" else ("mAP",) if variant != "hybrid" else ():
            paper = frame.loc["Learnable + Fixed", metric] - frame.loc[prompt, metric]
            label, both = f"hybrid against {variant} prompt", (("hybrid", ""), (variant, ""))
            yield Effect("Table III", label, names()["07"], *both, paper, metric=metric)


def _table4():
    frame = results.published("hrcf_table4_distillation").set_index(["model", "task"])["mAP"]
    for task in ("ZSL", "GZSL"):
        paper = frame["HRCF", task] - frame["HRCF (w/o L_kd)", task]
        yield Effect("Table IV", "distillation", names()["08"], ("HRCF", ""), ("weight 0", ""), paper, task=task)


def _table5():
    frame = results.published("hrcf_table5_preclip").set_index(["model", "task"])["mAP"]
    for task in ("ZSL", "GZSL"):
        paper = frame["HRCF", task] - frame["Pre-CLIP", task]
        both = (("HRCF", ""), ("plain VLP", ""))
        about = {"task": task, "by_seed": True}
        yield Effect("Table V", "HRCF against the plain VLP", names()["04"], *both, paper, **about)


def claim(where: str, column: str = "value") -> str:
    """What a figure's row of the text claims holds that names a number."""
    claims = results.published("hrcf_text_claims")
    return claims[(claims["where"] == where) & (claims["value"] != "direction only")][column].iloc[0]


def chosen(where: str) -> list[str]:
    """The numbers that a claim's value holds, the paper's choice first: 0.25; 108 and 140; 8."""
    return re.findall(r"[\d.]+", claim(where))


def _figure4():
    best, (kept, every), m = chosen("Fig. 4(a)")[0], chosen("Fig. 4(b)"), chosen("Fig. 4(c)")[0]
    for end in (0, 1):
        both = (("HRCF", f"lam = {best}"), ("HRCF", f"lam = {end}"))
        yield Effect("Fig. 4(a)", f"λ = {best} against {end}", names()["09"], *both, sign=1)
    for keep in (every, FEW):
        both = (("HRCF", f"keep = {kept}"), ("HRCF", f"keep = {keep}"))
        about = {"sign": 1, "task": "GZSL", "data": "Open Images"}
        yield Effect("Fig. 4(b)", f"{kept} regions kept against {keep}", names()["09"], *both, **about)
    for other in re.findall(r"\d+", claim("Fig. 4(c)", "claim")):
        if other != m:
            yield Effect(
                "Fig. 4(c)", f"M = {m} against {other}", names()["09"], (f"M = {m}", ""), (f"M = {other}", ""), sign=1
            )


def direction(sign: int, low: float, high: float) -> str:
    """``agrees`` where the interval leaves 0 out on the side of ``sign``, ``opposite`` on the other, else ``open``."""
    if np.isnan(low) or np.isnan(high):
        return "not measured"
    if sign == 0:
        return NONE
    side = 1 if low > 0 else -1 if high < 0 else 0
    return "open" if side == 0 else "agrees" if side == sign else "opposite"


def measure(effect: Effect, records: Records) -> dict:
    """Our difference with its interval, its direction, and what the interval is; in words why where there is none."""
    try:
        difference, low, high, basis = (over_seeds if effect.by_seed else stored)(effect, records)
        return {
            **{"difference": difference, "low": low, "high": high},
            **{"direction": direction(effect.direction, low, high), "basis": basis},
        }
    except Missing as why:
        return dict.fromkeys(("difference", "low", "high"), np.nan) | {"direction": "not measured", "basis": str(why)}


def stored(effect: Effect, records: Records) -> tuple[float, float, float, str]:
    """From the table ``differences`` of a record, where either of the two may come first. Raises ``Missing``."""
    frame = records.table(effect.record, "differences", COLUMNS)
    frame = frame[(frame["split"] == "test") & (frame["task"] == effect.task) & (frame["metric"] == effect.metric)]
    for (variant, setting), (other, other_setting), sign in (
        (effect.ours, effect.against, 1),
        (effect.against, effect.ours, -1),
    ):
        found = frame[(frame["variant"] == variant) & (frame["setting"] == setting)]
        found = found[(found["against"] == other) & (found["against_setting"] == other_setting)]
        if len(found):
            low, high = sorted(sign * found.iloc[0][["low", "high"]].astype(float))
            return sign * float(found.iloc[0]["difference"]), low, high, "95 % bootstrap"
    pair = " against ".join(" ".join(filter(None, names)) for names in (effect.ours, effect.against))
    raise Missing(f"the record of notebook {effect.record[:2]} does not hold {pair}")


def over_seeds(effect: Effect, records: Records) -> tuple[float, float, float, str]:
    """From the runs: the mean over seeds, and the least and the greatest seed in place of an interval.

    One seed says nothing about a spread: its bounds are infinite. Raises ``Missing``.
    """
    ours, other = (
        records.scores(effect.record, *which, effect.task)[effect.metric] for which in (effect.ours, effect.against)
    )
    by_seed = (ours - other).dropna()
    if len(by_seed) < 2:
        return float(by_seed.mean()), -np.inf, np.inf, "one seed"
    return (
        float(by_seed.mean()),
        float(by_seed.min()),
        float(by_seed.max()),
        f"least and greatest of {len(by_seed)} seeds",
    )


def frame(records: Records) -> pd.DataFrame:
    """All effects: item, label, task, metric, data (the paper's), paper, then ours as in ``measure``; numbers."""
    rows = [
        {**{key: getattr(e, key) for key in (*KEYS, "data", "paper")}, "sign": e.direction, **measure(e, records)}
        for e in planned()
    ]
    return pd.DataFrame(rows)


def count(effects: pd.DataFrame) -> pd.DataFrame:
    """How many effects of each item agree, are opposite, open or not measured; without those that have no direction."""
    held = effects[effects["sign"] != 0]
    table = pd.crosstab(held["item"], held["direction"]).reindex(columns=list(DIRECTIONS), fill_value=0)
    table = table.reindex(dict.fromkeys(held["item"]))
    table.loc["all"] = table.sum()
    return table.rename_axis("of the paper").rename_axis(None, axis=1)
