r"""Weights on disk: found, read, fitted and written. Only tensors: nothing here ever unpickles an object."""

from pathlib import Path, PurePosixPath

import huggingface_hub
import open_clip
import torch
from huggingface_hub.utils import get_session
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hrcf_lib.files import replacing
from hrcf_lib.names import did_you_mean


def find(name: str, weights: str) -> Path:
    r"""The file that holds ``weights`` of the open_clip model ``name``: a path on this machine, or a tag of open_clip.

    A tag is looked up in the cache of the Hugging Face hub first; only what is not there is downloaded.

    Raises:
        FileNotFoundError: ``weights`` is neither a tag of this model nor a file.
        OSError: the tag's file is not in the cache and cannot be downloaded; says what to fetch and where to put it.
    """
    tag = open_clip.get_pretrained_cfg(name, str(weights))
    if not tag:
        if Path(weights).is_file():
            return Path(weights)
        known = open_clip.list_pretrained_tags_by_model(name)
        hint = did_you_mean(weights, known, f"tags: {', '.join(known) or 'none'}")
        raise FileNotFoundError(f"weights {str(weights)!r}: no such file, and no tag of open_clip's {name}; {hint}")
    repository, _, file = tag.get("hf_hub", "").rpartition("/")
    choices = [str(PurePosixPath(file).with_suffix(".safetensors")), file] if file else HUB_FILES
    for choice in choices:
        path = huggingface_hub.try_to_load_from_cache(repository, choice) if repository else None
        if isinstance(path, str):  # else None, or a mark that the repository has no such file
            return Path(path)
    reason = "huggingface.co does not answer"
    if online() or not repository:
        try:
            return Path(open_clip.download_pretrained(tag))
        except Exception as error:  # no access, no space, a broken download: every kind of its own
            reason = str(error)
    plain = name.removesuffix("-quickgelu")
    raise OSError(
        f"the weights {weights!r} of {name} are not on this machine and could not be downloaded ({reason}). Where "
        f"there is a network, run\n  hf download {repository or tag.get('url')} {choices[0]}\nand copy the cache to "
        f"{huggingface_hub.constants.HF_HUB_CACHE}, or copy that one file anywhere and set vlp_weights to its path "
        f"and vlp to {plain + '-quickgelu' if tag.get('quick_gelu') else plain!r}"
    )


HUB_FILES = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]  # where a tag of open_clip names no file


def online(seconds: float = 5.0) -> bool:
    """Whether the Hugging Face hub answers: one question, where the hub's own client would retry for a minute."""
    try:
        get_session().head(huggingface_hub.constants.ENDPOINT, timeout=seconds)
    except Exception:  # no name server, no route, a time-out, or HF_HUB_OFFLINE=1
        return False
    return True


def read(path: str | Path) -> dict[str, Tensor]:
    r"""Name -> tensor of a ``.safetensors`` file or of a PyTorch checkpoint, on the CPU.

    Of a training checkpoint the entry ``state_dict`` is taken; the prefix ``module.`` of data-parallel runs is dropped.
    Raises ``ValueError`` for a damaged file, and for one that holds more than tensors and plain containers.
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


def fit(module: nn.Module, state: dict[str, Tensor], source) -> None:
    r"""``load_state_dict`` whose ``ValueError`` lists every name and shape that does not fit; nothing is changed then.

    ``source``: file that the weights came from, for the message.
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


def write(state: dict[str, Tensor], path: str | Path) -> None:
    """Write safetensors under a temporary name, then rename: a killed run leaves the old file whole."""
    with replacing(path) as part:
        save_file({n: v.detach().contiguous() for n, v in state.items()}, part)


def save_checkpoint(state: dict, path: str | Path) -> None:
    """``torch.save`` of tensors and plain values for ``torch.load(weights_only=True)``; the file is always whole."""
    with replacing(path) as part:
        torch.save(state, part)
