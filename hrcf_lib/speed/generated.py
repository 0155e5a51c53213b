r"""Generated downloads in the official formats of NUS-WIDE and Open Images, with the official numbers of rows.

For dry runs: work on files of this shape and size can be tried before the real ones are here. Label names, formats,
numbers of rows and of labels per picture are the official ones. Which picture has which label is random, and only a few
pictures exist, of coloured noise, 640 x 480 pixels. Nothing that is learnt or measured on them means anything.

A tree is written to ``<folder>.part`` and renamed when it is complete; an existing tree of the same ``Size`` is reused.
"""

import dataclasses
import io
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import csv

from hrcf_lib.data.official import checks
from hrcf_lib.engine.files import write_json

ROWS = 2**15  # of a text table, made at once
CONCEPTS, TAGS = 2.0, 6.5  # labels per picture of NUS-WIDE: human concepts, and those of the 1,000 tags
OWN = 0.6  # share of the pictures in the folder of a concept that show it
LABELS = {"train": 5.07, "val": 13.2, "test": 13.3}  # rows per image of Open Images: published rows / labelled images
PRESENT = {"train": 0.48, "val": 0.66, "test": 0.66}  # share of these rows that are "verified present"
OFFICIAL = {"train": "train", "val": "validation", "test": "test"}
NO_TAGS = {"computer", "fire", "map", "swimmers", "tattoo", "whales"}  # concepts that are not among the 1,000 tags


@dataclass(frozen=True)
class Size:
    """Rows of the tables; the defaults are the published numbers. Raises ``ValueError`` for too few rows."""

    nus_train: int = 161_789  # pictures
    nus_test: int = 107_859
    open_train: int = 27_894_289  # rows of labels
    open_val: int = 551_390
    open_test: int = 1_667_399
    pictures: int = 256  # of train and of test that exist, the first of each list
    seed: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name in ("pictures", "seed") else 100
            if value < least:
                raise ValueError(f"{field.name} = {value}: choose at least {least}")
        images = int(min(self.open_train / LABELS["train"], self.open_test / LABELS["test"]))
        if self.pictures > min(self.nus_train, self.nus_test, images):
            raise ValueError(f"pictures = {self.pictures}: a split has fewer rows; choose less, or more rows")


def nus_wide(folder, size: Size) -> Path:
    """A NUS-WIDE download: image lists, 81 + 162 files of concepts, 1,000 tags per row; see ``data.official.nus_wide``.

    Raises ``FileExistsError`` if ``folder`` holds anything else; so does ``open_images``.
    """
    return _complete(Path(folder), size, _nus_wide)


def open_images(folder, size: Size) -> Path:
    """The human labels of Open Images V4 for train, validation and test; see ``data.official.open_images``."""
    return _complete(Path(folder), size, _open_images)


def _complete(folder: Path, size: Size, write) -> Path:
    """The tree that ``write`` makes: the existing one, or a new one that is renamed to ``folder`` when complete."""
    stamp, about = folder / "generated.json", {"tree": write.__name__, **dataclasses.asdict(size)}
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == about:
        return folder
    if folder.exists() and not stamp.is_file():
        raise FileExistsError(f"{folder} holds something other than a generated tree; choose another folder")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write(part, size, np.random.default_rng(size.seed))
    write_json(part / "generated.json", about)
    shutil.rmtree(folder, ignore_errors=True)
    return part.rename(folder)


def _nus_wide(root: Path, size: Size, rng) -> None:
    concepts, seen = checks.label_list("nus_wide_unseen81.txt"), checks.label_list("nus_wide_seen925.txt")
    both = [name for name in concepts if name not in NO_TAGS]  # 75 concepts that are tags too
    n = size.nus_train + size.nus_test
    home = np.arange(n) * len(concepts) // n  # the folder of each picture, named for a concept
    files = [f"{concepts[home[i]]}\\{i:04d}_{100_000_000 + i}.jpg" for i in range(n)]
    train = np.sort(rng.permutation(n)[: size.nus_train])
    rows = {"Train": train, "Test": np.setdiff1d(np.arange(n), train)}
    _write_lines(root / "ImageList/Imagelist.txt", files)
    _write_lines(root / "ConceptsList/Concepts81.txt", concepts)
    _write_lines(root / "NUS_WID_Tags/TagList1k.txt", sorted([*seen, *both], key=_tag_order(seen)))
    for split, of in rows.items():
        _write_lines(root / f"ImageList/{split}Imagelist.txt", [files[i] for i in of])
    share = (CONCEPTS - OWN) * _frequencies(len(concepts))
    for k, name in enumerate(concepts):
        column = (rng.random(n, np.float32) < np.where(home == k, OWN, share[k])).astype(np.uint8) + ord("0")
        _write(root / f"Groundtruth/AllLabels/Labels_{name}.txt", [_digits(column)])
        for split, of in rows.items():
            _write(root / f"Groundtruth/TrainTestLabels/Labels_{name}_{split}.txt", [_digits(column[of])])
    _write(root / "NUS_WID_Tags/AllTags1k.txt", _tags(n, TAGS * _frequencies(1000), rng))
    first = [files[i] for of in rows.values() for i in of[: size.pictures]]
    _write_pictures([root / "Flickr" / file.replace("\\", "/") for file in first], rng)


