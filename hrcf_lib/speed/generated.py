r"""Generated downloads in the official formats of NUS-WIDE and Open Images, with the official numbers of rows.

For dry runs: what happens to files of this shape and size can be tried before the real ones are here. Names of labels,
formats, numbers of rows and of labels a picture are the official ones; who has which label is drawn at random, and a
few pictures exist, of coloured noise, 640 x 480 pixels. Nothing that is learnt or measured on them means anything.

A tree is written to ``<folder>.part`` and renamed when it is complete; one of the same ``Size`` is used again.
"""

import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hrcf_lib.data.official import checks
from hrcf_lib.engine.files import write_json

ROWS = 2**15  # of a text table, made at once
CONCEPTS, TAGS = 2.0, 6.5  # labels a picture of NUS-WIDE: human concepts, and those of the 1,000 tags
OWN = 0.6  # of the pictures in the folder of a concept, this share shows it
LABELS = {"train": 5.07, "val": 13.2, "test": 13.3}  # rows an image of Open Images: published rows / labelled images
PRESENT = {"train": 0.48, "val": 0.66, "test": 0.66}  # of these, "verified present"
OFFICIAL = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Size:
    """Rows of the tables; the defaults are the published numbers."""

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
    """A NUS-WIDE download: image lists, 81 + 162 files of concepts, 1,000 tags a row; see ``data.nus_wide``."""
    return _whole(Path(folder), size, _nus_wide)


def open_images(folder, size: Size) -> Path:
    """The human labels of Open Images V4 for train, validation and test; see ``data.open_images``."""
    return _whole(Path(folder), size, _open_images)


def _whole(folder: Path, size: Size, write) -> Path:
    """The tree, if it is there; else a new one under its name when complete. ``FileExistsError`` for other files."""
    made, about = folder / "generated.json", {"tree": write.__name__, **dataclasses.asdict(size)}
    if made.is_file() and json.loads(made.read_text(encoding="utf-8")) == about:
        return folder
    if folder.exists() and not made.is_file():
        raise FileExistsError(f"{folder} holds something else than a generated tree; choose another folder")
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
    _lines(root / "ImageList/Imagelist.txt", files)
    _lines(root / "ConceptsList/Concepts81.txt", concepts)
    _lines(root / "NUS_WID_Tags/TagList1k.txt", sorted([*seen, *both], key=_place(seen)))
    for split, of in rows.items():
        _lines(root / f"ImageList/{split}Imagelist.txt", [files[i] for i in of])
    share = (CONCEPTS - OWN) * _few_are_frequent(len(concepts))
    for k, name in enumerate(concepts):
        column = (rng.random(n, np.float32) < np.where(home == k, OWN, share[k])).astype(np.uint8) + 48  # "0" or "1"
        _write(root / f"Groundtruth/AllLabels/Labels_{name}.txt", [_digits(column)])
        for split, of in rows.items():
            _write(root / f"Groundtruth/TrainTestLabels/Labels_{name}_{split}.txt", [_digits(column[of])])
    _write(root / "NUS_WID_Tags/AllTags1k.txt", _tags(n, TAGS * _few_are_frequent(1000), rng))
    _pictures([root / "Flickr" / files[i].replace("\\", "/") for of in rows.values() for i in of[: size.pictures]], rng)


NO_TAGS = {"computer", "fire", "map", "swimmers", "tattoo", "whales"}  # concepts that are not among the 1,000 tags


def _place(seen):
    """A key that keeps the order of ``seen`` and strews other names among them."""
    rank = {name: k for k, name in enumerate(seen)}
    return lambda name: rank.get(name, (sum(name.encode()) * 7919) % len(seen) - 0.5)


def _tags(n: int, share: np.ndarray, rng) -> Iterator[bytes]:
    """Rows of 0 and 1, each followed by a tab, as ``AllTags1k.txt`` has them."""
    share = rng.permutation(share).astype(np.float32)
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        text = np.full((rows, 2 * len(share) + 1), ord("\t"), np.uint8)
        text[:, :-1:2] = (rng.random((rows, len(share)), np.float32) < share) + 48
        text[:, -1] = ord("\n")
        yield text.tobytes()


def _open_images(root: Path, size: Size, rng) -> None:
    seen, unseen = (checks.label_list(f"open_images_{part}.csv") for part in ("seen7186", "unseen400"))
    mids = [mid for mid, _ in (*seen, *unseen)]
    _lines(root / "classes-trainable.txt", [mid for mid, _ in seen])
    spelt = np.array(mids, "S").view(np.uint8).reshape(len(mids), -1)  # (7586, longest), 0 behind the shorter ones
    chance = np.cumsum(rng.permutation(_few_are_frequent(len(mids))))
    for at, split in enumerate(LABELS):
        rows = getattr(size, f"open_{split}")
        images = int(rows / LABELS[split])
        ids = np.arange(images, dtype=np.uint64) * np.uint64(2**64 // images) + np.uint64(at)
        of = np.sort(np.concatenate([np.arange(images), rng.integers(images, size=rows - images)]))  # (rows,)
        path = root / f"{OFFICIAL[split]}-annotations-human-imagelabels.csv"
        _write(path, _label_rows(ids[of], spelt, chance, PRESENT[split], rng))
        if split != "val":
            _pictures([root / "images" / OFFICIAL[split] / f"{id:016x}.jpg" for id in ids[: size.pictures]], rng)


def _label_rows(ids: np.ndarray, spelt: np.ndarray, chance: np.ndarray, present: float, rng) -> Iterator[bytes]:
    """``ImageID,Source,LabelName,Confidence``: a line for each of ``ids``, with a label drawn from ``chance``."""
    yield b"ImageID,Source,LabelName,Confidence\n"
    digits, shifts = np.frombuffer(b"0123456789abcdef", np.uint8), np.arange(60, -1, -4, dtype=np.uint64)
    for start in range(0, len(ids), ROWS):
        some = ids[start : start + ROWS]
        label = np.searchsorted(chance, rng.random(len(some)) * chance[-1])
        cells = [
            digits[(some[:, None] >> shifts) & np.uint64(15)],  # (rows, 16)
            np.broadcast_to(np.frombuffer(b",verification,", np.uint8), (len(some), 14)),
            spelt[label],
            np.full((len(some), 1), ord(","), np.uint8),
            (rng.random((len(some), 1)) < present).astype(np.uint8) + 48,
            np.full((len(some), 1), ord("\n"), np.uint8),
        ]
        text = np.concatenate(cells, axis=1)
        yield text[text != 0].tobytes()


def _few_are_frequent(K: int) -> np.ndarray:
    """Shares (K,) that sum to 1: the k-th label is about 1 / k as frequent as the first."""
    share = 1 / (np.arange(K) + 10)
    return share / share.sum()


def _pictures(paths: list[Path], rng, kinds: int = 16) -> None:
    """JPEGs of 640 x 480 pixels of coarse and fine noise, about 100 kB each; ``kinds`` different ones in turn."""
    made = []
    for _ in range(min(kinds, len(paths))):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((640, 480), Image.BICUBIC)
        pixels = np.clip(np.asarray(coarse, np.int16) + rng.integers(-12, 13, (480, 640, 3)), 0, 255)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=85)
        made.append(file.getvalue())
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made[i % kinds])


def _digits(column: np.ndarray) -> bytes:
    return np.stack([column, np.full_like(column, ord("\n"))], axis=1).tobytes()


def _lines(path: Path, lines) -> None:
    _write(path, ["".join(f"{line}\r\n" for line in lines).encode()])


def _write(path: Path, blocks) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(blocks)
