r"""A folder of pictures and a CSV of their labels, as a Dataset: the form in which users bring their own data.

::

    labels.csv          file,labels               one row per picture; labels joined by "|", or empty
                        photos/a.jpg,cat|sofa     (files relative to the folder)
    label_space.csv     part,label,annotated      optional: the columns in order, part "seen" or "unseen";
                        seen,cat,yes              annotated "no": nobody looked for this label here

``hrcf_lib.data.load`` opens such a folder. K labels; labels are -1 (absent), 0 (unknown) or +1 (present).
"""

import difflib
import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from hrcf_lib.data.images import RESIZES, find_file, is_outside, read_image, rgb
from hrcf_lib.engine.messages import check_known, is_address, list_some, tell
from hrcf_lib.engine.tables import FIX, read_table
from hrcf_lib.labels import BROKEN, MISSING, LabelSpace, alike, check_names, clean_name, is_number


class ImageFolderTable(Dataset):
    r"""A folder with a ``labels.csv`` as ``(image uint8 (3, side, side), labels (K,) in -1/0/+1)``; made by ``load``.

    Attributes:
        folder, files: where the pictures are; ``files`` are relative to the folder, in the order of ``labels.csv``.
        labels: the ``LabelSpace``; columns are ``labels.names``.
        side: of a picture, in pixels; ``resize``: how it gets there (``read_image``).
        skipped: a frame (file, problem) of the pictures that ``skip_bad`` left out.
        ignored: how often each label outside the label space occurs (``strict=False``).

    Reading an item raises what ``read_image`` raises.
    """

    def __init__(self, folder, files, columns, labels, background, side, ignored, resize="crop"):
        check_known([resize], RESIZES, "unknown way to resize")
        self.resize = resize
        self.folder, self.files, self.labels, self.side, self.ignored = folder, files, labels, side, ignored
        self.skipped = pd.DataFrame(columns=["file", "problem"])
        self._columns = columns  # of each picture, the columns of its labels
        self._background = background  # (K,): the labels of a picture that names none

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        y = self.label_vector(index)
        return read_image(self.path(index), self.side, self.resize), y  # (3, side, side), (K,)

    def original(self, index: int) -> Image.Image:
        """The picture in its own size, upright and RGB, as a PIL image."""
        return rgb(self.path(index))

    def path(self, index: int) -> Path:
        """Where a picture lies."""
        return self.folder / self.files[index]

    def label_vector(self, index: int) -> Tensor:
        """(K,) in -1/0/+1. Raises ``IndexError`` beyond the last picture."""
        if not 0 <= index < len(self.files):
            raise IndexError(f"picture {index} of {len(self.files)}")
        y = self._background.copy()
        y[self._columns[index]] = 1
        return torch.from_numpy(y)

    def take(self, indices) -> "ImageFolderTable":
        """Some pictures, in the given order. Raises ``ValueError`` for a mask and for numbers of no picture."""
        indices = row_numbers(indices, len(self))
        files, columns = ([values[i] for i in indices] for values in (self.files, self._columns))
        rest = (self._background, self.side, self.ignored, self.resize)
        return ImageFolderTable(self.folder, files, columns, self.labels, *rest)

    @property
    def _size(self) -> str:
        """Side and, where it is not ``crop``, the way to resize: part of ``fingerprint``."""
        return f"{self.side}" if self.resize == "crop" else f"{self.side} {self.resize}"

    def fingerprint(self) -> str:
        """A key for caches: label space, side, resize, and every picture's name, size, time of change and labels."""
        digest = hashlib.sha256(f"{self.labels.hash} {self._size}".encode() + self._background.tobytes())
        for file, columns in zip(self.files, self._columns):
            status = (self.folder / file).stat()
            digest.update(f"{file}|{status.st_size}|{status.st_mtime_ns}|{columns}\n".encode())
        return f"ImageFolderTable {len(self)} {digest.hexdigest()[:16]}"


def read_folder(
    folder: Path, labels, side: int, strict: bool, hide_unseen: bool, resize: str = "crop", outside: bool = False
) -> ImageFolderTable:
    """A folder with a ``labels.csv``; does not look at its pictures. ``hrcf_lib.data.load`` describes the arguments."""
    table = read_labels_csv(folder, outside)
    stated = read_label_space_csv(folder)
    if labels is None and not stated:
        tell_doubtful(folder / "labels.csv", table)
    if labels is None and stated:
        labels = stated[0]
    elif labels is None:
        named = sorted({name for names in table.values() for name in names})
        if not named:
            raise ValueError(f"{folder / 'labels.csv'} holds no labels at all; pass load(..., labels=[names])")
        labels = LabelSpace(named)
    elif not isinstance(labels, LabelSpace):
        labels = LabelSpace(check_names(labels))
    ignored = count_unknown_labels(folder, table, labels, strict)
    annotated = stated[1] if stated else set(labels.names)
    hidden = set(labels.unseen) if hide_unseen else set()
    background = np.array([-1 if n in annotated - hidden else 0 for n in labels.names], np.float32)
    column = {name: k for k, name in enumerate(labels.names)}
    columns = [sorted(column[n] for n in set(names) - hidden if n in column) for names in table.values()]
    return ImageFolderTable(folder, list(table), columns, labels, background, side, dict(ignored), resize)


