"""Walking through a folder: links are followed, circles end, and what is no regular file is passed over."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hrcf_lib.engine.messages import list_some, printable, tell


def walk(folder: str | Path, enter: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[Path, list[str]]]:
    r"""(folder, names of its files) of ``folder`` and of all folders below it whose names ``enter`` accepts.

    Names are in alphabetical order. Links to folders and to files are followed. Each folder is entered once, under its
    own name where it has one below ``folder``, so that a link that leads back ends. FIFOs, sockets, devices and links
    that lead nowhere are passed over. A folder below that may not be read is left out, with a warning. Raises
    ``OSError`` where ``folder`` itself cannot be read.
    """
    folders, links, entered, closed = [Path(folder)], [], set(), []
    while folders or links:
        parent = folders.pop() if folders else links.pop(0)
        try:
            status = parent.stat()
            if (key := (status.st_dev, status.st_ino)) in entered:
                continue
            entered.add(key)
            with os.scandir(parent) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            if parent == Path(folder):
                raise
            closed.append(printable(parent))
            continue
        below = [entry for entry in entries if _is(entry.is_dir) and enter(entry.name)]
        folders += [parent / entry.name for entry in reversed(below) if not entry.is_symlink()]
        links += [parent / entry.name for entry in below if entry.is_symlink()]
        yield parent, [entry.name for entry in entries if _is(entry.is_file)]
    if closed:
        tell(f"{len(closed)} folders cannot be read and are left out: {list_some(closed)}")


def _is(kind: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind; a link in a circle of links, for example, is of none."""
    try:
        return kind()
    except OSError:
        return False
