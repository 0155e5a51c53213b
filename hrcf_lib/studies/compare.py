"""Tidy frames of the runs of ``studies.run_all``: all rows, means over seeds, and paired differences."""

import math
from pathlib import Path

import pandas as pd

from hrcf_lib.engine.messages import check_known
from hrcf_lib.studies import bootstrap, records

KEYS = ["setting", "split", "task"]  # of a row, within a run


def table(outcomes: dict) -> pd.DataFrame:
    """All rows of all runs, tidy: variant, seed, setting, split, task, then the metrics in percent."""
    parts = [o.table.assign(variant=variant, seed=seed) for (variant, seed), o in outcomes.items()]
    frame = pd.concat(parts, ignore_index=True)
    first = ["variant", "seed", *KEYS]
    return frame[[*first, *(c for c in frame.columns if c not in first)]]


def summary(frame: pd.DataFrame, split: str = "test", metrics=("F1@3", "F1@5", "mAP"), tasks=("ZSL", "GZSL")):
    """``mean ± standard deviation`` over seeds of a ``table``: rows (variant, setting), columns (task, metric)."""
    frame = frame[frame["split"].eq(split) & frame["task"].isin(tasks)]
    wide = frame.pivot(index=["variant", "setting", "seed"], columns="task", values=list(metrics)).swaplevel(axis=1)
    wide = wide[[(task, metric) for task in tasks for metric in metrics]]
    parts = {
        key: records.mean_and_spread([row.droplevel("seed") for _, row in part.groupby("seed")])
        for key, part in wide.groupby(["variant", "setting"])
    }
    order = dict.fromkeys(zip(frame["variant"], frame["setting"]))
    return pd.concat([parts[key] for key in order])


def read_comparison(folder: str | Path) -> pd.DataFrame:
    """The rows of every run below a folder, tidy: run, preset, changes, seed, setting, split, task, metrics, origin."""
    parts = []
    for path in sorted(Path(folder).rglob("record.json")):
        record = records.read_record("record", path.parent)
        about = {name: record[name] for name in ("seed", "commit", "device", "date", "seconds")}
        words = ", ".join(f"{name} = {value}" for name, value in record["parameters"].items() if name != "seed")
        first = {"run": path.parent.name, "preset": record["config"]["name"], "changes": words}
        parts.append(pd.DataFrame({**first, **about}, index=[0]).merge(record["tables"]["metrics"], how="cross"))
    if not parts:
        raise FileNotFoundError(f"{folder} holds no record.json of a run: train some with studies.run first")
    return pd.concat(parts, ignore_index=True)


def differences(outcomes: dict, pairs, metrics=("mAP", "F1@3"), level: float = 0.95) -> pd.DataFrame:
    r"""Paired differences with their bootstrap interval over images and seeds, in percentage points.

    ``pairs``: ((variant, setting), (variant, setting)), of which the first is compared with the second; a name alone
    stands for (name, ""). Columns: variant, setting, against, against_setting, split, task, metric, difference, low,
    high, verdict (``better``, ``worse`` or ``open``), seeds. Only test splits and the tasks of both; mAP leaves out
    labels without positives. Raises ``ValueError`` for a pair that was not run.
    """
    rows = []
    for pair in pairs:
        (a, at_a), (b, at_b) = map(named, pair)
        _check_known(outcomes, (a, at_a), (b, at_b))
        seeds = [seed for variant, seed in outcomes if variant == a and (b, seed) in outcomes]
        ours, others = [outcomes[a, s].resampled for s in seeds], [outcomes[b, s].resampled for s in seeds]
        for setting, split, task, metric in ours[0]:
            there = (at_b, split, task, metric)
            if setting == at_a and metric in metrics and there in others[0]:
                found = ([r[setting, split, task, metric] for r in ours], [r[there] for r in others])
                row = {"variant": a, "setting": at_a, "against": b, "against_setting": at_b, "split": split}
                row |= {"task": task, "metric": metric} | bootstrap.difference_row(*found, level, scale=100)
                rows.append(row | {"seeds": len(seeds)})
    return pd.DataFrame(rows)


