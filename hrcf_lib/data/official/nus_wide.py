r"""NUS-WIDE: 269,648 photographs, 925 seen labels (Flickr tags) and 81 unseen ones (human concepts).

Official files, found by name wherever they were unpacked::

    ImageList/Imagelist.txt, TrainImagelist.txt, TestImagelist.txt      folder\NNNN_photoid.jpg, one row per picture
    ConceptsList/Concepts81.txt, NUS_WID_Tags/TagList1k.txt             names
    Groundtruth/AllLabels/Labels_<concept>.txt                          0 or 1 per row, in the order of Imagelist.txt
    Groundtruth/TrainTestLabels/Labels_<concept>_{Train,Test}.txt       the same in the order of the two lists
    NUS_WID_Tags/AllTags1k.txt                                          1,000 times 0 or 1 per row

Rows are joined through the image lists only: the order of ``NUS-WIDE-urls.txt`` is another one. The 81 concepts carry
human labels, the 925 tags (the 1,000 without those that are also concepts) what uploaders wrote: -1 there means that
nobody wrote the tag. No label is unknown. A photograph that was uploaded twice has two rows, so the id of a row is its
``folder/file``. Sources: the official read-me; code of LESA and BiAM.
"""

import mmap
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from hrcf_lib.data import table_writer
from hrcf_lib.data.official import checks
from hrcf_lib.engine.messages import list_some
from hrcf_lib.labels import LabelSpace

IMAGES = {"train": 161_789, "test": 107_859}  # published numbers of pictures
LISTS = {"train": "TrainImagelist.txt", "test": "TestImagelist.txt"}
PROBE, PROBE_SHARE = "zebra", 0.3  # of the pictures in folder zebra, this share at least shows one


class RowOrderError(ValueError, AssertionError):
    """Labels that do not belong to the pictures of their rows."""


def prepare(source, out, images=None, val_share: float = 0.0, placeholders=()) -> Path:
    r"""Write NUS-WIDE in the common form to ``out``: splits train, test and, if asked for, val.

    Args:
        source: folder that the official archives were unpacked in.
        out: folder to make; see ``table_format`` for what it holds, ``table_writer`` for interrupted runs.
        images: root of the pictures, with the folders of ``Imagelist.txt`` in it; by default ``Flickr`` or ``images``
            below ``source``. False writes the labels alone.
        val_share: share of the official training list, its last rows, that becomes the split val (BiAM: 0.2).
        placeholders: files like the "photo unavailable" pictures of a re-crawl, in addition to those that are found
            because many photographs have the same bytes.

    Pictures that are missing, empty or placeholders are counted and named in ``skipped.csv``; the rest goes on.

    Raises:
        FileNotFoundError: no such folder, or a file of the download that is not below it.
        ValueError: numbers of rows that do not match, cells other than 0 and 1, labels other than the published 925
            and 81, a picture twice in one list or in train and test, ``TrainTestLabels`` that differ from
            ``AllLabels``; the message names file and line.
        RowOrderError: pictures of the folder zebra mostly without the label zebra, so the rows belong to others.
    """
    if not 0 <= val_share < 1:
        raise ValueError(f"val_share = {val_share}: give a share from 0 up to, not including, 1")
    files = checks.Source(source, (".txt", ".dat"))
    root = checks.image_root(files.folder, images, ("Flickr", "flickr", "images", "ImageData"))
    listed = checks.image_list(files.need("Imagelist.txt", "ImageList.txt", archive="ImageList.zip"))
    row = {file: i for i, file in enumerate(listed)}
    splits = {name: _split_rows(files.need(file, archive="ImageList.zip"), row) for name, file in LISTS.items()}
    checks.disjoint({name: [listed[i] for i in rows] for name, rows in splits.items()})

    space, tag_columns = label_space(files)
    concepts = _concepts(files, space.unseen, listed, splits)  # (81, n)
    notes = _check_order(listed, space, concepts)
    notes += _check_train_test(files, space.unseen, concepts, splits)
    tags = _tags(files, len(listed), splits)
    photos = Counter(photo(file) for file in listed)
    twice = sum(n > 1 for n in photos.values())
    notes += [f"{twice} photo ids have more than one row; folder and file tell rows apart"] * (twice > 0)
    left = len(listed) - sum(map(len, splits.values()))
    notes += [f"{left} pictures of Imagelist.txt are in neither list"] * (left > 0)

    official_names = {name: Path(file).stem for name, file in LISTS.items()}
    expected = dict(IMAGES)
    if val_share:
        kept = int((1 - val_share) * len(splits["train"]))
        splits["train"], splits["val"] = splits["train"][:kept], splits["train"][kept:]
        official_names |= {"val": f"last {len(splits['val'])} rows of {LISTS['train']}"}
        expected["train"] = None
    bad = {} if root is None else checks.placeholders(root, listed, photo, placeholders)

    key = {"source": files.state(), "val_share": val_share, "placeholders": sorted(bad)}
    everything = np.arange(len(space.names), dtype=np.int32)
    with table_writer.writing(out, "nus_wide", source, space, root, key, {"notes": notes}) as table:
        for name, rows in splits.items():
            if table.done(name):
                continue
            with table.split(name, official_names[name], expected.get(name)) as split:
                for i in tqdm(rows, desc=f"NUS-WIDE {name}", disable=None, leave=False):
                    if listed[i] in bad:
                        split.drop(listed[i], "placeholder", bad[listed[i]])
                        continue
                    present = np.concatenate([tags(i)[tag_columns], concepts[:, i]]) == 1  # (1006,)
                    split.add(listed[i], listed[i], everything[present], everything[~present])
    return Path(out)


