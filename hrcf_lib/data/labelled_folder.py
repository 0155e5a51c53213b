r"""One's own pictures, a folder of images and a CSV of labels; and ``load``, which reads prepared tables too.

::

    labels.csv          file,labels               one row a picture; labels joined by "|", or empty
                        photos/a.jpg,cat|sofa     (files relative to the folder)
    label_space.csv     part,label,annotated      optional: the columns in order, part "seen" or "unseen";
                        seen,cat,yes              annotated "no": nobody looked for this label here

``load`` turns such a folder, or one that ``prepare`` of a benchmark wrote (``common``), into a Dataset; ``scan`` lists
its bad pictures. Symbols: K labels; ``side`` in pixels;
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
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from hrcf_lib.data.images import find, find_images, look_at, read_image, rgb
from hrcf_lib.engine.messages import list_some
from hrcf_lib.labels import LabelSpace


class ImageFolderTable(Dataset):
    r"""A folder with a ``labels.csv`` as ``(image uint8 (3, side, side), labels (K,) in -1/0/+1)``; made by ``load``.

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
        return read_image(self.path(index), self.side), y  # (3, side, side), (K,)

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

    def fingerprint(self) -> str:
        """A key for caches: label space, side, and every picture's name, size, time of change and labels."""
        digest = hashlib.sha256(f"{self.labels.hash} {self.side}".encode() + self._background.tobytes())
        for file, columns in zip(self.files, self._columns):
            status = (self.folder / file).stat()
            digest.update(f"{file}|{status.st_size}|{status.st_mtime_ns}|{columns}\n".encode())
        return f"ImageFolderTable {len(self)} {digest.hexdigest()[:16]}"


def load(
    folder, labels=None, side=112, strict=True, skip_bad=False, hide_unseen=False, split=None, images=None
) -> ImageFolderTable:
    r"""Read a folder with a ``labels.csv`` (see the top of this file), or one that a ``prepare`` wrote (``common``).

    Args:
        folder: holds ``labels.csv`` and the pictures; or the ``out`` of ``hrcf_lib.data.<dataset>.prepare``.
        labels: a ``LabelSpace``, or a list of names (all seen). By default what ``label_space.csv`` says or, without
            that file, every label of the table in alphabetical order, all seen. Of a prepared table: its own.
        side: pictures become ``side`` x ``side`` pixels, see ``read_image``.
        strict: refuse labels that are not in ``labels``; if False they are left out, counted in ``.ignored``.
        skip_bad: decode every picture once, leave out those that cannot be read, warn how many (``.skipped``).
        hide_unseen: unseen labels read 0 (unknown) even where the table names them, as zero-shot *training* demands.
        split: of a prepared table: train, val or test. By default all rows of all splits, told apart by ``.splits``.
        images: of a prepared table: where the pictures are now, if not where ``prepare`` found them.

    A prepared table gives a ``table.CommonTable``: the same interface, and ``ids``, ``splits``, ``rows``, ``about``,
    ``select(split)``. Its pictures were looked for when it was prepared and are not looked for again here.

    A label that a row does not name reads -1 (absent), or 0 (unknown) if ``label_space.csv`` does not say that it was
    annotated.

    Raises:
        FileNotFoundError: no such folder, no ``labels.csv`` in it and no prepared table, or pictures that do not exist
            (all at once).
        ValueError: wrong columns, rows without a file or with one that another row has, no rows, labels outside
            ``labels`` if ``strict``, or no picture left; the message names file, line or label, and the mend.
    """
    folder = Path(folder).expanduser()
    if (folder / "about.json").is_file():
        return _load_prepared(folder, labels, side, strict, skip_bad, hide_unseen, split, images)
    if split is not None or images is not None:
        raise ValueError(
            f"{folder} is no prepared table, so it has no splits and no other images root: keep a folder a split, or "
            "make a table with hrcf_lib.data.official.own_folder.prepare"
        )
    return read_folder(folder, labels, side, strict, hide_unseen, _problems if skip_bad else _refuse_missing)


