r"""Writing the common form (``table_format``): streaming, atomic, and continued after an interruption.

Everything goes to ``<out>.part``, which is renamed to ``<out>`` at the very end, so a folder with that name is
complete. After an interruption the same call keeps the splits that were complete and continues with the others; if the
source or the settings changed, it begins anew. Two processes must not write one ``out`` at the same time.
"""

import csv
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hrcf_lib.data.images import find_file, is_outside
from hrcf_lib.data.table_format import FORM, count
from hrcf_lib.engine.files import full_disk_named, read_json, remove_abandoned, write_json
from hrcf_lib.engine.hashes import hash_file
from hrcf_lib.engine.messages import list_some, user_path
from hrcf_lib.labels import LabelSpace

SHARD = 200_000  # rows of one Parquet file
GROUP = 4096  # rows held in memory at most before they are written, one Parquet row group
ENTRIES = 2**22  # labels held in memory at most (and those of one more picture)
ENDINGS = (".parquet", ".json", ".csv", ".txt")  # of files in a prepared folder
COUNTS, LOG = ".counts.json", ".skipped.csv"  # of each split, until the table is complete
PACKAGES = ("hrcf", "numpy", "pandas", "pillow", "pyarrow")


class Table:
    r"""A folder being written in the common form; made by ``writing``. ``K`` is the number of columns."""

    def __init__(self, part: Path, images: Path | None, K: int):
        self.part, self.images, self.K = part, images, K

    def done(self, split: str) -> bool:
        """Whether an interrupted run already completed this split."""
        return (self.part / f"{split}{COUNTS}").is_file()

    def counts(self, split: str) -> dict:
        """What was counted in a split that is complete."""
        return read_json(self.part / f"{split}{COUNTS}")

    @contextmanager
    def split(self, name: str, official: str, expected: int | None = None):
        r"""A ``Split`` to add pictures to. It counts as complete when the ``with`` block ends without an error.

        ``official`` is the name of the split in the source, ``expected`` the number of pictures its publishers state.
        """
        for old in self.part.glob(f"{name}-*.parquet"):
            old.unlink()
        with full_disk_named(self.part / f"{name}-*.parquet"):
            split = Split(self, name)
            try:
                yield split
                split.flush()
            finally:
                split.close()
        counts = {
            "official": official,
            "expected": expected,
            **split.counts(),
            "hashes": [hash_file(self.part / f"{name}-{k:05d}.parquet") for k in range(split.shards)],
            "problems": dict(split.problems),
            "notes": dict(split.notes),
        }
        write_json(self.part / f"{name}{COUNTS}", counts)


class Split:
    """One split being written: ``add`` for each row of the official list, ``skip`` for whatever is left out."""

    def __init__(self, table: Table, name: str):
        self.table, self.name = table, name
        self.listed = self.rows = self.shards = self.positives = self.negatives = self.without_positives = 0
        self.problems: Counter = Counter()  # what was left out
        self.notes: Counter = Counter()  # what is only counted
        self._rows: list[tuple] = []  # (id, file, row)
        self._lists = {kind: (array("i"), array("i", [0])) for kind in ("positives", "negatives")}  # values, offsets
        self._writer, self._in_shard = None, 0
        self._log = (table.part / f"{name}{LOG}").open("w", newline="", encoding="utf-8")
        self._skipped = csv.writer(self._log)

    def add(self, id: str, files: str | Sequence[str], positives: Iterable[int], negatives: Iterable[int]) -> bool:
        r"""Add the next row of the official list; returns False, and names it as left out, where its picture is
        missing, empty or outside the images root (``is_outside``).

        ``files``: where the picture may be below the images root; the first that exists and is not empty is taken.
        """
        self.listed += 1
        files = (files,) if isinstance(files, str) else files
        file = files[0]
        if away := [name for name in files if is_outside(name)]:
            return self.skip(id, "picture outside the folder", away[0])
        if self.table.images is not None:
            found = None
            for name in files:
                found = find_file(self.table.images, name) or found
                if found and found[1]:
                    break
            if found is None:
                return self.skip(id, "missing picture", files[0])
            file, size = found
            if size == 0:
                return self.skip(id, "empty picture file", file)
        self._rows.append((id, file, self.listed - 1))
        for kind, columns in (("positives", positives), ("negatives", negatives)):
            values, offsets = self._lists[kind]
            values.frombytes(np.asarray(columns, np.int32).tobytes())
            offsets.append(len(values))
        if len(self._rows) >= GROUP or sum(len(v) for v, _ in self._lists.values()) >= ENTRIES:
            self.flush()
        return True

    def drop(self, id: str, problem: str, detail: str = "") -> bool:
        """A row of the official list that is left out: counted as listed, and named in ``skipped.csv``."""
        self.listed += 1
        return self.skip(id, problem, detail)

    def skip(self, item: str, problem: str, detail: str = "") -> bool:
        """Name something in ``skipped.csv`` and count its kind of problem; returns False."""
        self.problems[problem] += 1
        self._skipped.writerow((self.name, item, problem, detail))
        return False

    def counts(self) -> dict:
        names = ("listed", "rows", "positives", "negatives", "without_positives", "shards")
        return {name: getattr(self, name) for name in names}

    def flush(self) -> None:
        """Write what is held in memory. Raises ``ValueError`` for columns out of range, twice, or in both lists."""

        if not self._rows:
            return
        ids, files, rows = zip(*self._rows)
        lists = {k: (np.array(v, np.int32), np.array(o, np.int32)) for k, (v, o) in self._lists.items()}
        self._check(ids, lists)
        columns = {"id": ids, "file": files, "split": [self.name] * len(ids), "row": pa.array(rows, pa.int32())}
        for kind, (values, offsets) in lists.items():
            columns[kind] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
        batch = pa.table(columns)
        if self._writer is None:
            packed = {f"{kind}.list.element": "DELTA_BINARY_PACKED" for kind in lists}  # runs of columns: 1 bit each
            path = self.table.part / f"{self.name}-{self.shards:05d}.parquet"
            options = {"compression": "zstd", "use_dictionary": ["split"], "column_encoding": packed}
            self._writer, self._in_shard = pq.ParquetWriter(path, batch.schema, **options), 0
            self.shards += 1
        self._writer.write_table(batch)
        self.rows += len(ids)
        self._in_shard += len(ids)
        self.positives += len(lists["positives"][0])
        self.negatives += len(lists["negatives"][0])
        self.without_positives += int((np.diff(lists["positives"][1]) == 0).sum())
        self._rows = []
        self._lists = {kind: (array("i"), array("i", [0])) for kind in lists}
        if self._in_shard >= SHARD:
            self._writer.close()
            self._writer = None

    def _check(self, ids, lists) -> None:
        K = self.table.K
        rows = np.concatenate([np.repeat(np.arange(len(ids)), np.diff(offsets)) for _, offsets in lists.values()])
        columns = np.concatenate([values for values, _ in lists.values()])
        wrong = (columns < 0) | (columns >= K)
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(f"picture {ids[rows[at]]!r} has label column {columns[at]}; columns go from 0 to {K - 1}")
        keys = np.sort(rows.astype(np.int64) * K + columns, kind="stable")
        twice = keys[1:] == keys[:-1]
        if twice.any():
            row, column = divmod(int(keys[:-1][twice][0]), K)
            raise ValueError(
                f"picture {ids[row]!r} has label column {column} twice; list it once, as present or as absent"
            )

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._log.close()


