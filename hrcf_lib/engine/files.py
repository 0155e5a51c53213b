"""Files that are always whole (written under a temporary name, renamed when complete), and weights in such files."""

import json
import os
import secrets
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


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


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    r"""Name -> tensor of a ``.safetensors`` file or of a PyTorch checkpoint, on the CPU.

    A training checkpoint is read from its entry ``state_dict``; the prefix ``module.`` of data-parallel runs is
    removed. Raises ``ValueError`` for a damaged file, and for one with more than tensors and plain containers.
    """
    path = Path(path)
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as plain tensors: {reason[:200]}. It is damaged, or it needs unpickling "
            "(TorchScript archives too), which this library never does; save its state dict as .safetensors"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} does not hold a state dict (name -> tensor)")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_into(module: nn.Module, state: dict[str, Tensor], source) -> None:
    """Load ``state`` into ``module``, all of it or nothing.

    Raises ``ValueError`` that lists every name and shape that does not fit; ``source``, the file of the weights, is
    named in the message. The module is unchanged then.
    """
    own = module.state_dict()
    faults = [f"missing {n} {tuple(v.shape)}" for n, v in own.items() if n not in state]
    faults += [f"unexpected {n} {tuple(v.shape)}" for n, v in state.items() if n not in own]
    faults += [
        f"{n} is {tuple(v.shape)}, expected {tuple(own[n].shape)}"
        for n, v in state.items()
        if n in own and own[n].shape != v.shape
    ]
    if faults:
        raise ValueError(f"{source}: these weights do not fit the config:\n  " + "\n  ".join(faults))
    module.load_state_dict(state)


def write_tensors(state: dict[str, Tensor], path: str | Path) -> None:
    """Write a ``.safetensors`` file of ``state``. A killed run leaves the old file whole."""
    with replacing(path) as part:
        save_file({n: v.detach().contiguous() for n, v in state.items()}, part)


def save_checkpoint(state: dict, path: str | Path) -> None:
    """Save tensors and plain values for ``torch.load(weights_only=True)``. The file is always whole."""
    with replacing(path) as part:
        torch.save(state, part)
