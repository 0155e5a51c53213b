r"""A prepared table (``table_format``) as a Dataset, with the interface of ``ImageFolderTable``.

Labels are held sparsely, four bytes per known label, or as one byte per cell where that is smaller (NUS-WIDE, whose
labels are all known). Names of files stay in Arrow. Symbols: n pictures, K labels.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from hrcf_lib.data import table_format
from hrcf_lib.data.labelled_folder import ImageFolderTable, row_numbers
from hrcf_lib.engine.messages import check_known
from hrcf_lib.labels import LabelSpace

BATCH = 4096  # rows held in memory at most while a table is read


class Strings(Sequence):
    """An Arrow array of text as a sequence of ``str``, without a Python object for each."""

    def __init__(self, chunks):
        self._array = chunks.combine_chunks() if chunks.num_chunks != 1 else chunks.chunk(0)

    def __len__(self):
        return len(self._array)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self._array[index].to_pylist()
        return self._array[index].as_py()

    def __eq__(self, other):
        return list(self) == list(other)


class LabelRows:
    r"""Annotations (n, K) of -1, 0 and +1, one row at a time as float32; sparse or one byte per cell.

    Not a ``scipy.sparse`` matrix: keys of feature caches hash these very bytes (``digest``), in either form.
    """

    def __init__(self, n: int, K: int, entries: int):
        self.n, self.K = n, K
        dense = 4 * entries > n * K
        self._dense = np.zeros((n, K), np.int8) if dense else None
        self._codes = None if dense else np.empty(entries, np.int32)  # column k: k if present, -1 - k if absent
        self._offsets = np.zeros(n + 1, np.int64)
        self._filled = 0  # rows

    def append(self, positives: tuple[np.ndarray, np.ndarray], negatives: tuple[np.ndarray, np.ndarray]) -> None:
        """Further rows; each argument is (columns of all rows one after another, number of columns of each row)."""
        (p, n_p), (n, n_n) = positives, negatives
        rows = np.arange(len(n_p))
        row = np.concatenate([np.repeat(rows, n_p), np.repeat(rows, n_n)])
        start, end = self._filled, self._filled + len(rows)
        if self._dense is not None:
            value = np.concatenate([np.ones(len(p), np.int8), np.full(len(n), -1, np.int8)])
            self._dense[start + row, np.concatenate([p, n])] = value
        else:
            self._offsets[start + 1 : end + 1] = self._offsets[start] + np.cumsum(n_p + n_n)
            codes = np.concatenate([p, -1 - n])[np.argsort(row, kind="stable")]
            self._codes[self._offsets[start] : self._offsets[end]] = codes
        self._filled = end

    def __getitem__(self, index: int) -> np.ndarray:
        if self._dense is not None:
            return self._dense[index].astype(np.float32)
        codes = self._codes[self._offsets[index] : self._offsets[index + 1]]
        y = np.zeros(self.K, np.float32)
        y[np.where(codes >= 0, codes, -1 - codes)] = np.where(codes >= 0, 1, -1)
        return y

    def take(self, rows: np.ndarray) -> "LabelRows":
        """The labels of some rows, in that order."""
        part = LabelRows(0, self.K, 0)
        part.n = part._filled = len(rows)
        if self._dense is not None:
            part._dense, part._codes = self._dense[rows], None
            return part
        lengths = np.diff(self._offsets)[rows]
        part._dense, part._offsets = None, np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(part._offsets[-1]) - np.repeat(part._offsets[:-1], lengths)
        part._codes = self._codes[np.repeat(self._offsets[:-1][rows], lengths) + within]
        return part

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """How many pictures have each label, and how many are known not to: two (K,) arrays of int64."""
        if self._dense is not None:
            return (self._dense == 1).sum(0), (self._dense == -1).sum(0)
        present = self._codes >= 0
        columns = np.where(present, self._codes, -1 - self._codes)
        return tuple(np.bincount(columns[side], minlength=self.K) for side in (present, ~present))

    def row_counts(self, keep: np.ndarray) -> np.ndarray:
        """How many of the labels ``keep`` (K,) bool each picture has: (n,)."""
        if self._dense is not None:
            return (self._dense[:, keep] == 1).sum(1)
        counted = (self._codes >= 0) & keep[np.maximum(self._codes, 0)]
        return np.diff(np.concatenate([[0], np.cumsum(counted)])[self._offsets])

    def digest(self) -> bytes:
        """SHA-256 of all annotations."""
        arrays = [self._dense] if self._dense is not None else [self._codes, self._offsets]
        digest = hashlib.sha256()
        for values in arrays:
            digest.update(np.ascontiguousarray(values))
        return digest.digest()


class CommonTable(ImageFolderTable):
    r"""A prepared table as ``(image uint8 (3, side, side), labels (K,) in -1/0/+1)``; made by ``hrcf_lib.data.load``.

    Attributes, in addition to those of ``ImageFolderTable``:
        ids, splits: of each picture; ``rows`` is its row in the official list of its split.
        about: what ``about.json`` says of source, counts and problems.
        extras: further keys of ``label_space.json``, such as ``mids`` of Open Images, in the order of its columns.
        left_out: pictures of the official train that ``held_out`` keeps for the other part.
    """

    left_out = 0

    def __init__(
        self, folder, ids, files, splits, rows, known, table_labels, labels, side, hide_unseen, about, extras, resize
    ):
        super().__init__(folder, files, None, labels, None, side, {}, resize)
        self.ids, self.splits, self.rows, self.about, self.extras = ids, splits, rows, about, extras
        self.table_labels, self.hide_unseen = table_labels, hide_unseen
        self._known = known  # LabelRows in the columns of the table
        place = {name: k for k, name in enumerate(labels.names)}
        pairs = [(place[name], k) for k, name in enumerate(table_labels.names) if name in place]
        self._to, self._from = (np.array(columns, np.int64) for columns in (zip(*pairs) if pairs else ((), ())))

    def path(self, index: int) -> Path:
        """Where a picture lies. Raises ``FileNotFoundError`` for a table that was prepared without pictures."""
        if self.folder is None:
            raise FileNotFoundError(
                f"picture {self.files[index]}: this table was prepared without pictures; "
                "pass load(..., images=<folder>)"
            )
        return super().path(index)

    def label_vector(self, index: int) -> Tensor:
        """(K,) in -1/0/+1. Raises ``IndexError`` beyond the last picture."""
        if not 0 <= index < len(self.files):
            raise IndexError(f"picture {index} of {len(self.files)}")
        y = np.zeros(len(self.labels.names), np.float32)
        y[self._to] = self._known[index][self._from]
        if self.hide_unseen:
            y[self.labels.n_seen :] = 0
        return torch.from_numpy(y)

    def label_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Pictures that have each label, and that are known not to: two (K,) arrays, in the columns of ``labels``."""
        counts = []
        for of_table in self._known.counts():
            of_labels = np.zeros(len(self.labels.names), np.int64)
            of_labels[self._to] = of_table[self._from]
            if self.hide_unseen:
                of_labels[self.labels.n_seen :] = 0
            counts.append(of_labels)
        return tuple(counts)

    def positives_per_picture(self) -> np.ndarray:
        """(n,): how many labels each picture has."""
        keep = np.zeros(len(self.table_labels.names), bool)
        keep[self._from] = True
        if self.hide_unseen:
            keep[self._from[self._to >= self.labels.n_seen]] = False
        return self._known.row_counts(keep)

    def known_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """As ``label_counts``, in the columns of the table, whatever the label space of this dataset leaves out."""
        return self._known.counts()

    def select(self, split: str) -> "CommonTable":
        """The pictures of one split. Raises ``ValueError`` for one that is not in the table."""
        names = list(dict.fromkeys(self.splits.tolist()))
        check_known([split], names, "the table has no split")
        return self.take(np.flatnonzero(self.splits == split))

    def take(self, indices) -> "CommonTable":
        """Some pictures, in the given order. Raises ``ValueError`` for a mask and for numbers of no picture."""
        indices = row_numbers(indices, len(self))
        ids, files = (Strings(pa.chunked_array([s._array.take(pa.array(indices))])) for s in (self.ids, self.files))
        parts = (self.splits[indices], self.rows[indices], self._known.take(indices), self.table_labels)
        rest = (self.labels, self.side, self.hide_unseen, self.about, self.extras, self.resize)
        chosen = CommonTable(self.folder, ids, files, *parts, *rest)
        chosen.ignored = self.ignored
        return chosen

    def fingerprint(self) -> str:
        """A key for caches: label space, side, resize, and every picture's name, size, time of change and labels."""
        settings = f"{self.labels.hash} {self.table_labels.hash} {self._size} {self.hide_unseen}"
        digest = hashlib.sha256(settings.encode() + self._known.digest())
        for file in self.files:
            status = None if self.folder is None else (self.folder / file).stat()
            stamp = "" if status is None else f"{status.st_size}|{status.st_mtime_ns}"
            digest.update(f"{file}|{stamp}\n".encode())
        return f"CommonTable {len(self)} {digest.hexdigest()[:16]}"