@contextmanager
def writing(out, dataset: str, source, space: LabelSpace, images, key: dict, about: dict, **extras):
    r"""A ``Table`` to write ``out`` with. At the end of the ``with`` block the folder gets its name, all at once.

    Args:
        out: folder to make. One that holds an earlier table is replaced when the new one is complete.
        dataset, source: for ``about.json``; ``about`` holds further values for it.
        images: root of the pictures; None writes the rows without looking for pictures.
        key: plain values that the table depends on (settings, state of the source files); an interrupted run is
            continued only if they are the same.
        extras: further keys of ``label_space.json``.

    Raises:
        FileExistsError: ``out`` holds other files than a table in the common form, or pictures or folders beside it.
        ValueError: the table has no rows; the message counts what was skipped.
    """
    out = user_path(out, "out")
    if out.exists() and not (out / "about.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} holds something other than a prepared table; choose another folder for out")
    if foreign := sorted(p.name for p in out.glob("*") if p.is_dir() or p.suffix not in ENDINGS):
        raise FileExistsError(
            f"{out} is to be replaced, but beside the prepared table it holds {list_some(foreign)}, which would be "
            "lost; move them, or choose another folder for out"
        )
    part = out.with_name(out.name + ".part")
    images = None if images is None else Path(images).expanduser().resolve()
    state = {"form": FORM, "dataset": dataset, "labels": space.hash, "images": images and str(images), **key}
    if not _same(part / "key.json", state):
        (part / "key.json").unlink(missing_ok=True)  # first: what is left of a folder half removed belongs to no run
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write_json(part / "key.json", state)
    remove_abandoned(part)
    yield (table := Table(part, images, len(space.names)))

    names = sorted((path.name.removesuffix(COUNTS) for path in part.glob(f"*{COUNTS}")), key=_order)
    splits = {name: table.counts(name) for name in names}
    problems = sum((Counter(counts["problems"]) for counts in splits.values()), Counter())
    if not sum(counts["rows"] for counts in splits.values()):
        listed = sum(counts["listed"] for counts in splits.values())
        place = "correct the tables" if images is None else f"images are looked for in {images}: correct the path"
        first = _first_skipped(part)
        shutil.rmtree(part)  # nothing to continue: the next run looks for the pictures again
        raise ValueError(
            f"none of the {listed} pictures of {source} can be used ({count(problems)}; the first: {first}); {place}"
        )
    with (part / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
        file.write("split,item,problem,detail\n")
        for path in _logs(part):
            with path.open(newline="", encoding="utf-8") as log:
                shutil.copyfileobj(log, file)
    write_json(part / "label_space.json", {"seen": space.seen, "unseen": space.unseen, "hash": space.hash, **extras})
    stated = {"form": FORM, "dataset": dataset, "source": str(source), "images": images and str(images)}
    stated |= {"splits": splits, "problems": dict(problems), **about, "versions": {p: _version(p) for p in PACKAGES}}
    write_json(part / "about.json", stated)
    for path in (part / "key.json", *part.glob(f"*{COUNTS}"), *part.glob(f"*{LOG}")):  # the key first: without it
        path.unlink()  # nothing of a run that ends here is taken for the state of one to continue
    old = out.with_name(out.name + ".old.part")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _order(split: str) -> tuple:
    """Train first, test last, others in alphabetical order."""
    return {"train": 0, "val": 1, "test": 3}.get(split, 2), split


def _logs(part: Path) -> list[Path]:
    return sorted(part.glob(f"*{LOG}"), key=lambda path: _order(path.name.removesuffix(LOG)))


def _first_skipped(part: Path) -> str:
    for path in _logs(part):
        with path.open(newline="", encoding="utf-8") as file:
            for _, item, problem, detail in csv.reader(file):
                return f"{item}, {problem} {detail}".strip()
    return "the list is empty"


def _same(path: Path, state: dict) -> bool:
    try:
        return read_json(path) == json.loads(json.dumps(state))
    except (FileNotFoundError, ValueError):
        return False


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