def photo(file: str) -> str:
    """The Flickr photo id: ``harbor/0001_100000001.jpg`` -> ``100000001``."""
    return Path(file).stem.rpartition("_")[2]


def label_space(files: checks.Source) -> tuple[LabelSpace, np.ndarray]:
    r"""The 925 seen and 81 unseen labels, derived from the download, and the columns of the 925 among the 1,000 tags.

    Only tags that are string-equal to a concept are dropped: ``cats`` stays seen although ``cat`` is unseen. Raises
    ``ValueError`` where the result is not the published one.
    """
    concepts_file = files.need("Concepts81.txt", archive="ConceptsList.zip")
    tags_file = files.need("TagList1k.txt", archive="NUS_WID_Tags.zip")
    concepts, tags = checks.lines(concepts_file), checks.lines(tags_file)
    checks.same_list(concepts, checks.label_list("nus_wide_unseen81.txt"), str(concepts_file))
    checks.unique(tags, f"{tags_file} names", "take the file from the archive again")
    columns = [k for k, tag in enumerate(tags) if tag not in set(concepts)]
    seen = [tags[k] for k in columns]
    checks.same_list(
        seen, checks.label_list("nus_wide_seen925.txt"), f"{tags_file} without the concepts of {concepts_file.name}"
    )
    return LabelSpace(seen, concepts), np.array(columns)


def _split_rows(path: Path, row: dict[str, int]) -> list[int]:
    files = checks.image_list(path)
    strange = [file for file in files if file not in row]
    if strange:
        raise ValueError(
            f"{path} lists {len(strange)} pictures that Imagelist.txt does not, the first: {strange[0]!r}; take both "
            "from one ImageList.zip"
        )
    return [row[file] for file in files]


def _concepts(files, names, listed, splits) -> np.ndarray:
    """Human labels (81, n) in 0/1, rows in the order of ``Imagelist.txt``."""
    table = np.empty((len(names), len(listed)), np.uint8)
    for k, name in enumerate(names):
        path = files.need(f"Labels_{name}.txt", archive="Groundtruth.zip (folder AllLabels)")
        table[k] = read_column(path, len(listed), "Imagelist.txt")
    return table


def read_column(path: Path, rows: int, list_name: str) -> np.ndarray:
    """One 0 or 1 per line as uint8 (rows,). Raises ``ValueError`` naming the line, or both numbers of rows."""
    text = path.read_bytes().replace(b"\r", b"").rstrip()
    codes = np.frombuffer(text, np.uint8)
    if len(codes) == 2 * rows - 1 and (codes[1::2] == 10).all() and ((codes[::2] | 1) == 49).all():
        return codes[::2] - 48  # a digit, a line end, a digit, ...: the normal case, at once
    cells = text.split(b"\n")
    if len(cells) != rows:
        raise ValueError(
            f"{path} has {len(cells)} rows, {list_name} has {rows}: they must be of one release; unpack both again"
        )
    values = np.array([c.strip() for c in cells])
    wrong = ~np.isin(values, (b"0", b"1"))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"{path}, line {at + 1} is {values[at].decode(errors='replace')!r}; labels are 0 or 1")
    return (values == b"1").astype(np.uint8)


