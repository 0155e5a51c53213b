"""Weights and checkpoints in files: read without running anything of theirs, written whole and with a hash.

Files are written by ``files.replacing``: they are whole or not there.
"""

import re
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hrcf_lib.engine import torchscript
from hrcf_lib.engine.files import replacing
from hrcf_lib.engine.hashes import check_tensors, hash_tensors
from hrcf_lib.engine.messages import list_some, user_path

HASH = "hash"  # of the tensors of a .safetensors file, in its metadata
ENTRIES = ("state_dict", "model_state_dict", "model", "module")  # where a checkpoint of training has its state dict
WRAPPERS = ("module.", "model.")  # in front of every name: data-parallel runs, and a module that holds the model
INNER = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # torch's own, at any depth


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    r"""Name -> tensor, on the CPU, of a ``.safetensors`` file, a PyTorch checkpoint or a TorchScript archive.

    The bytes say which of them a file is, not its name. A training checkpoint is read from its state dict, the first of
    ``ENTRIES`` that it has, also where one lies in another. No code of a file is ever run: pickles are read by
    unpicklers that know tensors and plain containers. Raises ``FileNotFoundError``, and ``ValueError`` for a damaged
    file, and for one with more.
    """
    path = user_path(path, "the file of weights")
    try:
        state = _kind_of(path)(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}; correct the path") from None
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as plain tensors: {_reason(error)}. It is damaged, or it needs unpickling (a whole "
            "model, an optimiser of your own), which this library never does; save its state dict as .safetensors"
        ) from error
    while isinstance(state, dict) and (inner := next((e for e in ENTRIES if isinstance(state.get(e), dict)), None)):
        state = state[inner]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        entries = state.items() if isinstance(state, dict) else [(path.name, state)]
        odd = [f"{name!r} is a {type(value).__name__}" for name, value in entries if not isinstance(value, Tensor)]
        raise ValueError(
            f"{path} does not hold a state dict (name -> tensor){'; ' * bool(odd)}{list_some(odd)}: save the state "
            f"dict alone, or as {list_some(map(repr, ENTRIES))}"
        )
    return state


def _reason(error: Exception) -> str:
    """Why a file of weights cannot be read, without what its library advises."""
    words = str(error).strip()
    if foreign := re.search(r"GLOBAL (\S+)", words):
        return f"it holds a {foreign[1]}, which is neither a tensor nor a plain value"
    if "eights only load failed" in words or "weights_only" in words:
        return "it is no file of PyTorch, or holds something else than tensors and plain values"
    if "central directory" in words or "zip archive" in words:
        return "its end is missing"
    if isinstance(error, EOFError):
        return "it is empty, or its end is missing"
    telling = isinstance(error, (OSError, ValueError, RuntimeError, zipfile.BadZipFile)) and "enforce fail" not in words
    if telling and words:
        return words.splitlines()[0][:200]
    return f"its bytes are none of a file of weights ({type(error).__name__})"


def _kind_of(path: Path):
    """The function that reads a file. Raises ``ValueError`` for what only stands for weights, and ``OSError``."""
    if path.is_dir():
        raise IsADirectoryError("it is a folder, not a file of weights")
    if not path.exists():
        raise FileNotFoundError("there is no such file")
    if not path.is_file():
        raise OSError("it is a FIFO, a socket or a device, not a file")  # opening a FIFO would wait for ever
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
    with path.open("rb") as file, warnings.catch_warnings():  # of a path, PyTorch would look at the suffix
        warnings.simplefilter("ignore")  # what is wrong is an error here
        _check_parts(file)
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_parts(file) -> None:
    """Raise ``ValueError`` where a part of an archive of ``torch.save`` is not as it was written: a CRC-32 of each is
    stored, which ``torch.load`` does not look at."""
    if zipfile.is_zipfile(file) and (part := zipfile.ZipFile(file).testzip()) is not None:
        raise ValueError(f"its part {part} is not what was written")
    file.seek(0)


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

    Raises ``ValueError`` that lists names, shapes and types that do not fit, of each kind the first ``MOST_FAULTS``;
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
    whole = [
        f"{n} has {v.dtype} without numbers" if v.is_meta else f"{n} has {v.dtype}, expected {own[n].dtype}"
        for n, v in state.items()
        if n in own and (v.is_meta or own[n].is_floating_point() and not v.is_floating_point())
    ]
    if faults := [list_some(kind, "\n  ", MOST_FAULTS) for kind in (missing, unexpected, other, whole) if kind]:
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

    Raises ``ValueError`` that names the file and the fix, if a part of it is not as it was written, or if it lacks one
    of the names it ``needs``, and ``IsADirectoryError`` for a folder of its name.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder, where a checkpoint should be: move it, or choose another folder")
    with Path(path).open("rb") as file:
        try:
            _check_parts(file)
            state = torch.load(file, map_location=device, weights_only=True)
            if not isinstance(state, dict) or (lacking := [name for name in needs if name not in state]):
                raise ValueError(f"it lacks {', '.join(lacking) if isinstance(state, dict) else 'names'}")
        except Exception as error:  # zip, pickle and torch have many kinds of their own
            raise ValueError(
                f"{path} is damaged, or no checkpoint of this library ({_reason(error)}): put a copy of it back, or "
                "delete it, and training begins anew"
            ) from error
    return state
