r"""How any picture is found and read: paths, folders and PIL images, one way for training and for ``classify``."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib.config import LARGEST_SIDE, choices
from hrcf_lib.data.opening import NOT_READ, endings, not_read, open_picture
from hrcf_lib.engine.folders import walk
from hrcf_lib.engine.messages import check_known, is_address, list_some, printable, tell

COMMON = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # the endings that messages name
RESIZES = choices("resize")  # how a picture becomes square, see ``read_image``
RESIZED = {  # the same in words: for model cards, and for callers of an exported model
    "crop": "shorter side resized (bicubic), centre cut out",
    "squash": "resized to the square (bicubic)",
    "mkt": "shorter side resized to 8/7 of the input's (bicubic), centre cut out",
}
LONGEST_NAME = 300  # letters of a path in a message
LONGEST = 8  # a picture longer than so many times its shorter side is cut to its middle


def find_images(source) -> list[Path | Image.Image]:
    r"""A path, a PIL image, a folder, or a list of any of these, as a flat list of paths and PIL images.

    A folder is searched with its subfolders, linked ones too (``engine.folders.walk``), by file ending
    (``opening.endings``) and in alphabetical order; hidden files are left out. One warning counts the files of a folder
    that look like pictures and are left out, such as HEIC. Pictures are not opened.

    Raises:
        FileNotFoundError: paths that do not exist, all of them at once.
        ValueError: an empty list or text, a folder without pictures, an address of the web, or a pattern such as
            ``*.jpg``.
        TypeError: anything else than paths and PIL images, naming its place in the list; a dict, a frame, a file.
    """
    single = isinstance(source, (str, os.PathLike, Image.Image))
    if isinstance(source, Mapping) or hasattr(source, "columns"):
        raise TypeError(f"images is a {type(source).__name__}: give the list of its paths or PIL images")
    no_list = isinstance(source, (bytes, bytearray)) or hasattr(source, "read") or not isinstance(source, Iterable)
    if not single and no_list:
        raise TypeError(f"images is a {type(source).__name__}: give a path, a folder, a PIL image, or a list of them")
    items = [source] if single else list(source)
    if not items:
        raise ValueError("the list of images is empty: give at least one path or PIL image")
    found, missing = [], []
    for i, item in enumerate(items):
        if isinstance(item, Image.Image):
            found.append(item)
        elif not isinstance(item, (str, os.PathLike)):
            fix = "give paths or PIL images (Image.fromarray makes one of an array)"
            raise TypeError(f"images[{i}] is a {type(item).__name__}: {fix}")
        elif not str(item).strip():
            raise ValueError(f"images{'' if single else f'[{i}]'} is an empty text: give a path")
        elif os.path.isdir(path := Path(item).expanduser()):
            found += _in_folder(path)
        else:
            found.append(path)
            if not os.path.exists(path):
                _refuse_other_words(str(item))
                missing.append(printable(path)[:LONGEST_NAME])
    if missing:
        raise FileNotFoundError(f"no such file or folder: {list_some(missing)}; correct the path")
    return found


def _in_folder(folder: Path) -> list[Path]:
    """The pictures of a folder, in alphabetical order. Raises ``ValueError`` if there is none."""
    known, found, others = endings(), [], []
    for parent, names in walk(folder, enter=lambda name: not name.startswith(".")):
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            elif ending in known:
                found.append(parent / name)
            elif kind := not_read(ending):
                others.append((kind, ending, printable(parent / name)))
    left_out = _left_out(folder, sorted(others))
    if not found:
        ends = list_some([*COMMON, *(known - {*COMMON})], most=len(COMMON))
        why = f"; {left_out}" if left_out else f": none of its files ends in {ends}"
        raise ValueError(f"no pictures in {printable(folder)}{why}")
    if left_out:
        tell(left_out)
    return sorted(found)


def _left_out(folder: Path, others: list[tuple[str, str, str]]) -> str:
    """One sentence on the files (kind, ending, path) that look like pictures and are left out; "" if there is none."""
    if not others:
        return ""
    counts = Counter((kind, ending) for kind, ending, _ in others)
    named = ", ".join(f"{n:,} {kind} ({ending})" for (kind, ending), n in counts.items())
    fixes = "; ".join(f"{kind}: {NOT_READ[kind][1]}" for kind in dict.fromkeys(kind for kind, _, _ in others))
    return f"{printable(folder)}: left out of the pictures: {named}; the first: {others[0][2]}. {fixes}"


def _refuse_other_words(item: str) -> None:
    """Raise ``ValueError`` for what is no path on this machine, but an address or a pattern."""
    if is_address(item):
        raise ValueError(
            f"{item[:100]!r} is an address, and nothing is downloaded: save the picture, and give its path"
        )
    if any(sign in item for sign in "*?[") and len(item) < LONGEST_NAME:
        raise ValueError(
            f"{item!r} is no file, and a pattern is not looked up: give the folder, or a list such as "
            f"sorted(glob.glob({item!r}))"
        )


def name_of(image, number: int) -> str:
    """What results call one item of ``find_images``: its path (``printable``); ``picture <number>`` for a PIL image
    without a file."""
    if isinstance(image, Image.Image):
        return printable(getattr(image, "filename", "") or f"picture {number}")
    return printable(image)


def is_outside(file: str) -> bool:
    r"""Whether a name in a table leaves the folder that it is relative to: an absolute path, or one with ``..`` in it.

    >>> [is_outside(file) for file in ("a/b.jpg", "../b.jpg", "/b.jpg", "a\\\\..\\\\b.jpg", "C:\\\\b.jpg", "a..jpg")]
    [False, True, True, True, True, False]
    """
    parts = re.split(r"[/\\]", file)
    return ".." in parts or not parts[0] or re.fullmatch("[A-Za-z]:", parts[0]) is not None


def find_file(root: Path, file: str) -> tuple[str, int] | None:
    r"""The name under which ``file`` exists below ``root`` and its size in bytes; composed and decomposed accents
    (NFC, NFD) are the same name, as file systems disagree on them. None where there is no such file."""
    forms = (
        (file,) if file.isascii() else (file, unicodedata.normalize("NFC", file), unicodedata.normalize("NFD", file))
    )
    for name in forms:
        try:
            status = (root / name).stat()
        except (OSError, ValueError):  # the latter: a name that no file can have
            continue
        if S_ISREG(status.st_mode):
            return name, status.st_size
    return None


def read_image(source: str | os.PathLike | Image.Image, side: int, resize: str = "crop") -> Tensor:
    r"""One picture as uint8 (3, side, side), resized (bicubic) in one of three ways, ``RESIZES``:

    ``crop``    until its shorter side fits, then the centre square: the preprocessing of CLIP, as open_clip has it
    ``squash``  to the square, whatever its shape: nothing is cut off, and shapes change
    ``mkt``     as ``crop``, with a shorter side of 8/7 (256 for 224), so that an eighth is cut off all around: MKT's

    A rotation noted in a photograph's EXIF data is applied, which CLIP does not. Everything is converted to RGB, and
    transparency is laid on white (``open_picture``). A picture that is ``side`` x ``side`` already keeps its bits, but
    for ``mkt``.

    Raises ``ValueError`` for a side below 1 or above ``LARGEST_SIDE``, or an unknown ``resize``, and what
    ``open_picture`` raises.
    """
    return resized(open_picture(source).image, side, resize)


def resized(image: Image.Image, side: int, resize: str = "crop") -> Tensor:
    """An RGB image as uint8 (3, side, side), as ``read_image`` describes. Raises ``ValueError`` as it does."""
    if not 1 <= side <= LARGEST_SIDE:
        raise ValueError(f"side = {side}: give a number of pixels from 1 to {LARGEST_SIDE}")
    check_known([resize], RESIZES, "unknown way to resize")
    if resize == "squash":
        return _tensor(image.resize((side, side), Image.Resampling.BICUBIC))
    w, h = image.size
    if max(w, h) > LONGEST * min(w, h):  # a whole strip, resized, could fill the memory
        w, h = min(w, LONGEST * h), min(h, LONGEST * w)
        image = _centre(image, w, h)
    short = min(w, h)
    fit = int(side * 256 / 224) if resize == "mkt" else side  # pixels of the shorter side
    image = image.resize((int(fit * w / short), int(fit * h / short)), Image.Resampling.BICUBIC)
    return _tensor(_centre(image, side, side))


def _tensor(image: Image.Image) -> Tensor:
    """RGB -> uint8 (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _centre(image: Image.Image, w: int, h: int) -> Image.Image:
    left, top = round((image.width - w) / 2), round((image.height - h) / 2)
    return image.crop((left, top, left + w, top + h))


def rgb(source: str | os.PathLike | Image.Image) -> Image.Image:
    """Open, decode, turn upright and convert one picture; raises what ``open_picture`` raises."""
    return open_picture(source).image


class Seen(NamedTuple):
    """What ``look_at`` finds out about a picture file."""

    file: str
    problem: str  # empty if the picture can be read
    size: tuple[int, int]  # width and height in pixels; 0, 0 if it cannot be read
    digest: bytes  # of the bytes of the file; empty if there is none


def look_at(folder: Path, files: Iterable[str], workers: int | None = None, digests: bool = False) -> Iterator[Seen]:
    r"""Decode every picture in several threads (by default one per core), with a progress bar, in the given order.

    Few pictures are held at a time, however many there are. ``digests``: also hash the bytes of each file, which finds
    equal files.
    """

    def look(file: str) -> Seen:
        digest = b""
        try:
            image = rgb(folder / file)
            problem, size = "", image.size
        except (OSError, ValueError) as error:
            problem, size = str(error), (0, 0)
        try:
            if digests and (folder / file).is_file():
                digest = hashlib.sha256((folder / file).read_bytes()).digest()
        except OSError:  # no permission, for example; `problem` names it
            pass
        return Seen(file, problem, size, digest)

    workers = workers or os.cpu_count() or 1
    total = len(files) if hasattr(files, "__len__") else None
    left = iter(files)
    with ThreadPoolExecutor(workers) as pool, tqdm(total=total, desc="pictures", disable=None, leave=False) as bar:
        while chunk := list(islice(left, 64 * workers)):
            for seen in pool.map(look, chunk):
                bar.update()
                yield seen
