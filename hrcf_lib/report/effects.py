r"""The effects that papers print, what we measured of each, and whether the directions agree.

An effect is a difference of one metric between two variants, in percentage points. Each is a row of a table
``papers/published/*_effects.csv``, which names the rows of the paper's table and the runs of ours that are compared.
Ours has an interval; a direction is claimed only where the interval leaves 0 out.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from hrcf_lib.report.records import Missing, Records
from hrcf_lib.studies.records import published

PAPERS = {  # as the report calls them -> how their files begin
    "HRCF": "hrcf",
    "OVML-VLP": "ovml",
    "BiAM": "biam",
    "TRM-ML": "trmml",
    "semantic-aware": "semanticaware",
}
DIRECTIONS = ("agrees", "opposite", "open", "not measured", "not comparable")
NONE = "no direction"  # the paper's difference is within the rounding of what it prints
ROUNDING = 0.1  # two numbers with one decimal differ by less than this more than they seem to
COLUMNS = ["variant", "setting", "against", "against_setting", "split", "task", "metric", "difference", "low", "high"]
KEYS = ["item", "label", "task", "metric"]
SHOWN = ("mAP", "F1@3", "F1@5")  # metrics that effects are counted by


@dataclass(frozen=True)
class Effect:
    """One row of an effects table: the two variants of a paper, and where our record has them."""

    notebook: str  # whose record measures it
    variant: str
    setting: str
    against_variant: str
    against_setting: str
    item: str = ""  # of the paper: "Table II", "Fig. 4(a)"
    label: str = ""  # the effect in words
    task: str = "ZSL"
    metric: str = "mAP"
    dataset: str = "NUS-WIDE"  # what the paper measured it on
    at: float = np.nan  # percentage of labels known, where the paper's table has a column for each
    row: str = ""  # of the paper's table
    against: str = ""  # the other row
    printed: float = np.nan  # the metric in both rows; NaN where the paper shows a direction only
    printed_against: float = np.nan
    difference: float = np.nan  # where the paper prints the difference alone
    direction: float = np.nan  # +1 or -1 where nothing is printed
    interval: str = "bootstrap"  # or "seeds": runs are compared seed by seed, as the record has no bootstrap of them
    not_comparable: str = ""  # why no direction is claimed, whatever ours is

    @property
    def ours(self) -> tuple[str, str]:
        """(variant, setting) of the first variant in our record."""
        return self.variant, self.setting

    @property
    def other(self) -> tuple[str, str]:
        """(variant, setting) of the one it is compared with."""
        return self.against_variant, self.against_setting

    @property
    def paper(self) -> float:
        """The paper's difference in percentage points, or NaN."""
        return self.printed - self.printed_against if np.isnan(self.difference) else self.difference

    @property
    def sign(self) -> int:
        """The paper's direction: +1, -1, or 0 where its difference is within rounding."""
        if not np.isnan(self.direction):
            return int(self.direction)
        return int(np.sign(self.paper)) if abs(self.paper) > ROUNDING + 1e-9 else 0


@cache
def planned(paper: str = "HRCF") -> tuple[Effect, ...]:
    """The effects of a paper, as its table ``*_effects`` in ``papers/published`` has them."""
    frame = published(f"{PAPERS[paper]}_effects")
    texts = [name for name, kind in Effect.__annotations__.items() if kind is str]
    frame[texts] = frame[texts].astype(object).fillna("")
    return tuple(Effect(**row) for row in frame.to_dict("records"))


def of_item(item: str, paper: str = "HRCF") -> list[Effect]:
    """The planned effects of one table or figure of a paper."""
    return [effect for effect in planned(paper) if effect.item == item]


def belongs(part: str, item: str) -> bool:
    """Whether a part of a figure, or the whole, is the item.

    >>> belongs("Fig. 4(a)", "Fig. 4"), belongs("Table II", "Table I")
    (True, False)
    """
    return part == item or part.startswith(f"{item}(")


def runs_of(item: str, paper: str = "HRCF") -> dict[str, tuple[str, str, str]]:
    """Row of a paper's table -> (notebook, variant, setting) of ours: the first effect that names the row."""
    found = {}
    for e in of_item(item, paper):
        found.setdefault(e.row, (e.notebook, *e.ours))
        found.setdefault(e.against, (e.notebook, *e.other))
    return found


def direction(sign: int, low: float, high: float) -> str:
    """``agrees`` where the interval leaves 0 out on the side of ``sign``, ``opposite`` on the other, else ``open``."""
    if np.isnan(low) or np.isnan(high):
        return "not measured"
    if sign == 0:
        return NONE
    side = 1 if low > 0 else -1 if high < 0 else 0
    return "open" if side == 0 else "agrees" if side == sign else "opposite"


def measure(effect: Effect, records: Records) -> dict:
    """Our ``difference`` with ``low`` and ``high``, its ``direction``, and the ``basis`` of the interval.

    Where there is no difference, all three are NaN and ``basis`` says why. Each effect is measured
    once for these records.
    """
    if effect not in records.measured:
        records.measured[effect] = _measure(effect, records)
    return records.measured[effect]