def read_folder(folder: Path, labels, side: int, strict: bool, hide_unseen: bool, skip) -> ImageFolderTable:
    """``load`` for a folder with a ``labels.csv``; ``skip(folder, files)`` gives the frame of pictures to leave out."""
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
    ignored = count_strangers(folder, table, labels, strict)
    skipped = skip(folder, table)
    bad = set(skipped["file"])
    files = [file for file in table if file not in bad]
    _warn_of_skipped(folder, skipped, len(table))

    annotated = stated[1] if stated else set(labels.names)
    hidden = set(labels.unseen) if hide_unseen else set()
    background = np.array([-1 if n in annotated - hidden else 0 for n in labels.names], np.float32)
    columns = [sorted(column[n] for n in set(table[file]) - hidden if n in column) for file in files]
    return ImageFolderTable(folder, files, columns, labels, background, side, skipped, dict(ignored))


def _refuse_missing(folder: Path, files: Iterable[str]) -> pd.DataFrame:
    """Nothing to leave out; ``FileNotFoundError`` if a picture does not exist."""
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        mend = "restore them, correct the table, or load with skip_bad=True"
        raise FileNotFoundError(
            f"{folder / 'labels.csv'} lists pictures that do not exist: {list_some(missing)}; {mend}"
        )
    return leave_all(folder, files)


def leave_all(folder: Path, files: Iterable[str]) -> pd.DataFrame:
    """Nothing to leave out, whether or not the pictures are there."""
    return pd.DataFrame(columns=["file", "problem"])


def _load_prepared(folder, labels, side, strict, skip_bad, hide_unseen, split, images):
    """``load`` for the out of a ``prepare``."""
    from hrcf_lib.data import table  # it builds on this file

    labels = labels if labels is None or isinstance(labels, LabelSpace) else LabelSpace(labels)
    dataset = table.read(folder, labels, side, hide_unseen, split, images)
    kept = set(dataset.labels.names)
    counts = zip(dataset.table_labels.names, dataset.known_counts()[0].tolist())
    dataset.ignored = {name: n for name, n in counts if n and name not in kept}
    if dataset.ignored and strict:
        said = list_some(f"{name!r} ({n} times)" for name, n in dataset.ignored.items())
        raise ValueError(
            f"{folder} has labels outside the label space: {said}; add them to the LabelSpace, or load with "
            "strict=False to leave them out"
        )
    if skip_bad and len(dataset):
        skipped = _problems(dataset.folder, list(dataset.files))
        _warn_of_skipped(folder, skipped, len(dataset))
        bad = set(skipped["file"])
        dataset = dataset.take([i for i, file in enumerate(dataset.files) if file not in bad]) if bad else dataset
        dataset.skipped = skipped
    return dataset


def label_matrix(dataset, rows=None) -> Tensor:
    """Annotations (n, K) int8 in -1/0/+1 of the given rows, by default of all, without reading a picture."""
    rows = range(len(dataset)) if rows is None else rows
    labels = torch.empty(len(rows), len(dataset.labels.names), dtype=torch.int8)
    for at, row in enumerate(tqdm(rows, desc="labels", disable=None, leave=False)):
        labels[at] = dataset.label_vector(int(row))
    return labels


def _warn_of_skipped(folder: Path, skipped: pd.DataFrame, n: int) -> None:
    """Warn how many of ``n`` pictures are skipped; ``ValueError`` if none is left."""
    if not len(skipped):
        return
    first = skipped["problem"][0]
    if len(skipped) == n:
        raise ValueError(f"none of the {n} pictures of {folder} can be read; the first: {first}")
    say = f"{folder}: skipped {len(skipped)} of {n} pictures (listed in .skipped); the first: {first}"
    warnings.warn(say, stacklevel=4)  # the caller of load


