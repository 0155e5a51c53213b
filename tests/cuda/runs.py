"""What the tests of whole runs start: ``python runs.py WORD FOLDER``."""

import json
import os
import sys
from pathlib import Path

import synthetic
import torch
from accelerate import PartialState

from hrcf_lib.engine.devices import process
from hrcf_lib.training import train


def whole(folder: Path, **more) -> None:
    """Train to the end, from the checkpoint in ``folder`` if there is one, and leave the weights there."""
    model = synthetic.model(merge_starts_at_zero=False)  # at zero, the first gradients of a convolution are rounding
    train(model, synthetic.features(), folder, save_every=2, **more)
    if process().is_main_process:
        torch.save({name: x.cpu() for name, x in model.trainable_state().items()}, folder / "weights.pt")


def half(folder: Path) -> None:
    """Stop after five steps."""
    whole(folder, stop_after=5)


def killed(folder: Path) -> None:
    """Die at the eighth step, after the checkpoint of the sixth."""
    synthetic.die_at_step(8)
    whole(folder)


def two(folder: Path) -> None:
    """One of two processes that share a device, which NCCL refuses and gloo does not."""
    if torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = "0"
        state = PartialState(backend="gloo")
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        state = process()
    whole(folder)
    if state.is_main_process:
        about = {"processes": state.num_processes, "backend": state.backend, "device": state.device.type}
        (folder / "state.json").write_text(json.dumps(about))


def workers(folder: Path) -> None:
    """Scenes that worker processes draw and hand over in pinned memory are those that this process draws."""
    from torch.utils.data import DataLoader

    from hrcf_lib.data.mojiscenes import MojiScenes

    scenes = MojiScenes("train", 8, 0)
    loader = DataLoader(scenes, batch_size=4, num_workers=2, pin_memory=torch.cuda.is_available())
    seen = torch.cat([images for images, _ in loader])
    assert torch.equal(seen, torch.stack([scenes[i][0] for i in range(8)]))


if __name__ == "__main__":
    {"whole": whole, "half": half, "killed": killed, "two": two, "workers": workers}[sys.argv[1]](Path(sys.argv[2]))