def labelled(differences: pd.DataFrame, pairs: dict, split: str, metric: str, paper=None, tasks=("ZSL", "GZSL")):
    """The rows of one split and metric that ``figures.effects`` draws: one label per pair, one group per task.

    ``pairs``: label -> pair, as given to ``differences``; ``paper``: label -> the paper's difference, on ZSL, or
    (label, task) -> its difference on that task.
    """
    rows, paper = [], paper or {}
    for task in tasks:
        for label, pair in pairs.items():
            row = differences[is_of(differences, pair) & differences["split"].eq(split) & differences["task"].eq(task)]
            printed = paper.get((label, task), paper.get(label, math.nan) if task == "ZSL" else math.nan)
            rows.append(row[row["metric"].eq(metric)].assign(label=label, group=task, paper=printed))
    return pd.concat(rows, ignore_index=True) if rows else differences.head(0).assign(label=[], group=[], paper=[])


def said(differences: pd.DataFrame, pairs: dict, metric: str = "mAP", paper=None, split="test", tasks=("ZSL", "GZSL")):
    r"""Sentences of ``differences``: text, one line per pair and task, as it stands under a figure or in a conclusion.

    ``pairs`` and ``paper`` as in ``labelled``. Points of ``metric``, the interval in brackets, the verdict.

    >>> row = {"variant": "HRCF", "setting": "", "against": "MKT", "against_setting": "", "split": "test"}
    >>> row |= {"task": "ZSL", "metric": "mAP", "difference": 1.24, "low": 0.5, "high": 1.9, "verdict": "better"}
    >>> print(said(pd.DataFrame([row]), {"against MKT": ("HRCF", "MKT")}, paper={"against MKT": 6.1}, tasks=("ZSL",)))
    against MKT, ZSL: +1.2 [+0.5, +1.9] mAP, better (the paper: +6.1)
    """
    lines = []
    for _, row in labelled(differences, pairs, split, metric, paper, tasks).iterrows():
        printed = "" if pd.isna(row["paper"]) else f" (the paper: {row['paper']:+.1f})"
        lines.append(f"{row['label']}, {row['group']}: {bootstrap.in_words(row, metric)}{printed}")
    return "\n".join(lines)


def published_pairs(table: str, notebook: str, variants, metric: str = "mAP") -> tuple[dict, dict]:
    """Pairs and the paper's differences for ``said`` and ``labelled``, out of ``papers/published/<table>.csv``.

    Such a table of effects names the notebook and the variants that answer each line; pairs are those of which both
    variants are among ``variants``. Returns label -> pair, and (label, task) -> the difference of ``metric`` in
    percentage points, where the paper prints one.
    """
    frame = records.published(table)
    frame = frame[frame["notebook"].eq(notebook) & frame["metric"].eq(metric)]
    frame = frame[frame["variant"].isin(variants) & frame["against_variant"].isin(variants)]
    text = frame[["setting", "against_setting"]].astype(object).fillna("")
    sides = zip(frame["variant"], text["setting"]), zip(frame["against_variant"], text["against_setting"])
    pairs = dict(zip(frame["label"], zip(*sides)))
    printed = frame["difference"].fillna(frame["printed"] - frame["printed_against"])
    told = zip(frame["label"], frame["task"], printed)
    return pairs, {(label, task): points for label, task, points in told if not pd.isna(points)}


def named(side) -> tuple[str, str]:
    """(variant, setting) of a side of a pair: a name alone is that as trained."""
    return (side, "") if isinstance(side, str) else side


def is_of(frame: pd.DataFrame, pair):
    """Which rows of ``differences`` are of a pair."""
    sides = ["variant", "setting", "against", "against_setting"]
    return frame[sides].eq(pd.Series([*named(pair[0]), *named(pair[1])], sides)).all(axis=1)


def _check_known(outcomes: dict, *asked: tuple[str, str]) -> None:
    check_known([variant for variant, _ in asked], list(dict.fromkeys(v for v, _ in outcomes)), "no run of")
    for variant, setting in asked:
        known = {key[0] for (v, _), o in outcomes.items() if v == variant for key in o.resampled}
        check_known([setting], sorted(known), f"{variant!r} has no setting")
