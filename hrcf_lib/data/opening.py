r"""Opening one picture with Pillow: which formats are pictures, what is refused, and how any picture becomes RGB.

Pillow opens more than pictures, and for some formats it starts a program (Ghostscript for PostScript), asks the system
(WMF), or guesses anew what a part of the file is (IPTC). A file is whatever its bytes say, not its name: a PostScript
file may be called ``owl.png``. ``FORMATS`` are those that Pillow decodes by itself; formats that another package has
registered with Pillow, such as ``pillow_heif``, are opened too.
"""

import io
import os
import re
import threading
import warnings
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from hrcf_lib.engine.messages import printable

MAX_PIXELS = 100_000_000  # larger pictures are refused: decoded, this many take 300 MB
FORMATS = tuple(
    "JPEG PNG WEBP GIF BMP TIFF AVIF JPEG2000 PPM BLP CUR DCX DDS DIB FITS FLI FTEX GBR ICNS ICO IM IMT MCIDAS MSP PCD "
    "PCX PIXAR PSD QOI SGI SPIDER SUN TGA XBM XPM XVTHUMB".split()
)
ONE_FRAME = ("JPEG", "MPO", "BMP", "PSD")  # further frames are previews, or layers of the same picture
HEIF = "pip install pillow-heif, and call pillow_heif.register_heif_opener() first; or save as JPEG"
RAW = ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 "
RAW += ".srf .srw .x3f"
NOT_READ = {  # what looks like a picture and is none to Pillow alone: kind -> endings, what to do
    "HEIC": (".heic .heics .heif .heifs .hif", HEIF),
    "raw": (RAW, "develop them, and save as JPEG or PNG"),
    "drawings": (".svg .svgz .eps .ps .ai .wmf .emf .pdf", "draw them with another program, and save as PNG"),
    "other formats": (
        ".jxl .jxr .psb .xcf .exr .hdr .avif .jp2 .webp",
        "save as PNG",
    ),  # the last: by how Pillow is built
}
BEGINNINGS = (  # first bytes of files that are no picture to Pillow alone -> what they are, what to do
    (rb"....ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)", f"this is HEIC: {HEIF}"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "this is PostScript, which is a program: save it as PNG"),
    (rb"%PDF", "this is a PDF: save its pages as PNG"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "this is JPEG XL: save it as PNG"),
    (rb"(?i)\s*<(!doctype html|html)", "this is a page of the web, as a failed download leaves it: download it again"),
    (rb"\s*<(svg|\?xml)", "this is XML, perhaps a drawing in SVG: save it as PNG"),
    (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf", "this is an archive: unpack it, and give the folder"),
    (
        rb"....ftyp(isom|iso2|mp4|M4V|avc1|qt)|RIFF....AVI |\x1aE\xdf\xa3",
        "this is a video: save its frames as pictures",
    ),
    (rb"version https://git-lfs", "this is a pointer of Git LFS: run `git lfs pull`"),
)
GREY_STEPS = {"L;2": 85, "L;4": 17}  # from one grey of 2 or 4 bits to the next, in 8 bits
PNG, TEXTS, LONG_TEXT = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt", b"iCCP"), 2**16


class Picture(NamedTuple):
    """One picture, opened."""

    image: Image.Image  # RGB and upright
    animated: bool  # it has further frames or pages, which are not read


def open_picture(source: str | os.PathLike | BinaryIO | Image.Image, name: str = "") -> Picture:
    r"""Open, decode, turn upright and convert one picture: a path, an open binary file, or a PIL image.

    Transparency is laid on white, as a viewer shows it; a picture without any keeps its bits. Grey, CMYK and palette
    pictures become RGB; of animations the first frame is taken, or the one that a PIL image stands at.
    Warnings of Pillow are silent: what matters of them is an error here. ``name`` is what errors call an open file, and
    an image without one.

    Raises:
        FileNotFoundError: no such file, or one that has vanished.
        ValueError: naming the file: not a picture or not a regular file (a FIFO, a socket, a device), truncated, more
            than ``MAX_PIXELS``, or 16-bit and float pixels, which a conversion to 8 bits would clip.
    """
    if isinstance(source, Image.Image):
        with _silence():
            return _picture(source, printable(getattr(source, "filename", "") or name or repr(source)))
    if isinstance(source, (str, os.PathLike)):
        source = Path(source).expanduser()
        name = printable(source)
        _check_file(source, name)
    with _silence():
        try:
            with _opened(source, name) as image:
                return _picture(image, name, own=True)
        except _TooMuchText:
            with _opened(io.BytesIO(_without_texts(source)), name) as image:
                return _picture(image, name, own=True)


def formats() -> tuple[str, ...]:
    """Names of the formats that are opened: ``FORMATS`` as far as this Pillow has them, and those of other packages."""
    Image.init()
    return _formats(tuple(Image.ID))


@cache
def _formats(registered: tuple[str, ...]) -> tuple[str, ...]:
    foreign = (name for name in registered if not Image.OPEN[name][0].__module__.startswith("PIL."))
    return (*(name for name in FORMATS if name in registered), *foreign)


def endings() -> set[str]:
    """Endings of file names, with their dot and in lower case, of the formats that are opened."""
    known = {*formats(), "MPO"}  # the latter is opened as JPEG
    return {ending for ending, name in Image.registered_extensions().items() if name in known}


def not_read(ending: str) -> str | None:
    """The kind in ``NOT_READ`` of a file ending that is none of ``endings``, or None where it is no picture's."""
    return next((kind for kind, (known, _) in NOT_READ.items() if ending in known.split()), None)


def _check_file(path: Path, name: str) -> None:
    """Raise unless ``path`` is a regular file: opening a FIFO would wait for ever."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no picture at {name}: correct the path") from None
    except (OSError, ValueError) as error:  # no permission, a circle of links, a name that no file can have
        raise _unreadable(name, f"{type(error).__name__}: {error}") from error
    if S_ISDIR(mode):
        raise ValueError(f"{name} is a folder, not a picture: name a file in it")
    if not S_ISREG(mode):
        raise _unreadable(name, "a FIFO, a socket or a device, not a file")


class _TooMuchText(ValueError):
    """The metadata of a PNG are larger, unpacked, than Pillow takes."""


def _opened(source, name: str) -> Image.Image:
    """The picture, not yet decoded."""
    try:
        return Image.open(source, formats=formats())
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except FileNotFoundError:
        raise FileNotFoundError(f"no picture at {name}: it has vanished") from None
    except Exception as error:  # each format raises its own
        _check_texts(error, name)
        raise _unreadable(name, _reason(source, error)) from error


def _check_texts(error: Exception, name: str) -> None:
    if isinstance(error, ValueError) and ("MAX_TEXT" in str(error) or "in text chunks" in str(error)):
        raise _TooMuchText(str(_unreadable(name, f"its texts are too long: {error}"))) from error


def _without_texts(source) -> bytes:
    """The bytes of a PNG without compressed or long texts and colour profiles, which pixels do not depend on."""
    whole = source.read_bytes() if isinstance(source, Path) else _rewound(source).read()
    kept, at = [whole[: len(PNG)]], len(PNG)
    while at < len(whole):
        end = at + 12 + int.from_bytes(whole[at : at + 4], "big")  # length, kind, content, checksum
        kind, long = whole[at + 4 : at + 8], end - at > LONG_TEXT
        packed = kind in (b"zTXt", b"iCCP") or kind == b"iTXt" and b"\0\1" in whole[at + 8 : at + 90]
        if not (kind in TEXTS and (packed or long)):
            kept.append(whole[at:end])
        at = end
    return b"".join(kept)


def _rewound(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def _reason(source, error: Exception) -> str:
    """Why a file cannot be opened, by its size and its first bytes."""
    with suppress(OSError, ValueError):
        first = source.open("rb") if isinstance(source, Path) else _rewound(source)
        beginning = first.read(64)
        if isinstance(source, Path):
            first.close()
        if not beginning:
            return "the file is empty"
        for pattern, words in BEGINNINGS:
            if re.match(pattern, beginning, re.DOTALL):
                return words
    if isinstance(error, UnidentifiedImageError):
        return "its bytes begin as those of no format that is read"
    return f"{type(error).__name__}: {error}"


def _picture(image: Image.Image, name, own: bool = False) -> Picture:
    """``own``: nobody else has this image, so that it may be turned in place."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, f"{image.width} x {image.height} pixels, ")
    if min(image.size) < 1:
        raise _unreadable(name, f"{image.width} x {image.height} pixels")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        fix = "scale the pixels to 0..255 and save them with 8 bits"
        raise ValueError(f"{name} has 16-bit or float pixels (mode {image.mode}), which 8 bits would clip; {fix}")
    try:
        _scale_key(image)
        chosen = not own and image.tell() > 0  # a frame that somebody went to
        animated = image.format not in ONE_FRAME and bool(getattr(image, "is_animated", False)) and not chosen
        image.load()
    except Exception as error:
        _check_texts(error, name)
        raise _unreadable(name, f"corrupt or truncated: {error}") from error
    try:
        image = ImageOps.exif_transpose(image, in_place=own) or image
    except Exception:  # broken EXIF data: the picture as it is stored
        pass
    try:
        return Picture(_on_white(image), animated)
    except ValueError as error:
        raise _unreadable(name, f"colours of mode {image.mode}: {error}") from error


def _scale_key(image: Image.Image) -> None:
    """Bring the transparent colour of a PNG to 8 bits, as Pillow brings its pixels but not this colour."""
    key = image.info.get("transparency")
    if image.format != "PNG" or not getattr(image, "tile", None) or key is None or isinstance(key, bytes):
        return
    stored = image.tile[0][3]  # how pixels lie in the file
    if stored in GREY_STEPS:
        image.info["transparency"] = key * GREY_STEPS[stored]
    elif stored == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _on_white(image: Image.Image) -> Image.Image:
    """RGB, with what is transparent laid on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if layer.getextrema()[3][0] == 255:
        return layer.convert("RGB")
    white = Image.new("RGBA", layer.size, "white")
    white.alpha_composite(layer)
    return white.convert("RGB")


PILLOW = r"PIL\.(?#hrcf)"  # the modules whose warnings are silent; the comment marks the filter as ours
_lock, _inside = threading.Lock(), 0


@contextmanager
def _silence():
    """Without warnings of Pillow, in any number of threads: ``warnings.catch_warnings`` would mix up their filters."""
    global _inside
    with _lock:
        if not _inside:
            warnings.filterwarnings("ignore", module=PILLOW)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for entry in [entry for entry in warnings.filters if getattr(entry[3], "pattern", "") == PILLOW]:
                    warnings.filters.remove(entry)


def _unreadable(name, why: str) -> ValueError:
    return ValueError(f"{name} cannot be read as a picture ({why}); replace the file, or leave it out")


def _too_large(name, size: str = "") -> ValueError:
    return ValueError(f"{name} has {size}more than {MAX_PIXELS / 1e6:.0f} megapixels; scale it down first")
