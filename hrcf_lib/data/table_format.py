r"""The common form on disk: what every ``prepare`` writes and ``hrcf_lib.data.load`` reads.

::

    train-00000.parquet   id, file, split, row, positives, negatives    (shards, some per split)
    label_space.json      seen and unseen names in column order, their hash, optional further keys such as mids
    about.json            source, images root, counts found and expected, hashes of the shards, problems, versions
    skipped.csv           split,item,problem,detail: everything that was left out, by name

``file`` is relative to the images root; ``row`` is the picture's row in the official list of its split, pictures that
are missing here included. ``positives`` and ``negatives`` are lists of int32 columns; a label in neither is unknown.
The shards are plain Parquet: ``datasets.load_dataset("parquet", data_files=...)`` reads them too (``stream``).

This file reads the description of a table; ``table_writer`` writes tables, ``table`` reads them as a Dataset.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hrcf_lib.engine.files import read_json
from hrcf_lib.engine.hashes import check_file
from hrcf_lib.engine.messages import check_known
from hrcf_lib.labels import LabelSpace, check_names

FORM = 1  # version of the form
MOST = 10**12  # of anything that is counted


def read_about(out) -> dict:
    """``about.json`` of a prepared folder. Raises ``FileNotFoundError`` or ``ValueError`` where it is not one."""
    about = _read_json(Path(out), "about.json", "form", "splits", "images")
    if fault := _fault(about):
        raise ValueError(f"{Path(out) / 'about.json'} was changed, or is damaged: {fault}; prepare the data again")
    return about


COUNTED = ("listed", "rows", "positives", "negatives", "shards")  # what is said of each split, whole numbers


def _fault(about: dict) -> str | None:
    """What in ``about.json`` is of another kind than a ``prepare`` writes, of all that is read again."""
    images, splits = about["images"], about["splits"]
    if not isinstance(images, str | None):
        return f"its images are {images!r:.60}, where the path of a folder should be"
    if not isinstance(splits, dict) or not splits:
        return f"its splits are {splits!r:.60}, where splits by name should be"
    for name, counts in splits.items():
        if not re.fullmatch(r"[\w.-]+", name) or not isinstance(counts, dict):
            return f"its split {name!r:.60} is {counts!r:.60}"
        for key in COUNTED:
            value = counts.get(key)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
                return f"{key} of its split {name} is {value!r:.60}, where a number from 0 to {MOST:,} should be"
        if counts["shards"] > counts["rows"]:
            return f"its split {name} has {counts['shards']:,} shards of {counts['rows']:,} rows"
        if not isinstance(counts.get("hashes"), list | None) or not isinstance(counts.get("problems", {}), dict):
            return f"hashes or problems of its split {name} are of another kind"
    return None


def read_label_space(out) -> tuple[LabelSpace, dict]:
    """The ``LabelSpace`` of a prepared folder and further keys of its file; raises ``ValueError`` if it was edited."""
    values = _read_json(Path(out), "label_space.json", "seen", "unseen", "hash")
    seen, unseen = values.pop("seen"), values.pop("unseen")
    try:
        space = LabelSpace(check_names(seen, "seen"), unseen if unseen == [] else check_names(unseen, "unseen"))
    except ValueError as error:
        raise ValueError(f"{Path(out) / 'label_space.json'}: {error}; prepare the data again") from error
    if space.hash != (stated := values.pop("hash")):
        raise ValueError(
            f"{Path(out) / 'label_space.json'} was changed: its names have the hash {space.hash}, it states {stated}; "
            "prepare the data again, or pass load(..., labels=) to choose other labels"
        )
    return space, values


def shards(out, split: str | None = None) -> list[Path]:
    """Parquet files of one split, or of all in the order of ``about.json``, each checked by its hash if it has one.

    Raises ``ValueError`` for an unknown split, one without pictures, or a damaged file, ``FileNotFoundError`` for one
    that is missing.
    """
    out = Path(out)
    splits = read_about(out)["splits"]
    if split is not None:
        check_known([split], list(splits), f"{out} has no split")
        if not splits[split]["shards"]:
            raise ValueError(
                f"{out} has no pictures in its split {split!r}: all {splits[split]['listed']:,} were left out "
                f"({count(splits[split]['problems'])}, see skipped.csv); prepare the data again when they are there"
            )
    names = list(splits) if split is None else [split]
    paths, lost = [], []
    for name in names:
        for k in range(splits[name]["shards"]):
            paths.append(out / f"{name}-{k:05d}.parquet")
            lost += [] if paths[-1].is_file() else [paths[-1].name]
            if len(lost) > 5:  # however many are counted
                break
    if lost:
        raise FileNotFoundError(f"{out} lacks {', '.join(lost)}, which its about.json counts; prepare the data again")
    hashes = [h for name in names for h in splits[name].get("hashes") or [None] * splits[name]["shards"]]
    if len(hashes) != len(paths):
        raise ValueError(
            f"{out / 'about.json'} has {len(hashes)} hashes of {len(paths)} shards; prepare the data again"
        )
    for path, expected in zip(paths, hashes):
        with naming_damage(path):
            check_file(path, expected)
    return paths


def batches(path: Path, rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a shard, some at a time. Raises ``ValueError`` for rows of another split than its name says."""
    split = path.name.rpartition("-")[0]
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=rows):
            if not pc.all(pc.equal(batch.column("split"), split), min_count=0).as_py():
                raise ValueError(f"it has rows of another split than {split}")
            yield batch