def _check_order(listed, space, concepts) -> list[str]:
    """P(zebra | folder zebra) > 0.3: fails for labels that were paired with another order of the pictures."""
    inside = np.array([file.split("/")[0].lower() == PROBE for file in listed])
    if not inside.any():
        return [f"no picture lies in a folder {PROBE}, so the order of the rows was not checked against it"]
    share = concepts[space.unseen.index(PROBE), inside].mean()
    if share <= PROBE_SHARE:
        raise RowOrderError(
            f"of the {inside.sum()} pictures in folder {PROBE} only {share:.0%} have the label {PROBE} (more than "
            f"{PROBE_SHARE:.0%} expected): the rows of AllLabels are not in the order of Imagelist.txt; use "
            "Imagelist.txt of the official ImageList.zip, not NUS-WIDE-urls.txt or a list made from it"
        )
    return []


def _check_train_test(files, names, concepts, splits) -> list[str]:
    """``TrainTestLabels`` must be ``AllLabels``, re-indexed by the two lists. Returns a note of missing files."""
    missing = []
    for k, name in enumerate(names):
        for split, rows in splits.items():
            path = files.get(f"Labels_{name}_{split.title()}.txt")
            if path is None:
                missing.append(f"Labels_{name}_{split.title()}.txt")
                continue
            again = read_column(path, len(rows), LISTS[split])
            differs = again != concepts[k, rows]
            if differs.any():
                at = int(differs.argmax())
                raise RowOrderError(
                    f"{path}, line {at + 1} is {again[at]}, but Labels_{name}.txt, line {rows[at] + 1} is "
                    f"{concepts[k, rows[at]]} for the same picture ({differs.sum()} such rows): labels and image lists "
                    "are of different releases or sorted; unpack Groundtruth.zip and ImageList.zip again"
                )
    return [f"{len(missing)} files of TrainTestLabels are missing and were not compared: {list_some(missing)}"] * bool(
        missing
    )


def _tags(files, n: int, splits):
    """A function from a row of ``Imagelist.txt`` to its 1,000 tags, uint8 in 0/1; reads the file as it goes."""
    path = files.get("AllTags1k.txt")
    if path is not None:
        return TagRows(path, n, "Imagelist.txt").__getitem__
    tables, place = {}, {}
    for name, rows in splits.items():
        path = files.need(f"{name.title()}_Tags1k.dat", archive="NUS_WID_Tags.zip (or AllTags1k.txt of it)")
        tables[name] = TagRows(path, len(rows), LISTS[name])
        place |= {row: (name, at) for at, row in enumerate(rows)}
    return lambda row: tables[place[row][0]][place[row][1]]


class TagRows:
    r"""Rows of a matrix of 0/1 in a text file of half a gigabyte, read one at a time through a memory map.

    Cells are separated by tabs or blanks, also after the last one. Raises ``ValueError`` for a number of rows other
    than ``rows`` at once, and for a row that does not have ``columns`` cells of 0 or 1 when it is read.
    """

    def __init__(self, path: Path, rows: int, list_name: str, columns: int = 1000):
        self.path, self.columns = path, columns
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        ends = [np.zeros(1, np.int64)]
        for start in range(0, len(self._map), 2**24):
            block = np.frombuffer(self._map[start : start + 2**24], np.uint8)
            ends.append(np.flatnonzero(block == 10) + start + 1)
        starts = np.concatenate(ends)
        if starts[-1] < len(self._map):  # no line end after the last row
            starts = np.append(starts, len(self._map))
        while len(starts) > 1 and not self._map[starts[-2] : starts[-1]].strip():
            starts = starts[:-1]
        self._starts = starts
        if len(starts) - 1 != rows:
            raise ValueError(
                f"{path} has {len(starts) - 1} rows, {list_name} has {rows}: they must be of one release; unpack both "
                "again"
            )

    def __len__(self):
        return len(self._starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        cells = self._map[self._starts[row] : self._starts[row + 1]].split()
        values = np.frombuffer(b"".join(cells), np.uint8) - 48
        if len(cells) != self.columns or len(values) != self.columns or (values > 1).any():
            raise ValueError(
                f"{self.path}, line {row + 1} has {len(cells)} cells, expected {self.columns} of 0 or 1; take the file "
                "from the archive again"
            )
        return values
