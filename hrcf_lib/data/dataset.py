r"""Pictures on disk in the common form: a folder of images and a CSV of labels.

::

    labels.csv          file,labels               one row a picture; labels joined by "|", or empty
                        photos/a.jpg,cat|sofa     (files relative to the folder)
    label_space.csv     part,label,annotated      optional: the columns in order, part "seen" or "unseen";
                        seen,cat,yes              annotated "no": nobody looked for this label here

``load`` turns such a folder into a Dataset, ``scan`` lists its bad pictures. Symbols: K labels; ``side`` in pixels;
labels are -1 (absent), 0 (unknown) or +1 (present).
"""

import csv
import difflib
import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hrcf_lib.data.images import find_images, read_image, rgb
from hrcf_lib.labels import LabelSpace, _join


class ImageFolderTable(Dataset):
    r"""A folder in the common form as ``(image uint8 (3, side, side), labels (K,) in -1/0/+1)``; made by ``load``.

    Attributes:
        folder, files: where the pictures are; ``files`` are relative to the folder, in the order of ``labels.csv``.
        labels: the ``LabelSpace``; columns are ``labels.names``.
        side: of a picture, in pixels.
        skipped: a frame (file, problem) of pictures that ``skip_bad`` left out.
        ignored: how often each label outside the label space was met (``strict=False``).

    Reading an item raises what ``read_image`` raises.
    """

    def __init__(self, folder, files, columns, labels, background, side, skipped, ignored):
        self.folder, self.files, self.labels, self.side = folder, files, labels, side
        self.skipped, self.ignored = skipped, ignored
        self._columns = columns  # of each picture, the columns of its labels
        self._background = background  # (K,): what a picture without labels reads

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        y = self.label_vector(index)
        return read_image(self.folder / self.files[index], self.side), y  # (3, side, side), (K,)

    def label_vector(self, index: int) -> Tensor:
        """(K,) in -1/0/+1. Raises ``IndexError`` beyond the last picture."""
        if not 0 <= index < len(self.files):
            raise IndexError(f"picture {index} of {len(self.files)}")
        y = self._background.copy()
        y[self._columns[index]] = 1
        return torch.from_numpy(y)

    def fingerprint(self) -> str:
        """A key for caches: label space, side, and every picture's name, size, time of change and labels."""
        digest = hashlib.sha256(f"{self.labels.hash} {self.side}".encode() + self._background.tobytes())
        for file, columns in zip(self.files, self._columns):
            status = (self.folder / file).stat()
            digest.update(f"{file}|{status.st_size}|{status.st_mtime_ns}|{columns}\n".encode())
        return f"ImageFolderTable {len(self)} {digest.hexdigest()[:16]}"


def load(folder, labels=None, side=112, strict=True, skip_bad=False, hide_unseen=False) -> ImageFolderTable:
    r"""Read a folder in the common form (see the top of this file).

    Args:
        folder: holds ``labels.csv`` and the pictures.
        labels: a ``LabelSpace``, or a list of names (all seen). By default what ``label_space.csv`` says or, without
            that file, every label of the table in alphabetical order, all seen.
        side: pictures become ``side`` x ``side`` pixels, see ``read_image``.
        strict: refuse labels that are not in ``labels``; if False they are left out, counted in ``.ignored``.
        skip_bad: decode every picture once, leave out those that cannot be read, warn how many (``.skipped``).
        hide_unseen: unseen labels read 0 (unknown) even where the table names them, as zero-shot *training* demands.

    A label that a row does not name reads -1 (absent), or 0 (unknown) if ``label_space.csv`` does not say that it was
    annotated.

    Raises:
        FileNotFoundError: no such folder, no ``labels.csv`` in it, or pictures that do not exist (all at once).
        ValueError: wrong columns, rows without a file or with one that another row has, no rows, labels outside
            ``labels`` if ``strict``, or no picture left; the message names file, line or label, and the mend.
    """
    folder = Path(folder).expanduser()
    table = _read_labels(folder)
    stated = _read_label_space(folder)
    if labels is None and stated:
        labels = stated[0]
    elif labels is None:
        named = sorted({name for names in table.values() for name in names})
        if not named:
            raise ValueError(f"{folder / 'labels.csv'} holds no labels at all; pass load(..., labels=[names])")
        labels = LabelSpace(named)
    elif not isinstance(labels, LabelSpace):
        labels = LabelSpace(labels)
    column = {name: k for k, name in enumerate(labels.names)}
    ignored = Counter(n for names in table.values() for n in names if n not in column)
    if ignored and strict:
        raise ValueError(_strangers(folder, table, ignored, labels))

    if skip_bad:
        skipped = _problems(folder, table)
    else:
        skipped = pd.DataFrame(columns=["file", "problem"])
        missing = [file for file in table if not (folder / file).exists()]
        if missing:
            mend = "restore them, correct the table, or load with skip_bad=True"
            raise FileNotFoundError(
                f"{folder / 'labels.csv'} lists pictures that do not exist: {_join(missing)}; {mend}"
            )
    bad = set(skipped["file"])
    files = [file for file in table if file not in bad]
    if bad:
        first = skipped["problem"][0]
        if not files:
            raise ValueError(f"none of the {len(table)} pictures of {folder} can be read; the first: {first}")
        say = f"{folder}: skipped {len(bad)} of {len(table)} pictures (listed in .skipped); the first: {first}"
        warnings.warn(say, stacklevel=2)

    annotated = stated[1] if stated else set(labels.names)
    hidden = set(labels.unseen) if hide_unseen else set()
    background = np.array([-1 if n in annotated - hidden else 0 for n in labels.names], np.float32)
    columns = [sorted(column[n] for n in set(table[file]) - hidden if n in column) for file in files]
    return ImageFolderTable(folder, files, columns, labels, background, side, skipped, dict(ignored))