def _tag_order(seen):
    """A sort key that keeps the order of ``seen`` and scatters other names among them."""
    rank = {name: k for k, name in enumerate(seen)}
    return lambda name: rank.get(name, (sum(name.encode()) * 7919) % len(seen) - 0.5)


def _tags(n: int, share: np.ndarray, rng) -> Iterator[bytes]:
    """Rows of 0 and 1, each followed by a tab, as in ``AllTags1k.txt``."""
    share = rng.permutation(share).astype(np.float32)
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        text = np.full((rows, 2 * len(share) + 1), ord("\t"), np.uint8)
        text[:, :-1:2] = (rng.random((rows, len(share)), np.float32) < share) + ord("0")
        text[:, -1] = ord("\n")
        yield text.tobytes()


def _open_images(root: Path, size: Size, rng) -> None:
    seen, unseen = (checks.label_list(f"open_images_{part}.csv") for part in ("seen7186", "unseen400"))
    mids = pa.array([mid for mid, _ in (*seen, *unseen)])
    _write_lines(root / "classes-trainable.txt", [mid for mid, _ in seen])
    chance = np.cumsum(rng.permutation(_frequencies(len(mids))))
    for at, split in enumerate(LABELS):
        rows = getattr(size, f"open_{split}")
        images = int(rows / LABELS[split])
        ids = [f"{i * (2**64 // images) + at:016x}" for i in range(images)]
        of = np.sort(np.concatenate([np.arange(images), rng.integers(images, size=rows - images)]))  # (rows,)
        with (root / f"{OFFICIAL[split]}-annotations-human-imagelabels.csv").open("wb") as file:
            file.write(b"ImageID,Source,LabelName,Confidence\n")
            _write_labels(file, pa.array(ids), of, mids, chance, PRESENT[split], rng)
        if split != "val":
            _write_pictures([root / "images" / OFFICIAL[split] / f"{id}.jpg" for id in ids[: size.pictures]], rng)


def _write_labels(file, ids: pa.Array, of: np.ndarray, mids: pa.Array, chance: np.ndarray, present, rng) -> None:
    """One line per entry of ``of``, the image, with a label drawn from the cumulative ``chance``."""
    options = csv.WriteOptions(include_header=False, quoting_style="none")
    for start in range(0, len(of), ROWS):
        images = of[start : start + ROWS]
        labels = np.searchsorted(chance, rng.random(len(images)) * chance[-1])
        confidence = (rng.random(len(images)) < present).astype(np.int8)
        source = pa.repeat("verification", len(images))
        columns = [ids.take(pa.array(images)), source, mids.take(pa.array(labels)), confidence]
        csv.write_csv(pa.table(columns, names=["ImageID", "Source", "LabelName", "Confidence"]), file, options)


def _frequencies(K: int) -> np.ndarray:
    """Shares (K,) that sum to 1: the k-th label is about 1 / k as frequent as the first."""
    share = 1 / (np.arange(K) + 10)
    return share / share.sum()


def noise_jpeg(rng, coarse: tuple[int, int] = (30, 40), quality: int = 85) -> bytes:
    """A JPEG of 640 x 480 pixels of coarse and fine noise, about as large as a photograph (100 kB)."""
    smooth = Image.fromarray(rng.integers(0, 256, (*coarse, 3), dtype=np.uint8)).resize((640, 480), Image.BICUBIC)
    pixels = np.clip(np.asarray(smooth, np.int16) + rng.integers(-12, 13, (480, 640, 3)), 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _write_pictures(paths: list[Path], rng, kinds: int = 16) -> None:
    """``kinds`` different JPEGs in turn."""
    jpegs = [noise_jpeg(rng) for _ in range(min(kinds, len(paths)))]
    for i, path in enumerate(paths):
        _write(path, [jpegs[i % kinds]])


def _digits(column: np.ndarray) -> bytes:
    return np.stack([column, np.full_like(column, ord("\n"))], axis=1).tobytes()


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    _write(path, ["".join(f"{line}\r\n" for line in lines).encode()])


def _write(path: Path, blocks: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(blocks)
