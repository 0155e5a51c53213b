r"""A user's own list of labels beside a model's reference vocabulary: read, cleaned and compared once.

A list of names, or a file of them:

::

    labels.txt          one name per line; blank lines are skipped
    labels.csv, .tsv    a column ``label`` (or ``name``); other columns are ignored
    labels.json         a list of names

A ``Path`` is always a file; one without any ending is read as ``.txt``, one with another is refused. A string is a file
if it has one of these endings, whatever is on the disk; any other string is refused, so that a single label is always
written ``["owl"]``. Two names are the same label if the text tower reads them alike. R reference labels, K labels of a
user, V labels that are scored together.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from open_clip.tokenizer import get_clean_fn

from hrcf_lib.engine.messages import check_known, list_some, tell, user_path
from hrcf_lib.engine.tables import read_table
from hrcf_lib.labels import BROKEN, MISSING, check_names, clean_name, is_number
from hrcf_lib.vlp import check_length

SUFFIXES = (".txt", ".csv", ".tsv", ".json")
COLUMNS = ("label", "name")  # of a table
SEVERAL = re.compile(r"[\r\n\t]")  # within a name: it is several
QUOTED = re.compile('"[^"]*(?:""[^"]*)*"')
read_alike = get_clean_fn("lower")  # what CLIP's tokenizer makes of a text: Unicode repaired, white space, lower case


@dataclass(frozen=True)
class Vocabulary:
    """All labels that are scored together, and which of them the user asks for."""

    labels: list[str]  # the user's K labels, cleaned, in their order and spelling
    reference: list[str]  # R reference labels, none for a model without a reference vocabulary
    new: list[str]  # those of ``labels`` that are not in the reference vocabulary
    columns: list[int]  # the place of each of ``labels`` among ``names``

    @property
    def names(self) -> list[str]:
        """The V labels that are scored together: reference labels, then the new ones."""
        return self.reference + self.new

    def columns_of(self, labels: Iterable[str]) -> list[int]:
        """The places of some of ``labels`` among ``names``. Raises ``ValueError`` for a name that is not in it."""
        labels, column = list(labels), dict(zip(self.labels, self.columns))
        check_known(labels, list(column), "no such label in this vocabulary:")
        return [column[name] for name in labels]


def beside_reference(model, labels) -> Vocabulary:
    r"""A user's labels (a list, a file, or a ``Vocabulary`` of this model already) beside the reference vocabulary.

    A label that the text tower reads as it reads a reference label is that label, the first one if several are read
    alike. Raises as ``read_labels``.
    """
    if isinstance(labels, Vocabulary):
        return labels
    labels, reference = read_labels(labels), list(model.reference_labels)
    column = {read_alike(name): k for k, name in reversed(list(enumerate(reference)))}  # the first of those read alike
    own = [label for label in labels if read_alike(label) not in column]
    column |= {read_alike(label): k for k, label in enumerate(own, len(reference))}
    return Vocabulary(labels, reference, own, [column[read_alike(label)] for label in labels])


def read_labels(labels) -> list[str]:
    r"""The names of a list or of a file, in their order and spelling; white space is cleaned as in ``check_names``. A
    set, which has no order, is sorted.

    Raises ``ValueError`` for an empty list, a blank name, an item that is not a string, names that the text tower reads
    alike ("Café" and "café", composed or not), a bare string, or a file that cannot be read, and ``FileNotFoundError``.
    Warns of names in a file that look like something else, such as comments or numbers (``_doubtful``).
    """
    if isinstance(labels, os.PathLike) or (isinstance(labels, str) and labels.lower().endswith(SUFFIXES)):
        names, places = _read_file(user_path(labels, "the file of labels"))
    elif isinstance(labels, str):
        several = [name for part in re.split("[,;\\n]", labels) if (name := clean_name(part))]
        several = f", {several!r:.90} for several" if len(several) > 1 else ""
        raise ValueError(
            f"labels is the single string {labels[:60]!r}, not a list of names; write [{labels[:60]!r}] for one "
            f"label{several}, or the name of a file that ends in {', '.join(SUFFIXES)}"
        )
    else:
        names = check_names(sorted(labels, key=str) if isinstance(labels, (set, frozenset)) else labels)
        places = [f"labels[{i}]" for i in range(len(names))]
    found: dict[str, list[str]] = {}
    for name, place in zip(names, places):
        found.setdefault(read_alike(name), []).append(f"{name!r} ({place})")
    if twice := [" and ".join(same) for same in found.values() if len(same) > 1]:
        raise ValueError(f"read alike by the text tower: {list_some(twice, '; ')}; keep one of each")
    return names


def _read_file(path: Path) -> tuple[list[str], list[str]]:
    """Names, and where each one is."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a folder, or a FIFO or a device, not a file of labels: name a file")
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path} of labels: correct the path, or write [{str(path)!r}] if that is the label itself"
        )
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        found = _table(path, "," if suffix == ".csv" else "\t")
    elif suffix == ".json":
        found = _json(path)
    elif suffix in (".txt", ""):
        found = _lines(path)
    else:
        raise ValueError(f"{path} ends in {suffix}: give a file of labels that ends in {', '.join(SUFFIXES)}")
    if several := [f"{place}: {text.strip()!r:.60}" for text, place in found if SEVERAL.search(text.strip())]:
        raise ValueError(f"{list_some(several)}: a line end or a tab within a name: split it into two entries")
    rows = [(name, place) for text, place in found if (name := clean_name(text))]
    if not rows:
        raise ValueError(f"{path} holds no label; write one name per line")
    if lists := [f"{place}: {name!r}" for name, place in rows if name[0] in "[{"]:
        raise ValueError(f"{list_some(lists, '; ')}: a list, not a name; write one name per line, or save it as .json")
    if broken := [f"{place}: {name!r}" for name, place in rows if BROKEN.search(name)]:
        raise ValueError(f"{list_some(broken)}, with characters that no text has: save {path} as text in UTF-8")
    for names, why in _doubtful([name for name, _ in rows], suffix in (".txt", "")):
        tell(f"{path}: {list_some(map(repr, names))}: {why}; each is read as a label as it stands")
    return [name for name, _ in rows], [place for _, place in rows]


