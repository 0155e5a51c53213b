r"""A row for every table and figure of the five papers: what it prints, what we have of it, and whether they compare.

``papers/published/index.csv`` names every one, with the file that holds its numbers or the reason why there is none.
"""

import pandas as pd

from hrcf_lib.report import claims, effects
from hrcf_lib.report.effects import PAPERS
from hrcf_lib.report.records import Missing, Records, printed
from hrcf_lib.studies.records import published

COMPARE = {  # how ours is held against an item: what its cell of directions says where nothing is compared
    "direction": "",  # directions of differences: another benchmark has other numbers
    "number": "",  # the number itself: a count that depends on no data
    "picture": "to look at",
    "no": "not comparable",
    "nothing": "nothing to measure",
}

LAST = {"not measured": 1, "not comparable": 2}  # directions whose effects come last


def index(paper: str) -> list[dict]:
    """The items of a paper, in its order: ``item``, ``shows``, ``files`` and so on.

    Raises ``KeyError`` for a paper that is not in ``PAPERS``.
    """
    frame = published("index").fillna("")
    return frame[frame["paper"] == {p: p for p in PAPERS}[paper]].to_dict("records")


def overview(paper: str, sources: list[Records]) -> pd.DataFrame:
    """One row of text per table and figure of a paper.

    The paper's and ours are the first difference of the item, or its first claim; measured ones come first. The
    direction counts all of them.
    """
    said, rows = claims.claims(sources, paper), []
    for entry in index(paper):
        planned = [effect for effect in effects.planned(paper) if effects.belongs(effect.item, entry["item"])]
        planned.sort(key=lambda effect: _place(effect, sources[0]))
        mentioned = said["where"].str.contains(rf"{entry['item']}\b", regex=True)
        own = said[mentioned] if entry["compare"] == "direction" else None
        cells = {"of the paper": entry["item"], "shows": entry["shows"]}
        cells["the paper (data in brackets)"] = _printed(entry, planned, own)
        for records in sources:
            ours, direction = _ours(entry, planned, own, records)
            cells |= {f"ours ({records.data})": ours, f"direction ({records.data})": direction}
        rows.append(cells | {"notebook": entry["notebook"][:2], "remark": entry["why"]})
    return pd.DataFrame(rows)


def _place(effect, records: Records) -> tuple[int, int]:
    """Measured effects before others, those on mAP before those on F1."""
    direction = effects.measure(effect, records)["direction"]
    return LAST.get(direction, 0), effects.SHOWN.index(effect.metric)


def _printed(entry: dict, planned, said) -> str:
    if planned:
        first = planned[0]
        text = f"{first.label}, {first.task} {first.metric}: {effects.printed(first)} ({first.dataset})"
        return _and_more(text, planned)
    if entry["counted"]:
        return entry["printed"]
    if said is not None:
        return _and_more("{claim}: {the paper (data in brackets)}".format_map(said.iloc[0]), said)
    return entry["reason"] or f"{len(published(entry['files'].split()[0]))} rows of numbers"


def _and_more(text: str, several) -> str:
    return f"{text}; {len(several) - 1} more" if len(several) > 1 else text


def _ours(entry: dict, planned, said, records: Records) -> tuple[str, str]:
    """Ours and its direction, as text."""
    if planned:
        found = [effects.measure(effect, records) for effect in planned]
        missing = pd.isna(found[0]["difference"])
        first = f"not measured yet: {found[0]['basis']}" if missing else effects.with_interval(found[0])
        return first, counted(one["direction"] for one in found)
    if entry["counted"]:
        return _number(entry, records)
    if said is not None:
        ours, direction = f"ours ({records.data})", f"direction ({records.data})"
        missing = said.iloc[0][direction] == "not measured"
        return f"{'not measured yet: ' if missing else ''}{said.iloc[0][ours]}", counted(said[direction])
    shown = {"picture": "its pictures", "no": "its own tables"}.get(entry["compare"])
    if shown and entry["notebook"]:
        return f"notebook {entry['notebook'][:2]}: {shown}", COMPARE[entry["compare"]]
    return "none here" if shown else "", COMPARE[entry["compare"]]


def _number(entry: dict, records: Records) -> tuple[str, str]:
    """Trained parameters, in millions, that the table ``parameters`` of a record has."""
    notebook, row = entry["notebook"], entry["counted"]
    try:
        frame = records.table(notebook, "parameters", ["method"]).set_index("method")
    except Missing as why:
        return f"not measured yet: {why}", "not measured"
    if row not in frame.index:
        return f"not measured yet: the record of notebook {notebook[:2]} has no row {row!r}", "not measured"
    millions = float(frame.loc[row, "all_M" if "all_M" in frame else "all"])
    same = "as printed" if printed(1e6 * millions, entry["printed"]) else "not as printed"
    if printed(1e6 * millions * 1e6 / 2**20, entry["printed"]):
        same = "as printed, where M is 2^20"
    return f"{millions:.6f}M", same


def counted(directions) -> str:
    """How often each direction occurs; one word where there is one kind alone.

    >>> counted(["agrees", "open", "agrees"]), counted(["open", "open"])
    ('2 agree, 1 open', 'open')
    """
    found = pd.Series(list(directions)).value_counts(sort=False)
    kinds = [kind for kind in (*effects.DIRECTIONS, effects.NONE) if kind in found]
    if len(kinds) == 1:
        return kinds[0]
    return ", ".join(f"{found[kind]} {'agree' if kind == 'agrees' and found[kind] > 1 else kind}" for kind in kinds)
