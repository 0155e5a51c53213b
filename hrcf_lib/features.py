r"""Frozen features: what the VLP says of every picture, computed once.

Eleven of twelve blocks and the whole teacher never change, so their outputs are stored: trunk tokens (n, 1 + N^2, C) as
float16 in a memory-mapped file, teacher embeddings e_p (n, D) in float32. A step of training then costs one block and
two convolutions. Exact when pictures are not augmented, up to the rounding to float16.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from hrcf_lib.labels import LabelSpace


@dataclass
class FrozenFeatures:
    """Features and annotation of one split; n pictures, K labels in the order of ``space.names``."""

    trunk: np.ndarray  # (n, 1 + N^2, C) float16, perhaps memory-mapped
    teacher: Tensor  # (n, D) float32, e_p
    labels: Tensor  # (n, K) -1/0/+1
    space: LabelSpace

    def __len__(self):
        return len(self.teacher)

    def batch(self, rows: Tensor, device="cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Trunk tokens (float32), teacher embeddings and labels of some rows."""
        trunk = torch.from_numpy(self.trunk[rows.numpy()]).to(device).float()
        return trunk, self.teacher[rows].to(device), self.labels[rows].to(device)


@torch.no_grad()
def extract(
    vlp, dataset: Dataset, space: LabelSpace, folder: str | Path | None = None, batch=64, workers=0
) -> FrozenFeatures:
    r"""Run the frozen VLP over ``dataset`` (items: image uint8 (3, side, side), labels (K,)).

    With ``folder``, the result is stored there under a key made of the VLP's weights and the data (``dataset.fingerprint``),
    so that a stale cache is never read; files are renamed into place when complete. Progress is shown on a terminal.
    """
    paths = _paths(folder, vlp, dataset) if folder is not None and hasattr(dataset, "fingerprint") else None
    if paths and paths[1].exists():
        small = np.load(paths[1])
        return FrozenFeatures(
            np.load(paths[0], mmap_mode="r"),
            torch.from_numpy(small["teacher"]),
            torch.from_numpy(small["labels"]),
            space,
        )
    n, tokens = len(dataset), vlp.N**2 + 1
    if paths:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        part = paths[0].with_suffix(".part")
        trunk = np.lib.format.open_memmap(part, "w+", np.float16, (n, tokens, vlp.C))
    else:
        trunk = np.empty((n, tokens, vlp.C), np.float16)
    teacher, labels, at, device = [], [], 0, vlp.mean.device
    loader = DataLoader(dataset, batch_size=batch, num_workers=workers)
    for images, y in tqdm(loader, desc="frozen features", disable=None, leave=False):
        x = vlp.trunk(images.to(device))  # (B, 1 + N*N, C)
        trunk[at : at + len(x)] = x.cpu().numpy()
        teacher.append(vlp.teacher(x).cpu())
        labels.append(y)
        at += len(x)
    features = FrozenFeatures(trunk, torch.cat(teacher), torch.cat(labels), space)
    if paths:
        trunk.flush()
        part.replace(paths[0])
        with open(paths[1].with_suffix(".part"), "wb") as file:
            np.savez(file, teacher=features.teacher.numpy(), labels=features.labels.numpy())
        paths[1].with_suffix(".part").replace(paths[1])
    return features


def _paths(folder, vlp, dataset) -> tuple[Path, Path]:
    key = json.dumps([vlp.name, vlp.hash, vlp.side, dataset.fingerprint()])
    stem = hashlib.sha256(key.encode()).hexdigest()[:16]
    return Path(folder) / f"{stem}.trunk.npy", Path(folder) / f"{stem}.npz"
