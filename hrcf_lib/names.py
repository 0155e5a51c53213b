"""Unknown names are errors that say which known name was probably meant."""

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name, known: Sequence[str], otherwise: str) -> str:
    """``did you mean 'x'?`` with the nearest known name, or ``otherwise`` where none is near."""
    near = difflib.get_close_matches(str(name), known, 1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def check_known(names: Iterable, known: Sequence[str], what: str) -> None:
    """Raise ``ValueError`` for the first of ``names`` that is not ``known``, with the nearest and all known ones."""
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, "")
            raise ValueError(f"{what} {name!r}; {hint + ' ' if hint else ''}known: {', '.join(known)}")