def read_prepared(
    out, labels: LabelSpace | None, side: int, hide_unseen: bool, split, images, resize: str = "crop"
) -> CommonTable:
    """A prepared folder as a ``CommonTable``; ``hrcf_lib.data.load`` describes the arguments."""
    out = Path(out).expanduser()
    about = table_format.read_about(out)
    space, extras = table_format.read_label_space(out)
    paths = table_format.shards(out, split)
    root = images if images is not None else about["images"]
    if root is not None and not Path(root).expanduser().is_dir():
        raise FileNotFoundError(f"no folder {root} with the pictures of {out}: pass load(..., images=<folder>)")
    names = list(about["splits"]) if split is None else [split]
    counted = [about["splits"][name] for name in names]
    n, entries = sum(c["rows"] for c in counted), sum(c["positives"] + c["negatives"] for c in counted)
    known, texts, at = LabelRows(n, len(space.names), entries), [], 0
    rows = np.empty(n, np.int32)
    for path in paths:
        with table_format.naming_damage(path):
            for batch in table_format.batches(path, BATCH):
                lists = {}
                for name in ("positives", "negatives"):
                    column = batch.column(name)
                    lists[name] = (column.flatten().to_numpy(), column.value_lengths().to_numpy().astype(np.int64))
                known.append(lists["positives"], lists["negatives"])
                rows[at : at + len(batch)] = batch.column("row").to_numpy()
                texts.append(batch.select(["id", "file"]))
                at += len(batch)
    if at != n:
        raise ValueError(f"{out} has {at} rows, its about.json counts {n}; prepare the data again")
    table = pa.Table.from_batches(texts, pa.schema([("id", pa.string()), ("file", pa.string())]))
    splits = np.repeat(np.array(names, object), [c["rows"] for c in counted])
    root = None if root is None else Path(root).expanduser()
    parts = (Strings(table.column("id")), Strings(table.column("file")), splits, rows, known, space)
    return CommonTable(root, *parts, labels or space, side, hide_unseen, about, extras, resize)
