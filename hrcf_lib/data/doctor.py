r"""What is wrong with a data set, found before training starts: ``print(doctor("out"))``; and statistics of its labels.

``doctor`` decodes every picture once, in parallel. It counts missing and corrupt pictures, files with the same bytes
(above all in two splits at once), the labels, and pictures without a positive label. n pictures, K labels.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from hrcf_lib.data.images import look_at
from hrcf_lib.data.labelled_folder import ImageFolderTable, read_folder
from hrcf_lib.data.load import load, refuse_splits
from hrcf_lib.data.table import CommonTable
from hrcf_lib.engine.files import make_folder, no_folder, replacing
from hrcf_lib.engine.messages import user_path, whole_number
from hrcf_lib.labels import LabelSpace, alike

COLUMNS = ["split", "file", "problem", "detail"]  # of the file of bad pictures

BAD = ("missing", "corrupt", "too small")  # kinds of pictures that cannot be used


@dataclass
class Report:
    r"""What ``doctor`` found; ``print`` shows it as a page of text."""

    name: str
    counts: pd.DataFrame  # one row per split: pictures, left out by prepare, missing, corrupt, too small, ...
    bad: pd.DataFrame  # split, file, problem, detail: every file with a problem, those that prepare left out included
    labels: pd.DataFrame  # one row per label, in column order: label, part, positives, negatives, unknown
    per_picture: np.ndarray  # (n,) positive labels of each picture
    skipped: Counter = field(default_factory=Counter)  # what prepare left out, by kind
    decoded: bool = True

    @property
    def healthy(self) -> bool:
        """No picture is missing, corrupt or too small, and none is in two splits."""
        return not self.bad["problem"].isin((*BAD, "in two splits")).any()

    def __str__(self):
        lines = [f"{self.name}: {len(self.labels)} labels", self.counts.to_string(), ""]
        if len(self.per_picture):
            q = np.quantile(self.per_picture, [0, 0.5, 1])
            mean = self.per_picture.mean()
            lines.append(f"positive labels per picture: {q[0]:.0f} to {q[2]:.0f}, mean {mean:.2f}, median {q[1]:.0f}")
        for part, group in self.labels.groupby("part", sort=False):
            lines.append(
                f"{part}: {len(group)} labels, {group.positives.sum():,} positives, "
                f"{group.negatives.sum():,} negatives, "
                f"{group.unknown.sum():,} unknown; {(group.positives == 0).sum()} labels without a positive"
            )
        for group in alike(self.labels["label"]):
            lines.append(f"labels that differ in case only: {', '.join(map(repr, group))}; write each in one way")
        if self.skipped:
            lines.append("left out by prepare: " + ", ".join(f"{n:,} {kind}" for kind, n in self.skipped.items()))
        for problem, group in self.bad.groupby("problem", sort=False):
            first = group.iloc[0]
            lines.append(f"{len(group):,} {problem}, the first: {first.file} {first.detail}".rstrip())
        if not self.decoded:
            lines.append("pictures were not decoded")
        return "\n".join(lines)


def doctor(
    data, split: str | None = None, images=None, csv=None, workers: int | None = None, least_side=8, decode=True
) -> Report:
    r"""Examine a data set; returns a ``Report``.

    Args:
        data: what ``load`` returned, or a folder that ``load`` reads (prepared, or with a ``labels.csv``).
        split, images: of a prepared folder, as ``load`` takes them; ``split`` also of a prepared table that is loaded.
        csv: file to write with one row per bad file (split, file, problem, detail); by default none.
        workers: threads that decode, at least 1, by default one per core.
        least_side: a picture whose shorter side has fewer pixels is "too small"; 0: none is.
        decode: if False, only the labels are examined.

    Problems: ``missing``, ``corrupt`` (empty, truncated, 16 bits, no picture, ...), ``too small``, ``in two splits``
    and ``same bytes`` (as another file of its split), and what ``prepare`` named in ``skipped.csv``.

    Raises what ``load`` raises, except for missing pictures, which are reported, ``ValueError`` for a number out of
    bounds, ``IsADirectoryError`` where ``csv`` is a folder, and ``FileExistsError`` where it is a file that no
    ``doctor`` wrote, such as the table of labels: all before a picture is decoded.
    """
    workers = None if workers is None else whole_number("workers", workers)
    least_side = whole_number("least_side", least_side, 0)
    if csv is not None:
        csv = _report_file(csv)
    dataset, rows = _open(data, split, images)
    if csv is not None:
        make_folder(csv.parent)
    splits = getattr(dataset, "splits", np.array(["all"] * len(dataset), dtype=object))
    decode = decode and dataset.folder is not None
    found = [row for row in rows if split is None or row[0] == split]
    skipped = Counter(problem for _, _, problem, _ in found)
    looked = list(_look(dataset, splits, workers, least_side)) if decode else []
    bad = pd.DataFrame(looked + found, columns=COLUMNS)
    per_picture, positives, negatives = _labels(dataset)
    report = Report(
        name=f"{len(dataset):,} pictures of {dataset.folder or data}",
        counts=_counts(splits, bad, Counter(row[0] for row in found), per_picture),
        bad=bad,
        labels=pd.DataFrame(
            {
                "label": dataset.labels.names,
                "part": ["seen"] * dataset.labels.n_seen + ["unseen"] * len(dataset.labels.unseen),
                "positives": positives,
                "negatives": negatives,
                "unknown": len(dataset) - positives - negatives,
            }
        ),
        per_picture=per_picture,
        skipped=skipped,
        decoded=decode,
    )
    if csv is not None:
        with replacing(csv) as part:
            bad.to_csv(part, index=False)
    return report


def _report_file(csv) -> Path:
    """Where the bad files are written; a file of something else is not written over."""
    path = no_folder(user_path(csv, "csv, the file for bad pictures,"))
    if not path.is_file():
        return path
    with path.open("rb") as file:
        first = file.readline(99).strip()
    if first != ",".join(COLUMNS).encode():
        raise FileExistsError(f"{path} is a file of something else, and would be lost: give csv another name")
    return path


def _open(data, split, images) -> tuple[ImageFolderTable, list[tuple]]:
    """The dataset, and what its ``prepare`` left out."""
    if isinstance(data, CommonTable):
        if images is not None:
            raise ValueError(
                "images belongs to a folder, and this dataset is loaded already: give load(..., images=<folder>)"
            )
        return data if split is None else data.select(split), []
    if isinstance(data, ImageFolderTable):
        refuse_splits(f"the dataset of {data.folder}", split, images)
        return data, []
    folder = user_path(data, "the folder")
    if not (folder / "about.json").is_file():
        refuse_splits(folder, split, images)
        return read_folder(folder, None, side=112, strict=True, hide_unseen=False), []
    try:
        frame = pd.read_csv(folder / "skipped.csv", dtype=str, keep_default_na=False)
        rows = list(frame[["split", "item", "problem", "detail"]].itertuples(index=False, name=None))
    except (ValueError, KeyError) as error:  # what pandas raises for a table of another kind
        raise ValueError(f"{folder / 'skipped.csv'} is damaged ({error}); prepare the data again") from error
    return load(folder, split=split, images=images), rows


def _look(dataset, splits, workers, least_side):
    """(split, file, problem, detail) of every picture with a problem."""
    first: dict[bytes, int] = {}
    twins: dict[bytes, list[int]] = defaultdict(list)
    for i, seen in enumerate(look_at(dataset.folder, dataset.files, workers, digests=True)):
        if seen.problem:
            yield splits[i], seen.file, "corrupt" if seen.digest else "missing", seen.problem
        elif min(seen.size) < least_side:
            yield splits[i], seen.file, "too small", f"{seen.size[0]} x {seen.size[1]} pixels"
        if not seen.problem and first.setdefault(seen.digest, i) != i:
            twins[seen.digest].append(i)
    for digest, others in twins.items():
        one = first[digest]
        for i in others:
            problem = "same bytes" if splits[i] == splits[one] else "in two splits"
            yield splits[i], dataset.files[i], problem, f"the bytes of {dataset.files[one]} ({splits[one]})"


def _labels(dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positive labels of each picture (n,); pictures with each label, and known to be without it, two (K,)."""
    if hasattr(dataset, "label_counts"):
        return dataset.positives_per_picture(), *dataset.label_counts()
    per_picture = np.zeros(len(dataset), np.int64)
    positives, negatives = np.zeros((2, len(dataset.labels.names)), np.int64)
    for i in range(len(dataset)):
        y = dataset.label_vector(i).numpy()
        per_picture[i] = (y > 0).sum()
        positives += y > 0
        negatives += y < 0
    return per_picture, positives, negatives


