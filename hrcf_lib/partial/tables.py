"""Tables over p, the share of training labels that are known, as papers on partial labels print them."""

import pandas as pd

from hrcf_lib import baselines
from hrcf_lib.config import Config
from hrcf_lib.figures import need
from hrcf_lib.names import check_known

SHARES = tuple(p / 10 for p in range(1, 10))  # of the published tables
AT = " @ "  # between a method's name and its p, in the name of a variant

METHODS = {"ASL, unknown absent": "asl", "ASL": "asl", "CoOp": "coop", "DualCoOp": "dual_coop"}
METHODS |= {"Semantic-aware": "semantic_aware", "TRM-ML": "trm_ml", "HRCF": "hrcf"}


def methods(base: Config, categories, single: bool = False) -> dict[str, Config]:
    r"""Title -> config of every method that is compared where labels are missing, in the experiment of ``base``.

    ``categories`` are the names of the seen labels (``fit.categories``). With ``single`` positives no absent label is
    known, and a sigmoid learns nothing of present ones alone: methods then take unknown labels for absent, TRM-ML those
    that have no pseudo-label, but for the row called ASL. HRCF's ranking loss has no pair to rank.

    >>> from hrcf_lib import config
    >>> list(methods(config.mini(), ["owl", "bus"]))[:3]
    ['ASL, unknown absent', 'ASL', 'CoOp']
    """
    found = {}
    for title, name in METHODS.items():
        own = {} if name == "hrcf" else {"categories": tuple(categories)}
        if title == "ASL, unknown absent" or single and title not in ("ASL", "HRCF"):
            own["unknown"] = "negative"
        found[title] = baselines.configure(name, base.replace(single_positive=True) if single else base, **own)
    return found


def variants(configs: dict[str, Config], shares=SHARES) -> dict[str, Config]:
    """name -> config of a method, to "name @ p" -> the same at each share: what ``studies.run_all`` takes.

    >>> from hrcf_lib import config
    >>> list(variants({"HRCF": config.mini()}, (0.1, 0.5)))
    ['HRCF @ 0.1', 'HRCF @ 0.5']
    """
    return {f"{name}{AT}{p:g}": own.replace(known=p) for name, own in configs.items() for p in shares}


def over_known(frame: pd.DataFrame, split: str = "test", task: str = "seen") -> pd.DataFrame:
    r"""Rows of ``comparison.table`` whose variants ``variants`` named: those of a split and task, with ``method`` and
    ``known`` (p) in the place of ``variant``.

    Raises ``ValueError`` for a missing column, an unknown split or task, or a variant without its p.
    """
    need(frame, ["variant", "split", "task", "seed", "mAP"], "over_known")
    check_known([split], list(dict.fromkeys(frame["split"])), "no rows of split")
    check_known([task], list(dict.fromkeys(frame["task"])), "no rows of task")
    rows = frame[frame["split"].eq(split) & frame["task"].eq(task)]
    odd = rows.loc[~rows["variant"].str.contains(AT, regex=False), "variant"]
    if len(odd):
        raise ValueError(f"variant {odd.iloc[0]!r} does not say its p: name it as variants() does, 'method{AT}0.1'")
    method, known = rows["variant"].str.rsplit(AT, n=1, expand=True).T.to_numpy()
    rows = rows.drop(columns="variant").reset_index(drop=True)
    rows.insert(0, "method", method)
    rows.insert(1, "known", pd.Series(known).astype(float))
    return rows


def by_share(rows: pd.DataFrame, metric: str = "mAP") -> pd.DataFrame:
    r"""A row a method and a column for each p and for the average over them, "mean ± spread" over seeds.

    ``rows`` are those of ``over_known``. The average is taken for each seed, then its spread. Methods keep their order.
    Raises ``ValueError`` for a metric that is not there, or a method that lacks a p or seed that others have.
    """
    need(rows, ["method", "known", "seed", metric], "by_share")
    wide = rows.pivot_table(index=["method", "seed"], columns="known", values=metric, sort=False).sort_index(axis=1)
    lacking = wide.isna().any(axis=1)
    if lacking.any() or wide.groupby("method").size().nunique() > 1:
        who = wide.index[lacking][0][0] if lacking.any() else wide.groupby("method").size().idxmin()
        raise ValueError(f"{who!r} has not been run at every p and seed of the others: averages would not compare")
    wide["avg"] = wide.mean(axis=1)
    grouped = wide.groupby("method", sort=False)
    mean, spread = grouped.mean(), grouped.std().fillna(0.0)
    text = mean.map("{:.1f}".format) + " ± " + spread.map("{:.1f}".format)
    return text if wide.groupby("method").size().max() > 1 else mean.round(1)


def published(frame: pd.DataFrame) -> pd.DataFrame:
    """A published table over p in long form: source (if it has one), dataset, method, known, mAP; numbers as printed.

    ``frame`` is such as ``results.published("partial_labels_map")``, with a column for each percentage.
    """
    shares = [column for column in frame.columns if column.isdigit()]
    keys = [column for column in ("source", "dataset", "method") if column in frame]
    long = frame.melt(keys, shares, var_name="known", value_name="mAP")
    return long.assign(known=long["known"].astype(int) / 100)