@contextmanager
def naming_damage(path: Path):
    """Context of reading a shard: whatever goes wrong becomes a ``ValueError`` that names it and says what to do."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); prepare the data again") from error


def stream(out, split: str, shuffle_buffer: int = 0, seed: int = 0):
    r"""The rows of a split as a Hugging Face ``datasets.IterableDataset``, read shard by shard in bounded memory.

    ``datasets.distributed.split_dataset_by_node`` divides it between processes.
    """
    import datasets

    paths = [str(path) for path in shards(out, split)]
    features = datasets.Features.from_arrow_schema(pq.read_schema(paths[0]))
    # not load_dataset("parquet", streaming=True): datasets 5 ends each pass over it with a sleep of five seconds
    rows = datasets.IterableDataset.from_generator(_rows, features=features, gen_kwargs={"paths": paths}, split=split)
    return rows.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer else rows


def _rows(paths):
    """Rows of Parquet files, a thousand in memory at a time; a list, so that ``datasets`` can deal out the files."""

    for path in map(Path, paths):
        with naming_damage(path):
            for batch in batches(path, 1000):
                yield from batch.to_pylist()


def summary(out) -> str:
    """One line per split: rows found, listed and expected, and what was skipped."""
    about = read_about(out)
    lines = [f"{about['dataset']} in {out}"]
    for name, counts in about["splits"].items():
        expected = f", {counts['expected']:,} published" if counts["expected"] else ""
        skipped = f"; {count(counts['problems'])}" if counts["problems"] else ""
        lines.append(f"{name}: {counts['rows']:,} of {counts['listed']:,} pictures{expected}{skipped}")
    return "\n".join(lines + [f"note: {note}" for note in about.get("notes", ())])


def count(problems) -> str:
    """Numbers of problems by kind, as text."""
    return ", ".join(f"{n:,} {problem}" for problem, n in problems.items()) or "no problems"


def _read_json(out: Path, name: str, *keys: str) -> dict:
    path = out.expanduser() / name
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{out} has no {name}: it is not a prepared folder; run prepare(source, out)") from None
    except ValueError as error:
        raise ValueError(f"{error}; prepare the data again") from error
    lacking = [key for key in keys if key not in values]
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}; prepare the data again")
    if values.get("form", FORM) != FORM:
        raise ValueError(f"{path} has form {values['form']}, this version reads form {FORM}; prepare the data again")
    return values
