"""Files and folders that are whole or not there, and that one process writes at a time.

A file is written in a private folder beside its place and renamed into it, so that neither a reader nor a crash meets
half of one.
"""

import argparse
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
import uuid
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import filelock
import psutil

from hrcf_lib.engine.messages import user_path

PART = re.compile(r"\.(\d+)-([0-9a-f]{8})[0-9a-f]{8}\.part$")  # process and machine; and eight random digits
ABANDONED = 24 * 3600  # age in seconds at which what was left unfinished on another machine counts as abandoned
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG)  # by the place, for good
FULL = (errno.EDQUOT, errno.EFBIG)  # the disk has room, and this user may not have it
NO_ROOM = ("No space left", "inline_container")  # what libraries with errors of their own say of a full disk
LOCK = ".lock"  # the system releases it when its process dies


@contextmanager
def replacing(path: str | Path, needs: int = 0):
    r"""Context: a path to write to, whose file takes the place of ``path`` at the end. Its folder is made if need be.

    Until then the file lies in a folder beside ``path`` that only this user can read. It is synced to disk before it
    is renamed, and gets the permissions of any new file. If writing fails it is gone, and ``path`` is as it was; what
    killed processes have left of the same ``path`` goes at the end. ``needs``: bytes of the file, if known.

    Raises ``OSError`` that names ``path`` where the disk is full.
    """
    path = no_folder(Path(path))
    with _beside(path) as (part, permissions), full_disk_named(path, needs):
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(permissions & 0o666)
        part.replace(path)


def no_folder(path: Path) -> Path:
    """The path of a file to write. Raises ``IsADirectoryError`` for a folder."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    return path


@contextmanager
def new_folder(path: str | Path):
    """Context: a folder to write into, which gets the name ``path`` at the end. Otherwise as ``replacing``.

    Raises ``FileExistsError`` if ``path`` exists by then.
    """
    path = Path(path)
    with _beside(path) as (part, permissions), full_disk_named(path):
        part.mkdir()
        yield part
        part.chmod(permissions)
        if path.exists():
            raise FileExistsError(f"{path} was made by somebody else meanwhile: remove it, or choose another folder")
        part.rename(path)


@contextmanager
def _beside(path: Path):
    """A path of the same name in a private folder beside ``path``, and the permissions of a new folder."""
    make_folder(path.parent)
    folder = path.with_name(f"{path.name}.{os.getpid()}-{_machine()}{secrets.token_hex(4)}.part")
    with _refusal_named(f"{path} cannot be written", "choose another folder or name"), full_disk_named(path):
        folder.mkdir()
    permissions = folder.stat().st_mode & 0o777
    try:
        folder.chmod(0o700)
        yield folder / path.name, permissions
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    remove_abandoned(path.parent, path.name)


@contextmanager
def full_disk_named(path: str | Path, needs: int = 0):
    """Context of writing ``path``: whatever a library says of a full disk becomes one ``OSError`` that names the file
    and what it needs. ``needs``: bytes of the file, if known."""
    try:
        yield
    except Exception as error:
        number, folder = getattr(error, "errno", None), Path(path).absolute().parent
        free = shutil.disk_usage(folder).free
        said = number == errno.ENOSPC or any(words in str(error) for words in NO_ROOM)
        if number not in FULL and not (said and free < max(needs, 2**20)):  # with room left it was another disk
            raise
        size = f"{needs / 1e6:,.1f} MB are needed, " if needs else ""
        path = Path(*(part for part in Path(path).parts if not PART.search(part)))  # as it would be called at the end
        raise OSError(
            f"{path} cannot be written: {size}{free / 1e6:,.1f} MB are free in {path.parent}, or its quota is used up; "
            "make room and run again, or choose another folder"
        ) from error


def remove_abandoned(folder: str | Path, name: str | None = None) -> None:
    """Remove what killed processes left of files and folders called ``name``, or of all, in the middle of ``replacing``
    or ``new_folder``. A process of this machine counts as killed when it is gone, another after a day of silence."""
    for part in Path(folder).glob("*.part"):
        found = PART.search(part.name)
        if found and name in (None, part.name[: found.start()]) and _is_abandoned(part, int(found[1]), found[2]):
            shutil.rmtree(part, ignore_errors=True)


def _is_abandoned(part: Path, pid: int, machine: str) -> bool:
    try:
        changed = max(path.stat().st_mtime for path in (part, *part.iterdir()))
    except OSError:  # another process has finished it, or removed it
        return False
    if machine != _machine():
        return time.time() - changed > ABANDONED
    try:
        writer = psutil.Process(pid)
        return writer.status() == psutil.STATUS_ZOMBIE or writer.create_time() > changed + 1  # process ids come again
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


@cache
def _machine() -> str:
    """Eight digits for this machine, or this container, which counts processes of its own."""
    space = Path("/proc/self/ns/pid")
    words = platform.node(), uuid.getnode(), os.readlink(space) if space.exists() else ""
    return hashlib.sha256(repr(words).encode()).hexdigest()[:8]


def make_folder(path: str | Path) -> Path:
    """The folder, made if need be. Raises ``NotADirectoryError`` where a file has its name, or that of one above it,
    and another ``OSError`` that names the folder where it cannot be made."""
    path = Path(path)
    try:
        with _refusal_named(f"{path} cannot be made", "choose another folder"):
            path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        there = next((parent for parent in (path, *path.parents) if parent.exists()), path)
        raise NotADirectoryError(f"{there} is a file, and no folder: choose another folder") from None
    return path


@contextmanager
def _refusal_named(what: str, fix: str):
    """Context: where the place refuses, for good, the error says ``what`` cannot be done, why, and the ``fix``."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        raise type(error)(f"{what} ({error.strerror}): {fix}") from error