def row_numbers(rows, n: int) -> np.ndarray:
    """Numbers of some of ``n`` pictures as int64, those below 0 counted from the end. Raises ``ValueError`` for a mask,
    for what are no whole numbers, and for numbers of no picture."""
    rows = np.asarray(rows)
    if rows.dtype == bool:
        raise ValueError("rows are numbers of pictures, not a mask: give mask.nonzero()[0]")
    if rows.ndim != 1 or rows.size and not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"rows of shape {rows.shape} and type {rows.dtype}: give a list of whole numbers")
    rows = rows.astype(np.int64)
    if (beyond := rows[(rows < -n) | (rows >= n)]).size:
        raise ValueError(f"there is no picture {list_some(beyond)} among {n}: number them from 0 to {n - 1}")
    return np.where(rows < 0, rows + n, rows)


def label_matrix(dataset, rows=None) -> Tensor:
    """Annotations (n, K) int8 in -1/0/+1 of the given rows, by default of all, without reading a picture."""
    rows = range(len(dataset)) if rows is None else rows
    labels = torch.empty(len(rows), len(dataset.labels.names), dtype=torch.int8)
    for at, row in enumerate(tqdm(rows, desc="labels", disable=None, leave=False)):
        labels[at] = dataset.label_vector(int(row))
    return labels


def read_labels_csv(folder: Path, outside: bool = False) -> dict[str, list[str]]:
    """``labels.csv``: file -> label names, in file order; ``outside`` as for ``hrcf_lib.data.load``."""
    path = folder / "labels.csv"
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give the folder that it lies in, {str(folder.parent)!r}")
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" in {Path.cwd()} (a notebook runs in its own folder)"
        raise FileNotFoundError(f"no folder {folder}{where}: correct the path")
    if not path.is_file():
        why = "; an export writes it last: if this is one, it was interrupted or is still running; run it again"
        fix = "write one with the columns file,labels, one row per picture, labels joined by '|'"
        near = [p.name for p in folder.iterdir() if p.name.lower().startswith("labels.") and p.is_file()]
        fix = f"there is {list_some(map(repr, sorted(near)))}; {fix}" if near else fix
        raise FileNotFoundError(f"{folder} has no labels.csv: {fix}{why if (folder / 'images').is_dir() else ''}")
    table: dict[str, list[str]] = {}
    first: dict[str, int] = {}
    wrong, away, lists = [], [], []
    for line, (file, cell) in _read_csv(path, ("file", "labels")):
        file = file.strip()
        if not file:
            wrong.append(f"line {line} names no file")
            continue
        if is_address(file):
            wrong.append(f"line {line} names the address {file!r:.100}; download the picture, and name its file")
            continue
        if is_outside(file) and not outside:
            away.append(f"line {line} names {file!r}")
            continue
        file = _name_on_disk(folder, Path(file).as_posix())  # ./a.jpg and a.jpg are one file
        if file in table:
            wrong.append(f"line {line} repeats {file!r} of line {first[file]}")
            continue
        first[file] = line
        names = cell.split("|")
        lists += [f"line {line} has {name.strip()!r}" for name in names if NO_NAME.search(name.strip())]
        wrong += [
            f"line {line} has {name!r}, with characters that no text has" for name in names if BROKEN.search(name)
        ]
        table[file] = [clean for name in names if (clean := clean_name(name))]
    if wrong:
        raise ValueError(f"{path}: {list_some(wrong, '; ')}; give each picture one row, its labels joined by '|'")
    if away:
        raise ValueError(
            f"{path}: {list_some(away, '; ')}, outside the folder: write names relative to {folder}, or, if you trust "
            "this table, load(..., outside=True)"
        )
    if lists:
        raise ValueError(
            f"{path}: {list_some(lists, '; ')}, a list or several lines as one label: write names alone, joined by "
            "'|', as in cat|sofa"
        )
    if not table:
        raise ValueError(f"{path} lists no pictures; add rows, or run the export again")
    return table


NO_NAME = re.compile(r"""^[\[{]|[\[{(]\s*['"]|[\n\r\t]""")  # a list of JSON or Python, or several cells in one
JOINED = re.compile("[,;]")  # what others join names with
SIGNS = re.compile(r"\s*[/+&\\]\s*")  # the same, where a part is a label
AND, WORDS = re.compile(" and "), re.compile(r" and |\s")  # the same, where all parts are; the latter in tags


