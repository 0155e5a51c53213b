"""Files that are always whole (written under a temporary name, renamed when complete), and weights in such files."""

import json
import os
import re
import secrets
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hrcf_lib.engine import torchscript
from hrcf_lib.engine.messages import list_some


@contextmanager
def replacing(path: str | Path):
    """Context: a temporary path beside ``path``, renamed to it at the end. The folder is created if necessary."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    yield part
    part.replace(path)


@contextmanager
def replacing_alone(path: Path):
    """Like ``replacing``, for large files that several runs may write at once: each run has its own temporary name.

    The file is synced to disk before it is renamed, so that a crash of the machine leaves no empty file, and it is
    removed if writing fails.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")  # process ids repeat in containers
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, values: dict, default=None) -> None:
    """Write a JSON file of ``values``; ``default`` as in ``json.dumps``. The file is always whole."""
    with replacing(path) as part:
        text = json.dumps(values, indent=1, ensure_ascii=False, default=default)
        part.write_text(text + "\n", encoding="utf-8")


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
        return load_file
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


def load_into(module: nn.Module, state: dict[str, Tensor], source) -> None:
    """Load ``state`` into ``module``, all of it or nothing; if names do not fit, ``unwrapped``.

    Raises ``ValueError`` that lists every name and shape that does not fit, or the first ``MOST_FAULTS`` of them;
    ``source``, the file of the weights, is named in the message. The module is unchanged then.
    """
    own = module.state_dict()
    if own.keys() != state.keys():
        state = unwrapped(state)
    faults = [f"missing {n} {tuple(v.shape)}" for n, v in own.items() if n not in state]
    faults += [f"unexpected {n} {tuple(v.shape)}" for n, v in state.items() if n not in own]
    faults += [
        f"{n} is {tuple(v.shape)}, expected {tuple(own[n].shape)}"
        for n, v in state.items()
        if n in own and own[n].shape != v.shape
    ]
    if faults:
        shown = list_some(faults, "\n  ", MOST_FAULTS)
        raise ValueError(f"{source}: these weights do not fit the config:\n  {shown}")
    module.load_state_dict(state)


MOST_FAULTS = 20  # lines of a message: the weights of another model miss hundreds


def write_tensors(state: dict[str, Tensor], path: str | Path) -> None:
    """Write a ``.safetensors`` file of ``state``. A killed run leaves the old file whole."""
    with replacing(path) as part:
        save_file({n: v.detach().contiguous() for n, v in state.items()}, part)


def save_checkpoint(state: dict, path: str | Path) -> None:
    """Save tensors and plain values for ``torch.load(weights_only=True)``. The file is always whole."""
    with replacing(path) as part:
        torch.save(state, part)
