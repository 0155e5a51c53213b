"""``load`` opens a folder of one's own pictures or a prepared table as a Dataset; ``scan`` lists its bad pictures."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from hrcf_lib.config import LARGEST_SIDE
from hrcf_lib.data.images import find_images, look_at
from hrcf_lib.data.labelled_folder import ImageFolderTable, read_folder, read_labels_csv
from hrcf_lib.data.table import read_prepared
from hrcf_lib.engine.messages import list_some, printable, user_path, whole_number
from hrcf_lib.labels import LabelSpace, check_names


def load(
    folder,
    labels=None,
    side=112,
    strict=True,
    skip_bad=False,
    hide_unseen=False,
    split=None,
    images=None,
    resize="crop",
    outside=False,
) -> ImageFolderTable:
    r"""Read a folder with a ``labels.csv`` (``labelled_folder``), or one that a ``prepare`` wrote (``table_format``).

    Args:
        folder: holds ``labels.csv`` and the pictures; or the ``out`` of ``hrcf_lib.data.<dataset>.prepare``.
        labels: a ``LabelSpace``, or a list of names (all seen). The default is what ``label_space.csv`` says; without
            that file, every label of the table in alphabetical order, all seen. For a prepared table: its own.
        side: pictures become ``side`` x ``side`` pixels, see ``read_image``.
        strict: refuse labels that are not in ``labels``; if False they are left out and counted in ``.ignored``.
        skip_bad: decode every picture once, leave out those that cannot be read (``.skipped``), and warn how many.
        hide_unseen: unseen labels read 0 (unknown) even where the table names them, as zero-shot *training* demands.
        split: of a prepared table: train, val or test. The default is all rows of all splits; ``.splits`` names them.
        images: of a prepared table: where the pictures are now, if not where ``prepare`` found them.
        resize: how pictures become square, see ``read_image``.
        outside: take files of ``labels.csv`` that lie outside the folder (absolute paths, and those with ``..``), which
            are refused otherwise: somebody else's table should not read what it likes.

    A prepared table becomes a ``table.CommonTable``, which has the same interface, and ``ids``, ``splits``, ``rows``,
    ``about`` and ``select(split)``. ``prepare`` has looked for its pictures; ``load`` does not look again.

    A label that a row does not name reads -1 (absent), or 0 (unknown) if ``label_space.csv`` does not say that it was
    annotated.

    Raises:
        FileNotFoundError: no such folder, no ``labels.csv`` in it and no prepared table, or pictures that do not exist
            (all at once).
        ValueError: wrong columns, rows without a file or with one that another row has, or that lies outside the
            folder, no rows, a list where a name belongs, labels outside ``labels`` if ``strict``, or no picture left;
            the message names file, line or label, and the fix.

    Warns of names that look like several, or like another one in another case (``labelled_folder.tell_doubtful``).
    """
    folder, side = user_path(folder, "the folder"), whole_number("side", side, most=LARGEST_SIDE)
    if (folder / "about.json").is_file():
        labels = labels if labels is None or isinstance(labels, LabelSpace) else LabelSpace(check_names(labels))
        dataset = read_prepared(folder, labels, side, hide_unseen, split, images, resize)
        _count_ignored(folder, dataset, strict)
    else:
        refuse_splits(folder, split, images)
        dataset = read_folder(folder, labels, side, strict, hide_unseen, resize, outside)
        if not skip_bad:
            _refuse_missing(folder, dataset)
    return _without_bad(folder, dataset) if skip_bad and len(dataset) else dataset


def scan(folder) -> pd.DataFrame:
    r"""Decode every picture of a folder and list the bad ones: a frame (file, problem), empty if all is well.

    The pictures are those of ``labels.csv`` or of a prepared table; in a folder without either, all that
    ``find_images`` finds. Several threads decode them; ``doctor`` examines more. Raises what ``load`` and
    ``find_images`` raise where it cannot begin.
    """
    folder = user_path(folder, "the folder")
    if (folder / "about.json").is_file():
        dataset = load(folder)
        return _bad_pictures(dataset.folder, dataset.files)
    if folder.is_dir() and not (folder / "labels.csv").exists():
        return _bad_pictures(folder, [p.relative_to(folder).as_posix() for p in find_images(folder)])
    return _bad_pictures(folder, read_labels_csv(folder))


def refuse_splits(folder, split, images) -> None:
    """Raise ``ValueError`` if a split or another images root is asked of what is not a prepared table."""
    if split is not None or images is not None:
        raise ValueError(
            f"{folder} is not a prepared table, so it has no splits and no other images root: keep one folder per "
            "split, or make a table with hrcf_lib.data.official.own_folder.prepare"
        )


def _count_ignored(folder: Path, dataset, strict: bool) -> None:
    """Fill ``.ignored`` of a prepared table; raise ``ValueError`` if there are such labels and ``strict``."""
    kept = set(dataset.labels.names)
    counts = zip(dataset.table_labels.names, dataset.known_counts()[0].tolist())
    dataset.ignored = {name: n for name, n in counts if n and name not in kept}
    if dataset.ignored and strict:
        named = list_some(f"{name!r} ({n} times)" for name, n in dataset.ignored.items())
        raise ValueError(
            f"{folder} has labels outside the label space: {named}; add them to the LabelSpace, or load with "
            "strict=False to leave them out"
        )


def _refuse_missing(folder: Path, dataset) -> None:
    """Raise ``FileNotFoundError`` that names the pictures which do not exist, if there are any."""
    if missing := [file for file in dataset.files if not (folder / file).is_file()]:
        raise FileNotFoundError(
            f"{folder / 'labels.csv'} lists pictures that do not exist: {list_some(missing)}; restore them, correct "
            "the table, or load with skip_bad=True"
        )


def _without_bad(folder: Path, dataset) -> ImageFolderTable:
    """The pictures that can be read; warns of the others, and raises ``ValueError`` if none is left."""
    bad = _bad_pictures(dataset.folder, list(dataset.files))
    if len(bad):
        first = bad["problem"][0]
        if len(bad) == len(dataset):
            raise ValueError(f"none of the {len(dataset)} pictures of {folder} can be read; the first: {first}")
        warnings.warn(
            f"{folder}: skipped {len(bad)} of {len(dataset)} pictures (listed in .skipped); the first: {first}",
            stacklevel=3,  # the caller of load
        )
        names = set(bad["file"])
        dataset = dataset.take([i for i, file in enumerate(dataset.files) if file not in names])
    dataset.skipped = bad
    return dataset


def _bad_pictures(folder: Path | None, files: Iterable[str]) -> pd.DataFrame:
    if folder is None:
        raise ValueError("this table was prepared without pictures; pass load(..., images=<folder>)")
    rows = [(printable(seen.file), seen.problem) for seen in look_at(folder, files) if seen.problem]
    return pd.DataFrame(rows, columns=["file", "problem"])
