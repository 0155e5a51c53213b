r"""Which published rows were measured on the same images: printed precision and recall tell."""

import numpy as np
import pandas as pd

from hrcf_lib import results

HALF_STEP = 0.05  # P and R are printed to 0.1, in percent
MARGIN = 0.02  # of the reference: what is no other protocol yet, such as a few pictures that could not be had
SIZES = ("small", "large")  # both K of a row


def implied_positives(frame: pd.DataFrame, among: pd.DataFrame | None = None) -> pd.DataFrame:
    r"""How many positives an image a row's printed precision and recall imply, and whether others imply as many.

    .. math:: P@K = \frac{hits}{K n}, \quad R@K = \frac{hits}{positives} \quad \Rightarrow \quad
        \frac{K P}{R} = \frac{positives}{n}

    which depends on the test images and their annotation, not on the method. Printed P and R are within 0.05 of the
    measured ones, so each K gives an interval, from K (P - 0.05) / (R + 0.05) to K (P + 0.05) / (R - 0.05); the mean of
    both K lies between the means of these bounds. The reference is the median of the rows of the same dataset and task
    in ``among``; it lies between the medians of their lower and upper bounds. A row has another protocol where the gap
    between both intervals, which no rounding explains, is more than 2 % of the reference.

    Args:
        frame: ``results.published("hrcf_table1_sota")`` or ``("ovml_table1")``, or rows like theirs.
        among: rows whose median counts; by default HRCF's Table I, since that is what ours is held against.

    Returns:
        a copy of the frame with ``KP/R_small``, ``KP/R_large``, ``positives per image`` (their mean) and
        ``other protocol``; NaN and False where no P or R is printed.

    Raises:
        ValueError: a missing column, or a row whose dataset and task ``among`` has no P and R of.

    >>> row = {"dataset": "a", "task": "ZSL", "K_small": 3, "P_small": 31.5, "R_small": 50.3}
    >>> table = pd.DataFrame([row | {"K_large": 5, "P_large": 24.1, "R_large": 64.2}])
    >>> implied_positives(table, among=table)["positives per image"].round(2).item()
    1.88
    """
    among = results.published("hrcf_table1_sota") if among is None else among
    own, reference = _bounds(frame), _bounds(among).dropna().groupby(["dataset", "task"]).median()
    there = own.merge(reference, how="left", on=["dataset", "task"], suffixes=("", " reference"))
    lacking = there[there["value"].notna() & there["value reference"].isna()]
    if len(lacking):
        dataset, task = lacking.iloc[0][["dataset", "task"]]
        raise ValueError(f"no row of {dataset}, {task} prints P and R to compare with: give ``among``")
    gap = np.maximum(there["low"] - there["high reference"], there["low reference"] - there["high"])
    found = {f"KP/R_{size}": own[size].to_numpy() for size in SIZES} | {"positives per image": own["value"].to_numpy()}
    return frame.assign(**found, **{"other protocol": (gap > MARGIN * there["value reference"]).to_numpy()})


def _bounds(frame: pd.DataFrame) -> pd.DataFrame:
    """dataset, task, K P / R at both K, and the means over K of it (``value``) and its bounds (``low``, ``high``)."""
    needed = ["dataset", "task", *(f"{x}_{size}" for size in SIZES for x in "KPR")]
    if missing := [column for column in needed if column not in frame]:
        raise ValueError(f"the table has no column {missing[0]!r}: give hrcf_table1_sota, ovml_table1 or one like them")
    out = frame[["dataset", "task"]].copy()
    k, p, r = ({size: frame[f"{x}_{size}"] for size in SIZES} for x in "KPR")
    for size in SIZES:
        out[size] = k[size] * p[size] / r[size]
    out["value"] = sum(out[size] for size in SIZES) / 2
    out["low"] = sum(k[s] * (p[s] - HALF_STEP).clip(lower=0) / (r[s] + HALF_STEP) for s in SIZES) / 2
    out["high"] = sum(k[s] * (p[s] + HALF_STEP) / (r[s] - HALF_STEP).clip(lower=0) for s in SIZES) / 2
    return out
