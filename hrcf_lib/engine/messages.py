"""Parts of messages: the name that was probably meant, the first items of a list, missing columns of a table."""

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name, known: Sequence[str], otherwise: str) -> str:
    """``did you mean 'x'?`` with the nearest known name, or ``otherwise`` if none is similar."""
    near = difflib.get_close_matches(str(name), known, 1)
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
    """Raise ``ValueError`` for a missing column or a frame without rows. ``name`` is the function that needs them."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"{name}: the frame has no column {missing[0]!r}, only {', '.join(frame.columns)}")
    if not len(frame):
        raise ValueError(f"{name}: the frame has no rows")