def scan(folder) -> pd.DataFrame:
    r"""Decode every picture of a folder and list the bad ones: a frame (file, problem), empty if all is well.

    With a ``labels.csv`` its pictures are looked at, of a prepared table those in its rows, otherwise all that
    ``find_images`` finds. They are decoded in several threads; ``doctor`` tells more. Raises as ``load`` and
    ``find_images`` do where it cannot begin.
    """
    folder = Path(folder).expanduser()
    if (folder / "about.json").is_file():
        dataset = load(folder)
        return _problems(dataset.folder, dataset.files)
    if folder.is_dir() and not (folder / "labels.csv").exists():
        return _problems(folder, [p.relative_to(folder).as_posix() for p in find_images(folder)])
    return _problems(folder, _read_labels(folder))


def _problems(folder: Path, files: Iterable[str]) -> pd.DataFrame:
    if folder is None:
        raise ValueError("this table was prepared without pictures; pass load(..., images=<folder>)")
    rows = [(seen.file, seen.problem) for seen in look_at(folder, files) if seen.problem]
    return pd.DataFrame(rows, columns=["file", "problem"])


def _read_labels(folder: Path) -> dict[str, list[str]]:
    """``labels.csv``: file -> label names, in file order."""
    path = folder / "labels.csv"
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" in {Path.cwd()} (a notebook runs in its own folder)"
        raise FileNotFoundError(f"no folder {folder}{where}: correct the path")
    if not path.is_file():
        why = "; an export writes it last: if this is one, it was interrupted or is still running; run it again"
        mend = "write one with the columns file,labels, a row a picture, labels joined by '|'"
        raise FileNotFoundError(f"{folder} has no labels.csv: {mend}{why if (folder / 'images').is_dir() else ''}")
    table: dict[str, list[str]] = {}
    first: dict[str, int] = {}
    wrong = []
    for line, row in _read_csv(path, ("file", "labels")):
        file = row["file"].strip()
        if not file:
            wrong.append(f"line {line} names no file")
            continue
        file = _name_on_disk(folder, Path(file).as_posix())  # ./a.jpg and a.jpg are one file
        if file in table:
            wrong.append(f"line {line} repeats {file!r} of line {first[file]}")
            continue
        first[file] = line
        names = (" ".join(name.split()) for name in row["labels"].split("|"))
        table[file] = [name for name in names if name]
    if wrong:
        raise ValueError(f"{path}: {list_some(wrong, '; ')}; give each picture one row, its labels joined by '|'")
    if not table:
        raise ValueError(f"{path} lists no pictures; add rows, or run the export again")
    return table


def _name_on_disk(folder: Path, file: str) -> str:
    """``file`` as it is written on disk: ``/`` between folders where a table has ``\\``, accents composed or not."""
    if file.isascii() and "\\" not in file:
        return file
    found = find(folder, file) or find(folder, file.replace("\\", "/"))
    return found[0] if found else file


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
        raise ValueError(f"{path}: {list_some(wrong)} instead of {len(header)}; {mend}")
    return [(line, dict(zip(header, row))) for line, row in rows[1:]]


def count_strangers(folder: Path, table: dict[str, list[str]], labels: LabelSpace, strict: bool = True) -> Counter:
    """Labels of a table that are not in the label space, and how often; if there are any and ``strict``, an error."""
    known = set(labels.names)
    ignored = Counter(n for names in table.values() for n in names if n not in known)
    if not (ignored and strict):
        return ignored
    first = {name: file for file, names in reversed(table.items()) for name in names if name in ignored}
    said = [f"{name!r} ({n} times, first in {first[name]})" for name, n in ignored.items()]
    near = [(name, difflib.get_close_matches(name, labels.names, 1)) for name in list(ignored)[:5]]
    hints = [f"{name!r} is close to {match[0]!r}" for name, match in near if match]
    mend = "; ".join(hints + ["correct them, add them to the LabelSpace, or load with strict=False to leave them out"])
    raise ValueError(f"{folder / 'labels.csv'} has labels outside the label space: {list_some(said)}; {mend}")