def _measure(effect: Effect, records: Records) -> dict:
    try:
        by_seed = effect.interval == "seeds" or not _bootstrapped(effect, records)
        difference, low, high, basis = (over_seeds if by_seed else stored)(effect, records)
    except Missing as why:
        difference, low, high, basis = np.nan, np.nan, np.nan, str(why)
    found = {"difference": difference, "low": low, "high": high, "basis": basis}
    return found | {"direction": DIRECTIONS[-1] if effect.not_comparable else direction(effect.sign, low, high)}


def _bootstrapped(effect: Effect, records: Records) -> bool:
    """Whether a record has intervals of this metric at all: earlier ones have none of F1@5. Raises ``Missing``."""
    return effect.metric in set(records.table(effect.notebook, "differences", COLUMNS)["metric"])


def stored(effect: Effect, records: Records) -> tuple[float, float, float, str]:
    """From the table ``differences`` of a record, where either of the two may come first. Raises ``Missing``."""
    frame = records.table(effect.notebook, "differences", COLUMNS)
    frame = frame[(frame["split"] == "test") & (frame["task"] == effect.task) & (frame["metric"] == effect.metric)]
    frame = frame.set_index(["variant", "setting", "against", "against_setting"])[["difference", "low", "high"]]
    for one, two, sign in ((effect.ours, effect.other, 1), (effect.other, effect.ours, -1)):
        if (pair := (*one, *two)) in frame.index:
            difference, low, high = sign * frame.loc[[pair]].iloc[0].astype(float)
            return difference, min(low, high), max(low, high), "95 % bootstrap"
    pair = " against ".join(" ".join(filter(None, run)) for run in (effect.ours, effect.other))
    raise Missing(f"the record of notebook {effect.notebook[:2]} does not hold {pair}")


def over_seeds(effect: Effect, records: Records) -> tuple[float, float, float, str]:
    """From the runs: the mean over seeds, and the least and the greatest seed in place of an interval.

    One seed shows no spread: its bounds are infinite. Raises ``Missing``.
    """
    ours, other = (
        records.scores(effect.notebook, *run, effect.task)[effect.metric] for run in (effect.ours, effect.other)
    )
    by_seed = (ours - other).dropna()
    if len(by_seed) < 2:
        return float(by_seed.mean()), -np.inf, np.inf, "one seed"
    bounds = float(by_seed.min()), float(by_seed.max())
    return float(by_seed.mean()), *bounds, f"least and greatest of {len(by_seed)} seeds"


def frame(records: Records) -> pd.DataFrame:
    """The effects of all papers as numbers: paper, item, label, task, metric, data, printed, sign, and ``measure``."""
    return pd.DataFrame(
        {"paper": paper}
        | {key: getattr(e, key) for key in KEYS}
        | {"data": e.dataset, "printed": e.paper, "sign": e.sign}
        | measure(e, records)
        for paper in PAPERS
        for e in planned(paper)
    )


def count(effects: pd.DataFrame, by: str = "item") -> pd.DataFrame:
    """How many effects have each of the ``DIRECTIONS``: of each item or ``paper``, of all, and of all by metric.

    Those that the paper gives no direction are left out.
    """
    held = effects[effects["sign"] != 0]
    tables = [pd.crosstab(held[key], held["direction"]) for key in (by, "metric")]
    tables = [table.reindex(columns=list(DIRECTIONS), fill_value=0) for table in tables]
    table = tables[0].reindex(dict.fromkeys(held[by]))
    table.loc["all"] = table.sum()
    table = pd.concat([table, tables[1].reindex(SHOWN, fill_value=0).rename("all, {}".format)])
    return table.rename_axis("paper" if by == "paper" else "of the paper").rename_axis(None, axis=1)


# -- as text


def signed(difference: float) -> str:
    """A difference with its sign.

    >>> signed(-0.84)
    '−0.8'
    """
    return f"{difference:+.1f}".replace("-", "−")


def with_interval(found: dict) -> str:
    """A difference and its bounds in percentage points; bounds that are infinite are left out.

    >>> with_interval({"difference": -0.84, "low": -1.2, "high": -0.5})
    '−0.8 [−1.2, −0.5]'
    """
    text = signed(found["difference"])
    if np.isfinite(found["low"]):
        text += f" [{signed(found['low'])}, {signed(found['high'])}]"
    return text


def printed(effect: Effect) -> str:
    """What the paper says of an effect: its difference, or a direction where it prints no number."""
    if np.isnan(effect.paper):
        return "better" if effect.direction > 0 else "worse"
    return signed(effect.paper) if np.isnan(effect.difference) else f"{effect.difference:+g}".replace("-", "−")


def with_basis(found: dict) -> str:
    """What ``measure`` found, with the basis of its interval; or the basis alone, which says why there is none."""
    return found["basis"] if np.isnan(found["difference"]) else f"{with_interval(found)} ({found['basis']})"


def table(effects, sources: list[Records]) -> pd.DataFrame:
    """One row of text per effect: the paper's difference with its data, ours with its interval, and the direction."""
    rows = []
    for effect in effects:
        cells = {"of the paper": effect.item, "effect": effect.label, "task": effect.task, "metric": effect.metric}
        cells["the paper (data in brackets)"] = f"{printed(effect)} ({effect.dataset})"
        for records in sources:
            found = measure(effect, records)
            cells[f"ours ({records.data})"] = with_basis(found)
            cells[f"direction ({records.data})"] = found["direction"]
        rows.append(cells)
    return pd.DataFrame(rows)