def _counts(splits, bad: pd.DataFrame, left_out: Counter, per_picture) -> pd.DataFrame:
    rows = {}
    for split in dict.fromkeys([*splits.tolist(), *left_out]):
        kinds = Counter(bad.loc[bad["split"] == split, "problem"])
        rows[split] = {"pictures": int((splits == split).sum()), "left out": left_out[split]}
        rows[split] |= {kind: kinds[kind] for kind in BAD}
        rows[split] |= {kind: kinds[kind] for kind in ("same bytes", "in two splits")}
        rows[split]["without positives"] = int(((splits == split) & (per_picture == 0)).sum())
    return pd.DataFrame.from_dict(rows, orient="index")


def near_names(space: LabelSpace) -> pd.DataFrame:
    r"""Unseen labels whose names are nearly those of seen labels: columns unseen, seen, why.

    ``why`` is "final s" (cat, cats) or "words of" (one name holds all words of the other: bear, polar bear). Scores of
    such labels are not those of an unknown concept: NUS-WIDE's 925 / 81 split has 30 of the first kind.
    """
    stem = lambda name: re.sub("s$", "", name.lower())
    by_stem, by_word = {}, {}
    for name in space.seen:
        by_stem.setdefault(stem(name), []).append(name)
        for word in set(name.lower().split()):
            by_word.setdefault(word, []).append(name)
    rows = []
    for name in space.unseen:
        rows += [(name, other, "final s") for other in by_stem.get(stem(name), ())]
        words = set(name.lower().split())
        for other in dict.fromkeys(n for word in sorted(words) for n in by_word.get(word, ())):
            theirs = set(other.lower().split())
            if (words <= theirs or theirs <= words) and stem(other) != stem(name):
                rows.append((name, other, "words of"))
    return pd.DataFrame(rows, columns=["unseen", "seen", "why"])


def co_occurrence(dataset, names, most: int = 20_000, seed: int = 0) -> pd.DataFrame:
    r"""Share of the pictures with the row's label that also have the column's, in 0..1; NaN for a label without any.

    ``names``: labels of ``dataset``. Of a larger data set, ``most`` pictures are drawn at random.
    """
    columns = [dataset.labels.names.index(name) for name in names]
    chosen = np.arange(len(dataset))
    if len(chosen) > most:
        chosen = np.sort(np.random.default_rng(seed).choice(len(chosen), most, replace=False))
    present = np.stack([dataset.label_vector(int(i)).numpy()[columns] == 1 for i in chosen]).astype(np.float64)
    both = present.T @ present  # (labels, labels) pictures with both
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(both / np.diag(both)[:, None], index=list(names), columns=list(names))
