r"""Table II of HRCF: HCG, RSA and RSS one after the other, in all eight combinations, and what each step is worth.

Four models are trained; RSS acts at test time alone, so that each is scored with and without it. The paper prints four
of the eight rows. ``SHORT`` are further ones about the levels and their merges, for ``mini_short``.
"""

from itertools import product

import pandas as pd

from hrcf_lib.studies import controls, records

WITHOUT_RSS = "without RSS"
VARIANTS = {  # trained: HCG and RSA
    "HRCF": {},
    "without HCG": {"hcg": False},
    "without RSA": {"rsa": False},
    "without HCG and RSA": {"hcg": False, "rsa": False},
}
PRINTED = "Eq. 14 as printed"  # the scores without their norms
SETTINGS = {  # at test time: RSS, and the form of Eq. 14
    "": {},
    WITHOUT_RSS: {"rss": False},
    PRINTED: {"normalize_at_test": False},
    f"{PRINTED}, {WITHOUT_RSS}": {"normalize_at_test": False, "rss": False},
}
RULES = {f"RSS by {rule}": controls.select_by(rule) for rule in controls.RULES} | controls.CONTROLS
STEPS = {  # the paper's steps from row to row, and the same ideas taken away from the whole
    "+ HCG (no RSA, no RSS)": (("without RSA", WITHOUT_RSS), ("without HCG and RSA", WITHOUT_RSS)),
    "+ RSA (with HCG, no RSS)": (("HRCF", WITHOUT_RSS), ("without RSA", WITHOUT_RSS)),
    "+ RSS (with HCG and RSA)": ("HRCF", ("HRCF", WITHOUT_RSS)),
    "HCG, in the whole": ("HRCF", "without HCG"),
    "RSA without HCG": (("without HCG", WITHOUT_RSS), ("without HCG and RSA", WITHOUT_RSS)),
    "RSS without HCG": ("without HCG", ("without HCG", WITHOUT_RSS)),
    "RSS without RSA": ("without RSA", ("without RSA", WITHOUT_RSS)),
}
_AS_PRINTED = {"": PRINTED, WITHOUT_RSS: f"{PRINTED}, {WITHOUT_RSS}"}
STEPS_AS_PRINTED = {  # the same steps, both sides scored by Eq. 14 as printed
    label: tuple((side, PRINTED) if isinstance(side, str) else (side[0], _AS_PRINTED[side[1]]) for side in pair)
    for label, pair in STEPS.items()
}
FORMS = {  # Eq. 14 as printed against scores divided by their norms, with and without RSS
    f"{name}, {'RSS' if with_rss else 'all regions'}": pair
    for name in VARIANTS
    for with_rss, pair in (
        (True, ((name, PRINTED), name)),
        (False, ((name, f"{PRINTED}, {WITHOUT_RSS}"), (name, WITHOUT_RSS))),
    )
}
SHORT = {"HRCF": {}, "without HCG": {"hcg": False}}
SHORT |= {f"level {l}": {"levels": (l,)} for l in (1, 2, 3)}
SHORT |= {"levels 1 and 2": {"levels": (1, 2)}, "levels 2 and 3": {"levels": (2, 3)}}
SHORT |= {"own convolutions": {"shared_merges": False}, "convolutions at rest": {"merge_lr": 0.0}}
SHORT |= {"convolutions start at random": {"merge_starts_at_zero": False}}

_NAMES = {(1, 1): "HRCF", (0, 1): "without HCG", (1, 0): "without RSA", (0, 0): "without HCG and RSA"}
_PAPER = ((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1))  # rows that it prints, in its order
_TABLE = "hrcf_table2_hcg_hsa"


def in_order(summary: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``compare.summary`` in the order of Table II: HCG, RSA, RSS as 0 or 1, and which the paper prints."""
    keys = list(product((0, 1), repeat=3))
    rows = summary.reindex([(_NAMES[h, r], "" if s else WITHOUT_RSS) for h, r, s in keys])
    marked = [(*key, "yes" if key in _PAPER else "") for key in keys]
    return rows.set_axis(pd.MultiIndex.from_tuples(marked, names=["HCG", "RSA", "RSS", "in the paper"]))


def paper_steps(metric: str) -> dict[str, float]:
    """The first labels of ``STEPS`` -> what the step is worth in the paper, in points of ``metric`` (ZSL, NUS-WIDE)."""
    steps = records.published(_TABLE)[metric].diff().iloc[1:]
    return dict(zip(STEPS, steps.tolist()))
