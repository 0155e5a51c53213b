"""Files and folders that are whole or not there, and that one process writes at a time; weights in such files.

A file is written in a private folder beside its place and renamed into it, so that neither a reader nor a crash meets
half of one.
"""

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
import zipfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import filelock
import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hrcf_lib.engine import torchscript
from hrcf_lib.engine.hashes import check_tensors, hash_tensors
from hrcf_lib.engine.messages import list_some

PART = re.compile(r"\.(\d+)-([0-9a-f]{8})[0-9a-f]{8}\.part$")  # process and machine; and eight random digits
ABANDONED = 24 * 3600  # age in seconds at which what was left unfinished on another machine counts as abandoned
FULL = (errno.EDQUOT, errno.EFBIG)  # the disk has room, and this user may not have it
NO_ROOM = ("No space left", "inline_container")  # what libraries with errors of their own say of a full disk
LOCK = ".lock"  # the system releases it when its process dies
HASH = "hash"  # of the tensors of a .safetensors file, in its metadata


@contextmanager
def replacing(path: str | Path, needs: int = 0):
    r"""Context: a path to write to, whose file takes the place of ``path`` at the end. Its folder is made if need be.

    Until then the file lies in a folder beside ``path`` that only this user can read. It is synced to disk before it
    is renamed, and gets the permissions of any new file. If writing fails it is gone, and ``path`` is as it was; what
    killed processes have left of the same ``path`` goes at the end. ``needs``: bytes of the file, if known.

    Raises ``OSError`` that names ``path`` where the disk is full.
    """
    path = Path(path)
    with _beside(path) as (part, permissions), full_disk_named(path, needs):
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(permissions & 0o666)
        part.replace(path)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f"{path.name}.{os.getpid()}-{_machine()}{secrets.token_hex(4)}.part")
    with full_disk_named(path):
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


@contextmanager
def alone(folder: str | Path, what: str = "another run", name: str = LOCK):
    """Context: this thread is the only one that writes to ``folder``, which is made if need be; it may nest.

    Raises ``InUse`` at once if ``what`` writes to it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / name, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InUse(f"{what} writes to {folder}: wait until it ends, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()


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
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} cannot be read: it is nested too deep for JSON of this library") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: it is cut, damaged or no JSON ({error})") from error
    if not isinstance(values, kind):
        names = {dict: "an object", list: "a list"}
        has = names.get(type(values), f"a {type(values).__name__}")
        raise ValueError(f"{path} cannot be read: it holds {has}, where {names[kind]} should be")
    return values


ENTRIES = ("state_dict", "model_state_dict", "model", "module")  # where a checkpoint of training has its state dict
WRAPPERS = ("module.", "model.")  # in front of every name: data-parallel runs, and a module that holds the model
INNER = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # torch's own, at any depth


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    r"""Name -> tensor, on the CPU, of a ``.safetensors`` file, a PyTorch checkpoint or a TorchScript archive.

    The bytes say which of them a file is, not its name. A training checkpoint is read from its state dict, the first of
    ``ENTRIES`` that it has, also where one lies in another. No code of a file is ever run: pickles are read by
    unpicklers that know tensors and plain containers. Raises ``ValueError`` for a damaged file, and for one with more.
    """
    path = Path(path)
    try:
        state = _kind_of(path)(path)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as plain tensors: {reason[:200]}. It is damaged, or it needs unpickling (a whole "
            "model, an optimiser of your own), which this library never does; save its state dict as .safetensors"
        ) from error
    while isinstance(state, dict) and (inner := next((e for e in ENTRIES if isinstance(state.get(e), dict)), None)):
        state = state[inner]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold a state dict (name -> tensor)")
    return state


def _kind_of(path: Path):
    """The function that reads a file. Raises ``ValueError`` for what only stands for weights."""
    with path.open("rb") as file:
        first = file.read(64)
    if first.startswith(b"version https://git-lfs"):
        raise ValueError("it is a pointer of Git LFS, not the weights: run `git lfs pull` where it was cloned")
    if first.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise ValueError("it is a page of HTML, not the weights: download the file itself")
    if first[8:9] == b"{" and not first.startswith(b"PK"):  # behind the length of the header
        return lambda path: read_safetensors(path)[0]
    return torchscript.read if torchscript.is_archive(path) else _load_checkpoint


def _load_checkpoint(path: Path):
    with path.open("rb") as file:  # of a path, PyTorch would look at the suffix
        return torch.load(file, map_location="cpu", weights_only=True)


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    r"""The same tensors by the names that the bare model gives them: without the prefixes of ``torch.compile``, of FSDP
    and of checkpointing anywhere, and of ``WRAPPERS`` in front of every name, in any nest. Where two would become one,
    all stay as they are.

    >>> list(unwrapped({"module._orig_mod.a": 1, "module._orig_mod.b.c": 2}))
    ['a', 'b.c']
    """
    bare = [INNER.sub("", name) for name in state]
    while bare and (prefix := next((w for w in WRAPPERS if all(name.startswith(w) for name in bare)), None)):
        bare = [name.removeprefix(prefix) for name in bare]
    return dict(zip(bare, state.values(), strict=True)) if len({*bare}) == len(state) else state


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Name -> tensor of a ``.safetensors`` file, on the CPU, and what else the file says of itself.

    Raises ``ValueError`` that names the file if it is damaged; one that ``write_tensors`` wrote is checked by its hash.
    """
    try:
        with safe_open(path, "pt") as file:
            state, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file ({error})") from error
    check_tensors(state, path, said.get(HASH))
    return state, said


