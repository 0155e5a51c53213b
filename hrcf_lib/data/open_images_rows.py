r"""The tables of labels of Open Images, read as a stream: one image at a time, however long the table is.

::

    ImageID,Source,LabelName,Confidence
    00000000000000a1,verification,/m/0aaa1,1

``Confidence`` is 1 for "verified present" and 0 for "verified absent". The official tables are sorted by image; one
that is not is grouped through temporary files. Rows that cannot be read are named and left out.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm.auto import tqdm

HEADER = "ImageID,Source,LabelName,Confidence"
CONFIDENCE = {"1": 1, "0": -1, "1.0": 1, "0.0": -1}
ENDING = "-annotations-human-imagelabels.csv"
HEX = set("0123456789abcdefABCDEF")


def read(path: Path, skip) -> Iterator[tuple[str, dict[str, int]]]:
    r"""The images of a table of labels, each with its labels mid -> +1 or -1, in bounded memory.

    A table that is not sorted by image is grouped through files in the system's temporary folder, and then comes
    sorted. ``skip(item, problem, detail)`` is told of rows that cannot be read.
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
    """(image, mid, +1 or -1) of each line that can be read; the others are told to ``skip``, with their number."""
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
    """Raises ``ValueError`` for a table that begins otherwise than the official ones."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline().strip()
    if first != HEADER:
        raise ValueError(f"{path} begins with {first[:80]!r}, expected {HEADER!r}; download the table again")


def is_image_id(text: str) -> bool:
    return len(text) == 16 and not set(text) - HEX