@contextmanager
def alone(folder: str | Path, what: str = "another run", name: str = LOCK):
    """Context: this thread is the only one that writes to ``folder``, which is made if need be; it may nest.

    Raises ``InUse`` at once if ``what`` writes to it.
    """
    folder = make_folder(folder)
    lock = filelock.FileLock(folder / name, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InUse(f"{what} writes to {folder}: wait until it ends, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()


def file_argument(text: str) -> Path:
    """Type of an argument of a command line (argparse): the path of a file that the command will write at its end. Its
    folder is made, or the command ends with the reason before its work."""
    try:
        path = no_folder(user_path(text, "the file to write"))
        make_folder(path.parent)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


class InUse(RuntimeError):
    """Another process writes to the same folder."""


def write_json(path: str | Path, values: dict, default=None) -> None:
    """Write a JSON file of ``values``; ``default`` as in ``json.dumps``. The file is always whole."""
    text = json.dumps(values, indent=1, ensure_ascii=False, default=default) + "\n"
    write_text(path, text)


def write_text(path: str | Path, text: str) -> None:
    """Write a file of ``text`` in UTF-8. The file is always whole."""
    with replacing(path, len(text)) as part:
        part.write_text(text, encoding="utf-8")


LARGEST_JSON = 500_000_000  # bytes: the annotations of COCO have 448 million


def read_json(path: str | Path, kind: type = dict):
    """The values of a JSON file, a ``kind``. Raises ``ValueError`` that names the file and what is wrong with it, and
    ``FileNotFoundError``."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"more than {LARGEST_JSON:,} bytes")
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{path} cannot be read: it is nested too deep for JSON of this library") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: it is cut, damaged or no JSON ({error})") from error
    if not isinstance(values, kind):
        names = {dict: "an object", list: "a list"}
        has = names.get(type(values), f"a {type(values).__name__}")
        raise ValueError(f"{path} cannot be read: it holds {has}, where {names[kind]} should be")
    return values