def scan(folder) -> pd.DataFrame:
    r"""Decode every picture of a folder and list the bad ones: a frame (file, problem), empty if all is well.

    With a ``labels.csv`` its pictures are looked at, otherwise all that ``find_images`` finds. Takes as long as one
    pass over the data. Raises as ``load`` and ``find_images`` do where it cannot begin.
    """
    folder = Path(folder).expanduser()
    if folder.is_dir() and not (folder / "labels.csv").exists():
        return _problems(folder, [p.relative_to(folder).as_posix() for p in find_images(folder)])
    return _problems(folder, _read_labels(folder))


def _problems(folder: Path, files: Iterable[str]) -> pd.DataFrame:
    rows = []
    for file in files:
        try:
            rgb(folder / file)
        except (FileNotFoundError, ValueError) as error:
            rows.append((file, str(error)))
    return pd.DataFrame(rows, columns=["file", "problem"])


def _read_labels(folder: Path) -> dict[str, list[str]]:
    """``labels.csv``: file -> label names, in file order."""
    path = folder / "labels.csv"
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: correct the path")
    if not path.is_file():
        why = "an export writes it last, so this one was interrupted or is still running; run it again"
        mend = why if (folder / "images").is_dir() else "write one with the columns file,labels"
        raise FileNotFoundError(f"{folder} has no labels.csv: {mend}")
    table: dict[str, list[str]] = {}
    first: dict[str, int] = {}
    wrong = []
    for line, row in _read_csv(path, ("file", "labels")):
        file = row["file"].strip()
        if not file:
            wrong.append(f"line {line} names no file")
            continue
        file = Path(file).as_posix()  # ./a.jpg and a.jpg are one file
        if file in table:
            wrong.append(f"line {line} repeats {file!r} of line {first[file]}")
            continue
        first[file] = line
        names = (" ".join(name.split()) for name in row["labels"].split("|"))
        table[file] = [name for name in names if name]
    if wrong:
        raise ValueError(f"{path}: {_join(wrong, '; ')}; give each picture one row, its labels joined by '|'")
    if not table:
        raise ValueError(f"{path} lists no pictures; add rows, or run the export again")
    return table


def _read_label_space(folder: Path) -> tuple[LabelSpace, set[str]] | None:
    """``label_space.csv``: the label space and the names that were annotated; None if there is no such file."""
    path = folder / "label_space.csv"
    if not path.is_file():
        return None
    parts: dict[str, list[str]] = {"seen": [], "unseen": []}
    annotated = set()
    for line, row in _read_csv(path, ("part", "label", "annotated")):
        if row["part"] not in parts or row["annotated"] not in ("yes", "no"):
            found = f"part {row['part']!r}, annotated {row['annotated']!r}"
            raise ValueError(f"{path}, line {line}: {found}; part is seen or unseen, annotated is yes or no")
        parts[row["part"]].append(row["label"])
        if row["annotated"] == "yes":
            annotated.add(" ".join(row["label"].split()))
    try:
        return LabelSpace(**parts), annotated
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """(line number, column -> cell) of each row; further columns are passed over."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV in UTF-8 ({error}); save it as one") from error
    header = rows[0][1] if rows else []
    if not set(columns) <= set(header):
        wanted = f"the columns {','.join(columns)}, separated by commas"
        raise ValueError(f"{path} begins with {','.join(header)!r}; its first line has to name {wanted}")
    wrong = [f"line {line} has {len(row)} cells" for line, row in rows[1:] if len(row) != len(header)]
    if wrong:
        mend = "join labels by '|', and put cells that hold a comma in double quotes"
        raise ValueError(f"{path}: {_join(wrong)} instead of {len(header)}; {mend}")
    return [(line, dict(zip(header, row))) for line, row in rows[1:]]


def _strangers(folder: Path, table: dict[str, list[str]], ignored: Counter, labels: LabelSpace) -> str:
    """What to say of labels that are not in the label space."""
    first = {name: file for file, names in reversed(table.items()) for name in names if name in ignored}
    said = [f"{name!r} ({n} times, first in {first[name]})" for name, n in ignored.items()]
    near = [(name, difflib.get_close_matches(name, labels.names, 1)) for name in list(ignored)[:5]]
    hints = [f"{name!r} is close to {match[0]!r}" for name, match in near if match]
    mend = "; ".join(hints + ["correct them, add them to the LabelSpace, or load with strict=False to leave them out"])
    return f"{folder / 'labels.csv'} has labels outside the label space: {_join(said)}; {mend}"