def load_into(module: nn.Module, state: dict[str, Tensor], source) -> None:
    """Load ``state`` into ``module``, all of it or nothing; if names do not fit, ``unwrapped``.

    Raises ``ValueError`` that lists names and shapes that do not fit, of each kind the first ``MOST_FAULTS``;
    ``source``, the file of the weights, is named in the message. The module is unchanged then.
    """
    own = module.state_dict()
    if own.keys() != state.keys():
        state = unwrapped(state)
    missing = [f"missing {n} {tuple(v.shape)}" for n, v in own.items() if n not in state]
    unexpected = [f"unexpected {n} {tuple(v.shape)}" for n, v in state.items() if n not in own]
    other = [
        f"{n} is {tuple(v.shape)}, expected {tuple(own[n].shape)}"
        for n, v in state.items()
        if n in own and own[n].shape != v.shape
    ]
    if faults := [list_some(kind, "\n  ", MOST_FAULTS) for kind in (missing, unexpected, other) if kind]:
        raise ValueError(f"{source}: these weights do not fit the config:\n  " + "\n  ".join(faults))
    module.load_state_dict(state)


MOST_FAULTS = 20  # of a kind that a message lists: the weights of another model miss hundreds


def write_tensors(state: dict[str, Tensor], path: str | Path, **more: str) -> str:
    """Write a ``.safetensors`` file of ``state``; returns the hash of the tensors, which is in the file too, and what
    else is to be in its metadata."""
    state = {name: value.detach().contiguous() for name, value in state.items()}
    digest = hash_tensors(state)
    with replacing(path, _bytes(state)) as part:
        save_file(state, part, {HASH: digest, **more})
    return digest


def save_checkpoint(state: dict, path: str | Path) -> None:
    """Save tensors and plain values for ``read_checkpoint``. The file is always whole."""
    with replacing(path, _bytes(state)) as part:
        torch.save(state, part)


def _bytes(state) -> int:
    """Bytes of the tensors in nested containers."""
    if isinstance(state, Tensor):
        return state.nbytes
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(_bytes, parts))


def read_checkpoint(path: str | Path, needs: tuple[str, ...], device="cpu") -> dict:
    """What ``save_checkpoint`` wrote, with tensors on ``device``. Nothing is unpickled but tensors and plain values.

    Raises ``ValueError`` that names the file and the fix, if a part of it is not as it was written (``torch.save``
    stores a CRC-32 of each, which ``torch.load`` does not look at), or if it lacks one of the names it ``needs``.
    """
    with Path(path).open("rb") as file:
        try:
            if (part := zipfile.ZipFile(file).testzip()) is not None:
                raise ValueError(f"its part {part} is not what was written")
            file.seek(0)
            state = torch.load(file, map_location=device, weights_only=True)
            if not isinstance(state, dict) or (lacking := [name for name in needs if name not in state]):
                raise ValueError(f"it lacks {', '.join(lacking) if isinstance(state, dict) else 'names'}")
        except Exception as error:  # zip, pickle and torch have many kinds of their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{path} is damaged, or no checkpoint of this library ({reason[:200]}): put a copy of it back, or "
                "delete it, and training begins anew"
            ) from error
    return state
