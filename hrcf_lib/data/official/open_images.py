r"""Open Images V4: 7,186 seen (trainable) and 400 unseen labels, image-level labels verified by people.

Official files of ``2018_04``, found by name wherever they lie below the source folder::

    {train,validation,test}-annotations-human-imagelabels.csv     ImageID,Source,LabelName,Confidence (sorted by image)
    class-descriptions.csv, classes-trainable.txt                 optional: checked against the published lists
    *-images*-with-rotation.csv                                   optional: addresses for the list of what is missing

Confidence 1 is "verified present" (+1), 0 "verified absent" (-1); a label without a row is unknown (0). Of several rows
for one image and label the last one wins. Labels are keyed by mid, since 107 display names of the seen labels are
shared; where CLIP's tokenizer, which ignores case, could not tell two names apart, the later ones get a number, as in
"Snowshoe (sense 2)" (``distinct_names``). The training table has 28 million rows: it is read as a stream, one image at
a time. Measured with generated tables of 0.5 and of 5 million training rows beside val and test in full: a peak of 43
MB, the same for both, on top of the 609 MB of the imported library; 9 s a million rows on one core. Sources: TFDS, code
of LESA and BiAM (which read chunks of rows, and so split images; not done here).
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
from tqdm.auto import tqdm

from hrcf_lib.data import table_format, table_writer
from hrcf_lib.data.images import find_file
from hrcf_lib.data.official import checks
from hrcf_lib.engine.files import replacing
from hrcf_lib.engine.messages import list_some
from hrcf_lib.labels import LabelSpace, clean_name

IMAGES = {"train": 9_011_219, "val": 41_620, "test": 125_436}  # published numbers of images, without labels included
SPLITS = {"test": "test", "val": "validation", "train": "train"}  # ours -> official; the largest last
FOLDERS = [f"train_{digit:x}" for digit in range(16)] + list(SPLITS.values())  # of pictures, as the archives unpack


def prepare(source, out, images=None) -> Path:
    r"""Write Open Images V4 in the common form to ``out``: those of the splits train, val, test that are there.

    Args:
        source: folder with the official tables.
        out: folder to make; see ``table_format`` for what it holds, ``table_writer`` for interrupted runs.
        images: root of the pictures, by default ``images`` below ``source``, or ``source`` itself if it has a folder
            train, validation, test or train_0. Any of the three official sources, also mixed:
            ``train/<ImageID>.jpg`` (bucket), ``train_0/<ImageID>.jpg`` (archives, unpacked), or ``<ImageID>.jpg``
            (fetched from OriginalURL). False writes the labels alone.

    Rows are kept in the order of the table. Images none of whose labels is among the 7,586 are kept too: protocols
    differ in which images they leave out. Rows that cannot be read and missing pictures are counted and named in
    ``skipped.csv``; ``missing`` makes a list of the latter to download from, again and again until nothing is missing.

    Raises:
        FileNotFoundError: no such folder, or none of the three tables below it.
        ValueError: a table with another header or of machine labels, lists of classes other than the published ones,
            an image in two splits, or no row that can be used.
    """
    files = checks.Source(source, (".csv", ".txt"), prune=FOLDERS)
    tables = {name: files.get(other + ENDING) for name, other in SPLITS.items()}
    if not any(tables.values()):
        files.need(SPLITS["train"] + ENDING, archive="the 2018_04 release")
    root = _images(files.folder, images)
    space, extras = label_space()
    column = {mid: k for k, mid in enumerate(extras["mids"])}
    known = _check_lists(files, extras)
    notes = [f"{SPLITS[name]}{ENDING} is missing: no split {name}" for name, path in tables.items() if path is None]
    notes += [f"not unpacked: {list_some(files.archives)}"] * bool(files.archives)
    for path in filter(None, tables.values()):
        check_header(path)

    evaluation: dict[int, str] = {}  # image -> split: 170,000 of test and validation, to find them again in train
    with table_writer.writing(
        out, "open_images", source, space, root, {"source": files.state()}, {"notes": notes}, **extras
    ) as t:
        for name, path in tables.items():
            if path is None or t.done(name):
                evaluation |= {} if path is None or name == "train" else _done_ids(t.part, name)
                continue
            with t.split(name, SPLITS[name], IMAGES[name]) as split:
                for image, labels in read_rows(path, split.skip):
                    _keep_apart(evaluation, image, name, path)
                    present, absent = [], []
                    for mid, value in labels.items():
                        if mid in column:
                            (present if value == 1 else absent).append(column[mid])
                        elif known is None or mid in known:
                            split.notes["labels beyond the 7,586"] += 1
                        else:
                            split.skip(image, "unknown label", mid)
                    if not present and not absent:
                        split.notes["images without any of the labels"] += 1
                    split.add(image, places(image, SPLITS[name]), sorted(present), sorted(absent))
    return Path(out)


def _keep_apart(evaluation: dict[int, str], image: str, split: str, path: Path) -> None:
    """``ValueError`` for an image of another split; notes those of val and test."""
    number = int(image, 16)
    other = evaluation.get(number)
    if other is not None:
        raise ValueError(f"image {image} is in {SPLITS[other]}{ENDING} and in {path}: download both tables again")
    if split != "train":
        evaluation[number] = split


def places(image: str, split: str) -> tuple[str, ...]:
    """Where the picture of an image may be, below the images root: as the bucket, the archives or a download has it."""
    file = f"{image}.jpg"
    folder = f"train_{image[0]}" if split == "train" else split
    return tuple(dict.fromkeys((f"{split}/{file}", f"{folder}/{file}", f"{split}/{folder}/{file}", file)))


def label_space() -> tuple[LabelSpace, dict]:
    """The 7,186 + 400 labels under distinct names, and their ``mids`` and ``display_names`` in the same order."""
    seen, unseen = (checks.label_list(f"open_images_{part}.csv") for part in ("seen7186", "unseen400"))
    mids, display = (list(items) for items in zip(*seen, *unseen))
    names = distinct_names(display)
    return LabelSpace(names[: len(seen)], names[len(seen) :]), {"mids": mids, "display_names": display}


def distinct_names(names: Iterable[str]) -> list[str]:
    r"""Names that differ also in lower case: the second "Crane" becomes "Crane (sense 2)", and so on.

    >>> distinct_names(["Crane", "Bat", "crane"])
    ['Crane', 'Bat', 'crane (sense 2)']
    """
    names = [clean_name(name) for name in names]
    taken, times, distinct = {name.lower() for name in names}, {}, []
    for name in names:
        times[name.lower()] = number = times.get(name.lower(), 0) + 1
        if number > 1:
            while f"{name.lower()} (sense {number})" in taken:
                number += 1
            name = f"{name} (sense {number})"
            taken.add(name.lower())
        distinct.append(name)
    return distinct


def missing(out, images=None, source=None) -> Path:
    r"""Write ``missing.csv`` (split, ImageID, OriginalURL, OriginalMD5) and ``missing.txt`` of what ``prepare`` missed.

    ``missing.txt`` has one ``split/ImageID`` per line, the form that the official download script takes. Pictures that
    have come in since are left out, so after an interrupted download call this again; run ``prepare`` when nothing
    more can be had. To begin a download, prepare with ``images=False``: then all images of the table are looked for.
    ``images``: the root, if not that of ``prepare``; ``source``: folder with the tables of images, to fill in the last
    two columns. Returns the path of ``missing.csv``.
    """
    out = Path(out).expanduser()
    about = table_format.read_about(out)
    root = images if images is not None else about["images"]
    if root is None:
        raise ValueError(f"{out} was prepared without pictures: give images=<folder> where they will be")
    lacking = []
    for name, image in _without_picture(out) if about["images"] else _all_images(out):
        split = SPLITS[name]
        found = (find_file(Path(root).expanduser(), place) for place in places(image, split))
        if not any(size for _, size in filter(None, found)):
            lacking.append((split, image))
    address = {} if source is None else _addresses(source, [image for _, image in lacking])
    with replacing(out / "missing.txt") as part:
        part.write_text("".join(f"{split}/{image}\n" for split, image in lacking), encoding="utf-8")
    with replacing(out / "missing.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("split", "ImageID", "OriginalURL", "OriginalMD5"))
        rows.writerows((split, image, *address.get(int(image, 16), ("", ""))) for split, image in lacking)
    return out / "missing.csv"


def _without_picture(out: Path) -> Iterator[tuple[str, str]]:
    """(split, image) of the pictures that ``prepare`` did not find."""
    with (out / "skipped.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["problem"] in ("missing picture", "empty picture file"):
                yield row["split"], row["item"]


def _all_images(out: Path) -> Iterator[tuple[str, str]]:
    """(split, image) of all rows of a table."""

    for path in table_format.shards(out):
        for batch in pq.ParquetFile(path).iter_batches(columns=["id", "split"]):
            yield from zip(batch.column("split").to_pylist(), batch.column("id").to_pylist())


def _addresses(source, images: list[str]) -> dict[int, tuple[str, str]]:
    """Image -> (address, MD5) from the tables of images below ``source``, for the given images only."""
    wanted, found = {int(image, 16) for image in images}, {}
    tables = checks.Source(source, (".csv",), prune=FOLDERS).matching("-with-rotation.csv")
    if not tables:
        raise FileNotFoundError(
            f"{source} holds no *-with-rotation.csv: download the tables of images, or leave source out"
        )
    for path in tables:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            table = csv.DictReader(file)
            if not {"ImageID", "OriginalURL", "OriginalMD5"} <= set(table.fieldnames or ()):
                raise ValueError(
                    f"{path} begins with {','.join(table.fieldnames or ())[:80]!r}, expected the columns ImageID, "
                    "OriginalURL and OriginalMD5; download the table again"
                )
            for row in table:
                if is_image_id(row["ImageID"] or "") and (image := int(row["ImageID"], 16)) in wanted:
                    found[image] = (row["OriginalURL"], row["OriginalMD5"])
    return found


def _images(source: Path, images) -> Path | None:
    if images is None and any((source / name).is_dir() for name in FOLDERS):
        return source
    return checks.image_root(source, images, ("images",))


def _check_lists(files: checks.Source, extras: dict) -> set[str] | None:
    """Compare the lists of classes of the download, where they are, with the published ones; all known mids or None."""
    trainable = files.get("classes-trainable.txt")
    if trainable is not None:
        seen = [mid for mid, _ in checks.label_list("open_images_seen7186.csv")]
        checks.same_list(checks.lines(trainable), seen, str(trainable))
    described = files.get("class-descriptions.csv")
    if described is None:
        return None
    with described.open(newline="", encoding="utf-8-sig") as file:
        known = {row[0] for row in csv.reader(file) if row}
    lacking = [mid for mid in extras["mids"] if mid not in known]
    if lacking:
        raise ValueError(
            f"{described} does not describe {len(lacking)} of the labels, such as {list_some(lacking)}; take V4's"
        )
    return known


def _done_ids(part: Path, name: str) -> dict[int, str]:
    """The images of a split that an interrupted run completed."""

    ids = (
        pq.read_table(path, columns=["id"]).column("id").to_pylist() for path in sorted(part.glob(f"{name}-*.parquet"))
    )
    return {int(image, 16): name for shard in ids for image in shard}


HEADER = "ImageID,Source,LabelName,Confidence"
CONFIDENCE = {"1": 1, "0": -1, "1.0": 1, "0.0": -1}
ENDING = "-annotations-human-imagelabels.csv"
HEX = set("0123456789abcdefABCDEF")


def read_rows(path: Path, skip) -> Iterator[tuple[str, dict[str, int]]]:
    r"""The images of a table of labels, each with its labels mid -> +1 or -1, in bounded memory.

    A table that is not sorted by image is grouped through files in the system's temporary folder, and then comes
    sorted. ``skip(item, problem, detail)`` is called for rows that cannot be read.
    """
    lines, in_order = survey(path)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        next(file)
        rows = parse(tqdm(file, total=lines, desc=path.name, disable=None, leave=False), path.name, skip)
        yield from group(rows) if in_order else regroup(rows)


def survey(path: Path) -> tuple[int, bool]:
    """Number of lines below the header, and whether the images come in ascending order; reads the file once."""
    last, in_order, n = b"", True, 0
    with path.open("rb") as file:
        next(file, None)
        for line in file:
            image = line[:16]
            in_order &= image >= last
            last, n = image, n + 1
    return n, in_order


def parse(lines: Iterable[str], name: str, skip) -> Iterator[tuple[str, str, int]]:
    """(image, mid, +1 or -1) of each line that can be read; ``skip`` gets the others, with their number."""
    for number, line in enumerate(lines, 2):
        cells = line.rstrip("\r\n").split(",")
        if len(cells) != 4:
            if line.strip():
                skip(f"{name}:{number}", "unreadable row", f"{len(cells)} cells instead of 4: {line.strip()[:80]}")
            continue
        image, origin, mid, confidence = cells
        if origin == "machine":
            raise ValueError(f"{name}, line {number} is a machine label; take the table of human labels, *{ENDING}")
        value = CONFIDENCE.get(confidence)
        if value is None or not mid.startswith("/") or not is_image_id(image):
            skip(f"{name}:{number}", "unreadable row", line.strip()[:80])
            continue
        yield image, mid, value


def group(rows: Iterable[tuple[str, str, int]]) -> Iterator[tuple[str, dict[str, int]]]:
    """Join the rows of each image; only those of one image are held. The last row of a label wins."""
    current, labels = None, {}
    for image, mid, value in rows:
        if image != current:
            if current is not None:
                yield current, labels
            current, labels = image, {}
        labels.pop(mid, None)
        labels[mid] = value
    if current is not None:
        yield current, labels


def regroup(rows: Iterable[tuple[str, str, int]]) -> Iterator[tuple[str, dict[str, int]]]:
    """As ``group`` for rows in any order: 256 temporary files by the first digits of the image, one held at a time."""
    with TemporaryDirectory(prefix="open_images_") as folder:
        names = [f"{k:02x}" for k in range(256)]
        buckets = {name: (Path(folder) / name).open("w", encoding="utf-8") for name in names}
        try:
            for image, mid, value in rows:
                buckets[image[:2].lower()].write(f"{image},{mid},{value}\n")
        finally:
            for bucket in buckets.values():
                bucket.close()
        for name in names:
            with (Path(folder) / name).open(encoding="utf-8") as bucket:
                cells = (line.rstrip("\n").split(",") for line in bucket)
                some = sorted(((image, mid, int(value)) for image, mid, value in cells), key=lambda row: row[0])
            yield from group(some)  # sorting is stable: the last row of the table stays the last


def check_header(path: Path) -> None:
    """Raises ``ValueError`` for a table whose header is not the official one."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline().strip()
    if first != HEADER:
        raise ValueError(f"{path} begins with {first[:80]!r}, expected {HEADER!r}; download the table again")


def is_image_id(text: str) -> bool:
    return len(text) == 16 and not set(text) - HEX
