r"""How any picture is found and read: paths, folders and PIL images, one way for training and for ``classify``."""

import hashlib
import os
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib.config import choices
from hrcf_lib.engine.messages import check_known, list_some

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # what a search in a folder finds
MAX_PIXELS = 100_000_000  # larger pictures are refused: decoded, this many take 300 MB
RESIZES = choices("resize")  # how a picture becomes square, see ``read_image``
LONGEST = 8  # a picture longer than so many times its shorter side is cut to its middle


def find_images(source) -> list[Path | Image.Image]:
    r"""A path, a PIL image, a folder, or a list of any of these, as a flat list of paths and PIL images.

    A folder is searched with its subfolders, by file extension (``EXTENSIONS``) and in alphabetical order; hidden files
    are left out. Pictures are not opened.

    Raises:
        FileNotFoundError: paths that do not exist, all of them at once.
        ValueError: an empty list, or a folder without pictures.
        TypeError: anything else than paths and PIL images, naming its place in the list.
    """
    single = isinstance(source, (str, os.PathLike, Image.Image))
    if not single and not isinstance(source, Iterable):
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
        elif (path := Path(item).expanduser()).is_dir():
            inside = [p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()]
            inside = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
            if not inside:
                raise ValueError(f"no pictures in {path}: none of its files ends in {', '.join(EXTENSIONS)}")
            found += sorted(inside)
        else:
            found.append(path)
            missing += [path] * (not path.exists())
    if missing:
        raise FileNotFoundError(f"no such file or folder: {list_some(missing)}; correct the path")
    return found


def name_of(image, number: int) -> str:
    """What results call one item of ``find_images``: its path; ``picture <number>`` for a PIL image without a file."""
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or f"picture {number}")
    return str(image)


def find_file(root: Path, file: str) -> tuple[str, int] | None:
    r"""The name under which ``file`` exists below ``root`` and its size in bytes; composed and decomposed accents
    (NFC, NFD) are the same name, as file systems disagree on them. None where there is no such file."""
    forms = (
        (file,) if file.isascii() else (file, unicodedata.normalize("NFC", file), unicodedata.normalize("NFD", file))
    )
    for name in forms:
        try:
            status = (root / name).stat()
        except OSError:
            continue
        if S_ISREG(status.st_mode):
            return name, status.st_size
    return None


def read_image(source: str | os.PathLike | Image.Image, side: int, resize: str = "crop") -> Tensor:
    r"""One picture as uint8 (3, side, side), resized (bicubic) in one of three ways, ``RESIZES``:

    ``crop``    until its shorter side fits, then the centre square: the preprocessing of CLIP, as open_clip has it
    ``squash``  to the square, whatever its shape: nothing is cut off, and shapes change
    ``mkt``     as ``crop``, with a shorter side of 8/7 (256 for 224), so that an eighth is cut off all around: MKT's

    A rotation noted in a photograph's EXIF data is applied, which CLIP does not. Everything is converted to RGB by PIL
    (grey, CMYK and palette pictures too; transparency is dropped, of animations the first frame is taken). A picture
    that is ``side`` x ``side`` already keeps its bits, but for ``mkt``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming the file: not an image, truncated, more than ``MAX_PIXELS``, or 16-bit and float pixels,
            which a conversion to 8 bits would clip; or a side below 1, or an unknown ``resize``.
    """
    if side < 1:
        raise ValueError(f"side = {side}: give a number of pixels from 1 up")
    check_known([resize], RESIZES, "unknown way to resize")
    image = rgb(source)
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
    """Open, decode, turn upright and convert one picture; raises what ``read_image`` raises."""
    if isinstance(source, Image.Image):
        return _convert(source, getattr(source, "filename", "") or repr(source))
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no picture at {path}: correct the path")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a picture: name a file in it")
    try:
        with warnings.catch_warnings():  # MAX_PIXELS is close to where PIL begins to warn
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except Exception as error:  # each format raises its own
        empty = path.is_file() and path.stat().st_size == 0
        raise _unreadable(path, "the file is empty" if empty else f"{type(error).__name__}: {error}") from error
    with image:
        return _convert(image, path)


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
        except (FileNotFoundError, ValueError) as error:
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


def _convert(image: Image.Image, name) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, f"{image.width} x {image.height} pixels, ")
    if min(image.size) < 1:
        raise _unreadable(name, f"{image.width} x {image.height} pixels")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        fix = "scale the pixels to 0..255 and save them with 8 bits"
        raise ValueError(f"{name} has 16-bit or float pixels (mode {image.mode}), which 8 bits would clip; {fix}")
    try:
        image.load()
    except Exception as error:
        raise _unreadable(name, f"corrupt or truncated: {error}") from error
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data: the picture as it is stored
        pass
    return image.convert("RGB")


def _unreadable(name, why: str) -> ValueError:
    return ValueError(f"{name} cannot be read as a picture ({why}); replace the file, or leave it out")


def _too_large(name, size: str = "") -> ValueError:
    return ValueError(f"{name} has {size}more than {MAX_PIXELS / 1e6:.0f} megapixels; scale it down first")
