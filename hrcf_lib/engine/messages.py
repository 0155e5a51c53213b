"""Parts of messages: the name that was probably meant, the first items of a list, what a number has to be."""

import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path


def did_you_mean(name, known: Sequence[str], otherwise: str) -> str:
    """``did you mean 'x'?`` with the nearest known name, first one in another case, or ``otherwise`` if none is
    similar."""
    same = [other for other in known if other.casefold() == str(name).casefold()]
    near = same or difflib.get_close_matches(str(name), known, 1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def check_known(names: Iterable, known: Sequence[str], what: str) -> None:
    """Raise ``ValueError`` for the first of ``names`` that is not in ``known``. The message lists the known names."""
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, "")
            raise ValueError(f"{what} {name!r}; {hint + ' ' if hint else ''}known: {', '.join(known)}")


def list_some(items: Iterable, separator: str = ", ", most: int = 5) -> str:
    """The first ``most`` items as text, and the number of the others."""
    items = [str(item) for item in items]
    rest = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + rest


def need(frame, columns, name: str) -> None:
    """Raise ``ValueError`` for a missing column or a frame without rows, ``TypeError`` for what is no frame. ``name``
    is the function that needs them."""
    if not hasattr(frame, "columns"):
        raise TypeError(f"{name} takes a frame with the columns {', '.join(columns)}, not a {type(frame).__name__}")
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"{name}: the frame has no column {missing[0]!r}, only {', '.join(frame.columns)}")
    if not len(frame):
        raise ValueError(f"{name}: the frame has no rows")


def is_whole(value) -> bool:
    """Whether ``value`` is a whole number, of NumPy too; yes and no are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value) -> bool:
    """Whether ``value`` is a number, of NumPy too; yes and no are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def whole_number(name: str, value, least: int = 1, most: int | None = None, otherwise: str = "") -> int:
    """``value`` as an ``int``, NumPy's whole numbers included. Raises ``ValueError`` for anything else, bool included,
    or a number out of bounds; ``otherwise`` ends the message."""
    if not is_whole(value) or value < least or most is not None and value > most:
        bounds = f"from {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} = {value!r}: give a whole number {bounds}{otherwise}")
    return int(value)


def user_path(value, what: str) -> Path:
    """A path that somebody gave, ``~`` included. Raises ``TypeError`` for what is no path, and ``ValueError`` for an
    empty text, which would be the folder that the process runs in, and for an address of the web."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"{what} is a {type(value).__name__}: give a path")
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"{what} is an empty text: give a path ('.' is the folder that this process runs in)")
    if is_address(str(value)):
        raise ValueError(f"{what} is the address {str(value)[:100]!r}, and nothing is downloaded: give a path")
    return Path(value).expanduser()


def is_address(text: str) -> bool:
    """Whether a text is an address of the web, a data URI or the like, and no path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(/|image/)|www\.\w", text) is not None


def printable(path: str | os.PathLike) -> str:
    r"""A path as text for any file and terminal: bytes of its name that are not UTF-8 are escaped (``\\xe9``)."""
    text = os.fspath(path)
    return text if text.isascii() else os.fsencode(text).decode("utf-8", "backslashreplace")


INSIDE = ("hrcf_lib", "torch", "contextlib")  # packages between a caller and what warns


def tell(message: str) -> None:
    """Warn; the place that the warning names is the first caller outside this library."""
    frame, level = sys._getframe(0), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