NUMBERED = re.compile(r"([-*\u2022]|\(?\d+[.:)]?|n\d{8})\s")  # "1. owl", "- owl", "n01440764 owl"


def _doubtful(names: list[str], lines: bool):
    """(names, what they look like) of labels in a file that look like something else; ``lines``: of a plain text."""
    if lines and names[0].lower() in ("label", "labels", "name", "names", "class", "classes"):
        yield names[:1], "the name of a column? take it out"
    if comments := [name for name in names if name[0] == "#" or name.startswith("//")]:
        yield comments, "a comment? take it out"
    if all(map(is_number, names)):
        yield names, "numbers, where names should be"
    elif all(map(NUMBERED.match, names)):
        yield names, "numbers or signs in front of the names? take them out"
    if joined := [name for name in names if "|" in name]:
        yield joined, "several names, joined by '|'? write one per line"
    if quoted := [name for name in names if name[0] in "'\"" or name.rstrip(",;")[-1:] == '"']:
        yield quoted, "quotation marks around a name? take them out"
    if missing := [name for name in names if name.lower() in MISSING]:
        yield missing, "a missing name? take it out"


def _table(path: Path, delimiter: str) -> list[tuple[str, str]]:
    sign = "comma" if delimiter == "," else "tab"
    rows = read_table(path, delimiter, f"put cells that hold a {sign} in double quotes")
    column = rows.place(clean_name, COLUMNS[0])
    column = rows.place(clean_name, *COLUMNS) if column is None else column
    if column is None and rows.header:
        raise ValueError(f"{path} has the columns {list_some(rows.header)}; call the one of the names 'label'")
    return [(row[column], f"{path.name}, line {line}") for line, row in rows]


def _json(path: Path) -> list[tuple[str, str]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not JSON ({error}); write a list of names, as in ["owl", "night"]') from error
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        if isinstance(values, list):
            what = list_some((f"item {i} is {v!r:.60}" for i, v in enumerate(values) if not isinstance(v, str)), most=3)
        else:
            what = f"it holds a {type(values).__name__}"
        raise ValueError(f'{path}: {what}; write a list of names, as in ["owl", "night"]')
    return [(value, f"{path.name}, item {i}") for i, value in enumerate(values)]


def _lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a text. Names that all stand in double quotes are taken out of them; a table is refused, and commas
    or semicolons in every line are told."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 with one label per line ({error}); save it as one") from error
    found = [(line.strip(), f"{path.name}, line {i}") for i, line in enumerate(lines, 1) if clean_name(line)]
    if tabs := [place for text, place in found if "\t" in text]:
        raise ValueError(f"{list_some(tabs)}: a tab within a name; is it a table? call it {path.stem}.tsv")
    if found and all(QUOTED.fullmatch(text) for text, _ in found):
        return [(text[1:-1].replace('""', '"'), place) for text, place in found]
    for sign, what in ((",", "commas"), (";", "semicolons")):
        if found and all(sign in text for text, _ in found):
            lines = "its line" if len(found) == 1 else "every line"
            tell(
                f"{path}: {lines} holds {what}, and is one label, such as {clean_name(found[0][0])[:60]!r}; write one "
                f"name per line, or call a table {path.stem}.csv"
            )
    return found


def check_lengths(model, labels: list[str]) -> None:
    """Raise ``ValueError`` naming all labels that are too long for the text tower: nothing is cut off silently."""
    faults = []
    for label in labels:
        try:
            check_length(label, len(model.vlp.tokenizer.encode(label)) + 2, model.vlp.context_length)  # start and end
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError(list_some(faults, "; ", most=3))
