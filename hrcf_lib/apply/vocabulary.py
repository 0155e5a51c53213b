r"""A user's own list of labels: a list of names, or a file of them; cleaned, and compared as the text tower reads them.

::

    labels.txt          one name a line; blank lines are passed over
    labels.csv          a column ``label`` (or ``name``); further columns are passed over

A ``Path`` is always a file. A string is one where it ends in ``.txt`` or ``.csv``, whatever lies on the disk; any other
string is refused, so that one label is always written ``["owl"]``.
"""

import os
from pathlib import Path

import pandas as pd
from open_clip.tokenizer import get_clean_fn

from hrcf_lib.engine.messages import list_some
from hrcf_lib.labels import check_names
from hrcf_lib.vlp import check_length

SUFFIXES = (".txt", ".csv")
COLUMNS = ("label", "name")  # of a CSV
read_alike = get_clean_fn("lower")  # what CLIP's tokenizer makes of a text: Unicode mended, white space, lower case


def read_labels(labels) -> list[str]:
    r"""The names of a list or of a file, outer white space dropped, in their order and spelling.

    Raises ``ValueError`` for no names, a blank one, one that is no string, names that the text tower reads alike
    ("Café" and "café", composed or not), a bare string, or a file that cannot be read, and ``FileNotFoundError``.
    """
    if isinstance(labels, os.PathLike) or (isinstance(labels, str) and labels.lower().endswith(SUFFIXES)):
        names, places = _of_file(Path(labels).expanduser())
    elif isinstance(labels, str):
        raise ValueError(
            f"labels is the single string {labels[:60]!r}, not a list of names; write [{labels[:60]!r}] for one "
            "label, or the name of a file that ends in .txt or .csv"
        )
    else:
        names = check_names(labels)
        places = _places(names)
    _tell_apart(names, places)
    return names


def _tell_apart(names: list[str], places: list[str]) -> None:
    """Raise ``ValueError`` for names that the text tower reads alike, saying where each stands."""
    told: dict[str, list[str]] = {}
    for name, place in zip(names, places):
        told.setdefault(read_alike(name), []).append(f"{name!r} ({place})")
    if twice := [" and ".join(same) for same in told.values() if len(same) > 1]:
        raise ValueError(f"read alike by the text tower: {list_some(twice, '; ')}; keep one of each")


def _places(names: list[str]) -> list[str]:
    return [f"labels[{i}]" for i in range(len(names))]


def _of_file(path: Path) -> tuple[list[str], list[str]]:
    """Names, and where each stands."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path} of labels: correct the path, or write [{str(path)!r}] if that is the label itself"
        )
    try:
        if path.suffix.lower() == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
            column = next((c for c in table.columns if str(c).strip().lower() in COLUMNS), None)
            if column is None:
                raise ValueError(
                    f"{path} has the columns {list_some(table.columns)}; call the one of the names 'label'"
                )
            lines = table[column].tolist()
        else:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is no text in UTF-8 with a label a line ({error}); save it as one") from error
    first = 2 if path.suffix.lower() == ".csv" else 1
    rows = [(" ".join(line.split()), f"{path.name}, line {i}") for i, line in enumerate(lines, first)]
    rows = [row for row in rows if row[0]]
    if not rows:
        raise ValueError(f"{path} holds no label; write one name a line")
    return [name for name, _ in rows], [place for _, place in rows]


def reference_columns(model, labels) -> tuple[list[str], list[int]]:
    r"""The model's reference vocabulary and the labels that it lacks, and the column of each label in this list.

    A label that the text tower reads as it reads a reference label is that label. Raises ``ValueError`` as
    ``labels.check_names``, and for two labels that are read alike.
    """
    labels, names = check_names(labels), list(model.reference_labels)
    _tell_apart(labels, _places(labels))
    column = {read_alike(name): k for k, name in reversed(list(enumerate(names)))}  # the first of a kind
    columns = [column.get(read_alike(label)) for label in labels]
    names += [label for label, k in zip(labels, columns) if k is None]
    new = iter(range(len(model.reference_labels), len(names)))
    return names, [next(new) if k is None else k for k in columns]


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