def tell_doubtful(path: Path, table: dict[str, list[str]]) -> None:
    r"""Warn of names in a table, read as one label each, that look like several names or like another label.

    They hold a comma or a semicolon where a part of them is a label or comes more than once, or where no picture of
    the table has several labels; parts between other signs are labels; they stand in quotation marks; or they
    differ from another in case only. Warns too where all labels are numbers, and of words for what is missing.
    """
    first = {name: file for file, names in reversed(table.items()) for name in names}
    parts = {name: {clean_name(part) for part in JOINED.split(name)} for name in first if JOINED.search(name)}
    often = Counter(part for own in parts.values() for part in own) + Counter(list(first))
    one_each = all(len(names) < 2 for names in table.values())
    odd = {name for name, own in parts.items() if one_each or any(often[part] > 1 for part in own if part)}
    odd |= {name for name in first if len(name) > 1 and name[0] == name[-1] and name[0] in "'\""}
    for name in first:
        signs, words = SIGNS.split(name), (WORDS if one_each else AND).split(name)
        odd |= {name} if len(signs) > 1 and any(part in first for part in signs) else set()
        odd |= {name} if len(words) > 1 and all(part in first for part in words) else set()
    if odd:
        named = list_some(f"{name!r} ({file})" for name, file in first.items() if name in odd)
        tell(f"{path}: each of these is read as one label: {named}; if they are several, join them by '|'")
    if first and all(map(is_number, first)):
        tell(f"{path}: its labels are the numbers {list_some(first)}: write names, which the text tower reads")
    if missing := [f"{name!r} ({first[name]})" for name in first if name.lower() in MISSING]:
        tell(f"{path}: read as labels: {list_some(missing)}; where a picture has none, leave the cell empty")
    if same := alike(sorted(first)):
        named = list_some((" and ".join(f"{name!r} ({first[name]})" for name in group) for group in same), "; ")
        tell(f"{path}: labels that differ in case only are labels of their own: {named}; write each in one way")


def _name_on_disk(folder: Path, file: str) -> str:
    """``file`` as it is written on disk: ``/`` between folders where a table has ``\\``, accents composed or not."""
    if file.isascii() and "\\" not in file:
        return file
    found = find_file(folder, file) or find_file(folder, file.replace("\\", "/"))
    return Path(found[0]).as_posix() if found else file  # .\a.jpg and s\\a.jpg are a.jpg and s/a.jpg


def read_label_space_csv(folder: Path) -> tuple[LabelSpace, set[str]] | None:
    """``label_space.csv``: the label space and the names that were annotated; None if there is no such file."""
    path = folder / "label_space.csv"
    if not path.is_file():
        return None
    parts: dict[str, list[str]] = {"seen": [], "unseen": []}
    annotated = set()
    for line, (part, label, looked_for) in _read_csv(path, ("part", "label", "annotated")):
        if part not in parts or looked_for not in ("yes", "no"):
            found = f"part {part!r}, annotated {looked_for!r}"
            raise ValueError(f"{path}, line {line}: {found}; part is seen or unseen, annotated is yes or no")
        parts[part].append(label)
        if looked_for == "yes":
            annotated.add(clean_name(label))
    try:
        return LabelSpace(**parts), annotated
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[tuple[int, list[str]]]:
    """(line number, cells of these columns) of each row; further columns are ignored."""
    rows = read_table(path, fix=f"join labels by '|', and {FIX}")
    places = [rows.place(clean_name, column) for column in columns]
    if None in places:
        wanted = f"the columns {','.join(columns)}, separated by commas"
        raise ValueError(f"{path} begins with {','.join(rows.header)!r}; its first line has to name {wanted}")
    return [(line, [row[place] for place in places]) for line, row in rows]


def count_unknown_labels(folder: Path, table: dict[str, list[str]], labels: LabelSpace, strict: bool = True) -> Counter:
    """Labels of a table that are not in the label space, and how often; if there are any and ``strict``, an error."""
    known = set(labels.names)
    ignored = Counter(n for names in table.values() for n in names if n not in known)
    if not (ignored and strict):
        return ignored
    first = {name: file for file, names in reversed(table.items()) for name in names if name in ignored}
    named = [f"{name!r} ({n} times, first in {first[name]})" for name, n in ignored.items()]
    near = [(name, difflib.get_close_matches(name, labels.names, 1)) for name in list(ignored)[:5]]
    hints = [f"{name!r} is close to {match[0]!r}" for name, match in near if match]
    fix = "; ".join(hints + ["correct them, add them to the LabelSpace, or load with strict=False to leave them out"])
    raise ValueError(f"{folder / 'labels.csv'} has labels outside the label space: {list_some(named)}; {fix}")
