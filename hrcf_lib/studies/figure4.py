r"""Fig. 4 of HRCF: one setting at a time, trained at each value or changed at test time alone; what val chooses.

A *line* is the rows of one setting in a table of ``compare.table``, whose variants or settings are called "lam = 0.25".
Also how often the two sides of alternate training take turns (Eqs. 20-21), for the same number of steps.
"""

import pandas as pd

from hrcf_lib.config import DEFAULTS, Config, Phase

FIELDS = {"lam": "lam", "keep": "keep", "M": "prompt_vectors", "K": "topk"}  # as records and the paper call them
LABELS = {  # of a comparison of two values
    "lam": "λ = {:g} against {:g}",
    "printed lam": "λ = {:g} against {:g} (at test, Eq. 14 as printed)",
    "keep": "{:g} regions kept against {:g}",
}
TURNS = {  # what ``schedules`` is for: each against alternating, of the same number of steps
    "image side alone against alternating": ("image side alone", "alternating"),
    "both at once against alternating": ("both at once", "alternating"),
    "three alternations against one (longer)": ("three alternations, longer", "one alternation, longer"),
}


def changes(name: str, values, **more) -> dict[str, dict]:
    """ "name = value" -> the change of the config, beside ``more``: variants or settings of ``studies.run_all``.

    >>> changes("M", [4, 8])
    {'M = 4': {'prompt_vectors': 4}, 'M = 8': {'prompt_vectors': 8}}
    """
    field = FIELDS[name.split()[-1]]
    kind = type(DEFAULTS[field])  # 0 and 0.0 would be two runs
    return {f"{name} = {value:g}": {field: kind(value)} | more for value in values}


def line(table: pd.DataFrame, name: str, by: str = "setting") -> pd.DataFrame:
    """The rows of one setting, with its ``value``, of a table whose column ``by`` says "name = value".

    Raises ``ValueError`` where there is none.
    """
    own = table[table[by].str.startswith(f"{name} = ")]
    if not len(own):
        raise ValueError(f"no {by} {name!r} = ...: the table has {', '.join(dict.fromkeys(table[by]))}")
    return own.assign(value=own[by].str.removeprefix(f"{name} = ").astype(float))


def chosen(line: pd.DataFrame, tasks) -> float:
    """The value of the highest mAP on val, in the mean over ``tasks`` and seeds; test is not read."""
    on_val = line[line["split"].eq("val") & line["task"].isin(tasks)]
    return float(on_val.groupby("value")["mAP"].mean().idxmax())


def against(name: str, value: float, others, variant: str | None = None) -> dict[str, tuple]:
    """Pairs for ``compare.differences``: one value against each other one, by their label.

    With ``variant`` they are settings of that variant at test time, without it variants of their own.

    >>> against("lam", 0.25, [0, 0.25])
    {'λ = 0.25 against 0 (trained)': ('lam = 0.25', 'lam = 0')}
    >>> against("keep", 108, [140], "HRCF")
    {'108 regions kept against 140': (('HRCF', 'keep = 108'), ('HRCF', 'keep = 140'))}
    """
    side = lambda v: f"{name} = {v:g}" if variant is None else (variant, f"{name} = {v:g}")
    label = LABELS.get(name, f"{name} = {{:g}} against {{:g}}")
    how = " (trained)" if name == "lam" and variant is None else " (at test)" if name == "lam" else ""
    return {label.format(value, v) + how: (side(value), side(v)) for v in others if v != value}


def means(lines: dict[str, pd.DataFrame], metrics=("mAP",), tasks=("ZSL", "GZSL")) -> pd.DataFrame:
    """Means over seeds: a row per line and value, a column per split, task and metric."""
    parts = {
        name: own[own["task"].isin(tasks)].pivot_table(index="value", columns=["split", "task"], values=list(metrics))
        for name, own in lines.items()
    }
    return pd.concat(parts, names=["line"]).reorder_levels([1, 2, 0], axis=1)


def schedules(config: Config) -> tuple[dict[str, dict], dict[str, dict]]:
    """Changes of a config that train its two sides in other turns, by name: as many steps, and twice as many.

    *Alternating* is the config as it is, *image side alone* never trains prompts, *both at once* trains both sides by
    the image side's loss and curve. Three alternations of whole epochs need a longer run: the second two have twice the
    epochs of the image side and three times those of prompts.
    """
    image, text = (next(p.batch for p in config.phases if p.trains == side) for side in ("hcg", "prompts"))
    epochs = {side: sum(p.epochs for p in config.phases if p.trains == side) for side in ("hcg", "prompts")}
    e, q = epochs["hcg"], epochs["prompts"]
    half, turn = Phase("hcg", max(e // 2, 1), image), Phase("prompts", q, text)
    whole = Phase("hcg", 2 * half.epochs, image)
    short = {"image side alone": (Phase("hcg", e, image),), "both at once": (Phase("both", e, image),)}
    longer = {"one alternation, longer": (whole, Phase("prompts", 3 * q, text), whole)}
    longer["three alternations, longer"] = (half, turn) * 3 + (half,)
    as_changes = lambda orders: {name: {"phases": phases} for name, phases in orders.items()}
    return {"alternating": {}} | as_changes(short), as_changes(longer)
