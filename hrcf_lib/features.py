r"""Frozen features: what the VLP says of every picture, computed once.

Eleven of twelve blocks and the whole teacher never change, so their outputs are stored: trunk tokens (n, 1 + N^2, C) as
float16 in a memory-mapped file, teacher embeddings e_p (n, D) in float32. A step of training then costs one block and
two convolutions. Exact when pictures are not augmented, up to the rounding to float16.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from hrcf_lib.labels import LabelSpace


@dataclass(frozen=True)
class Pass:
    r"""One pass over n pictures: its order, its batches, and the share of each that this process computes.

    The batch is that of all processes together, and the order does not depend on how many they are.
    """

    batch: int  # B, pictures a step
    seed: int | None = None  # of the order and of augmentation; None: as they come, and not augmented
    first: int = 0  # steps that were done before
    rank: int = 0  # of this process
    world: int = 1  # number of processes

    def steps(self, n: int) -> int:
        """Number of steps of the whole pass."""
        return math.ceil(n / self.batch)

    def batches(self, n: int) -> tuple[Tensor, ...]:
        """Rows of every step, of all processes together: each row once."""
        order = torch.arange(n)
        if self.seed is not None:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        return order.split(self.batch)

    def rows(self, n: int) -> list[Tensor]:
        """Rows of each remaining step that are this process's own; none, where a step has fewer than processes."""
        return [rows[self.rank :: self.world] for rows in self.batches(n)[self.first :]]


@dataclass
class FrozenFeatures:
    """Features and annotation of one split; n pictures, K labels in the order of ``space.names``."""

    trunk: np.ndarray  # (n, 1 + N^2, C) float16, perhaps memory-mapped; relative rounding error below 2^-11
    teacher: Tensor  # (n, D) float32, e_p
    labels: Tensor  # (n, K) -1/0/+1
    space: LabelSpace

    def __len__(self):
        return len(self.teacher)

    def batch(self, rows: Tensor, device="cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Trunk tokens (float32), teacher embeddings and labels of some rows."""
        trunk = torch.from_numpy(self.trunk[rows.numpy()]).to(device).float()
        return trunk, self.teacher[rows].to(device), self.labels[rows].to(device)

    def batches(self, order: Pass) -> Iterator[tuple]:
        """(rows, what ``frozen`` takes, labels (b, K)) of this process, step by step; all on the CPU."""
        for rows in order.rows(len(self)):
            yield rows, (torch.from_numpy(self.trunk[rows.numpy()]), self.teacher[rows]), self.labels[rows]

    def frozen(self, vlp, inputs, bf16: bool = False) -> tuple[Tensor, Tensor]:
        """Trunk tokens (b, 1 + N^2, C) and teacher embeddings (b, D), float32, on the VLP's device."""
        return self.tokens(vlp, inputs), inputs[1].to(vlp.mean.device)

    def tokens(self, vlp, inputs) -> Tensor:
        """Trunk tokens (b, 1 + N^2, C), float32, on the VLP's device: all that evaluation needs."""
        return inputs[0].to(vlp.mean.device).float()

    def identity(self) -> dict:
        """What a run on these features belongs to: plain values that tell other data."""
        labels = self.labels[:, self.space.columns("seen")].to("cpu", torch.int8).contiguous().numpy()
        return {
            "pictures": len(self),
            "labels": hashlib.sha256(labels).hexdigest()[:16],
            "features": hashlib.sha256(self.teacher.cpu().contiguous().numpy()).hexdigest()[:16],
        }

    def take(self, rows, labels_of=None) -> "FrozenFeatures":
        """Some pictures, with their own labels or, as a control, with those of the rows ``labels_of``."""
        rows = np.asarray(rows, np.int64)
        labels = self.labels[rows if labels_of is None else np.asarray(labels_of, np.int64)]
        first = len(rows) and np.array_equal(rows, np.arange(len(rows)))  # a memory map stays one
        trunk = self.trunk[: len(rows)] if first else self.trunk[rows]
        return FrozenFeatures(trunk, self.teacher[torch.from_numpy(rows)], labels, self.space)

    def has_positives(self) -> bool:
        """Whether any picture has a positive seen label."""
        return bool((self.labels[:, self.space.columns("seen")] == 1).any())


@torch.no_grad()
def extract(
    vlp, dataset: Dataset, space: LabelSpace, folder: str | Path | None = None, batch: int = 64, workers: int = 0
) -> FrozenFeatures:
    r"""Run the frozen VLP over ``dataset`` (items: image uint8 (3, side, side), labels (K,)).

    With ``folder``, the result is stored there under a key made of the VLP's weights, the label names and the data
    (``dataset.fingerprint()``: plain values that change whenever a picture or an annotation does), so that a stale
    cache is never read. Files are renamed into place when complete, the small one last; what an interrupted run leaves
    is never read. Progress is shown on a terminal.

    Raises ``ValueError`` for an empty dataset, labels that do not fit ``space``, a dataset that cannot be told from
    another (no ``fingerprint``) though a folder is given, and pictures whose features are not finite in float16.
    """
    if not len(dataset):
        raise ValueError("the dataset is empty: there is nothing to extract features of")
    paths = None if folder is None else _paths(Path(folder), vlp, dataset, space)
    if paths is None:
        return _run(vlp, dataset, space, None, batch, workers)
    if not all(path.exists() for path in paths):
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        parts = [path.with_suffix(f".{os.getpid()}.part") for path in paths]  # two runs at once do not share a file
        try:
            fresh = _run(vlp, dataset, space, parts[0], batch, workers)
            with open(parts[1], "wb") as file:
                np.savez(file, teacher=fresh.teacher.numpy(), labels=fresh.labels.numpy())
            del fresh  # closes the memory map: some systems rename no open file
            for part, path in zip(parts, paths, strict=True):
                part.replace(path)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
    small = np.load(paths[1], allow_pickle=False)
    teacher, labels = torch.from_numpy(small["teacher"]), torch.from_numpy(small["labels"])
    return FrozenFeatures(np.load(paths[0], mmap_mode="r"), teacher, labels, space)


def _run(vlp, dataset, space, path, batch, workers) -> FrozenFeatures:
    shape = (len(dataset), 1 + vlp.N**2, vlp.C)
    trunk = np.empty(shape, np.float16) if path is None else np.lib.format.open_memmap(path, "w+", np.float16, shape)
    teacher, labels, at = [], [], 0
    loader = DataLoader(dataset, batch_size=batch, num_workers=workers)
    for images, y in tqdm(loader, desc="frozen features", disable=None, leave=False):
        if y.shape[1] != len(space.names):
            raise ValueError(f"the dataset annotates {y.shape[1]} labels, the label space has {len(space.names)} names")
        x = vlp.trunk(images.to(vlp.mean.device))  # (B, 1 + N*N, C)
        e_p = vlp.teacher(x)  # (B, D)
        x = x.half()
        finite = (x.isfinite().flatten(1).all(dim=1) & e_p.isfinite().all(dim=1)).cpu()  # (B,)
        if not finite.all():
            first = at + int((~finite).nonzero()[0])
            raise ValueError(
                f"features of picture {first} are NaN or beyond float16: look at it and at the VLP's weights"
            )
        trunk[at : at + len(x)] = x.cpu().numpy()
        teacher.append(e_p.cpu())
        labels.append(y)
        at += len(x)
    if path is not None:
        trunk.flush()
    return FrozenFeatures(trunk, torch.cat(teacher), torch.cat(labels), space)


def _paths(folder: Path, vlp, dataset, space: LabelSpace) -> tuple[Path, Path]:
    if not hasattr(dataset, "fingerprint"):
        kind = type(dataset).__name__
        raise ValueError(f"{kind} has no fingerprint(), so its features cannot be cached: give folder=None, or add one")
    key = json.dumps([1, vlp.name, vlp.hash, vlp.side, space.names, dataset.fingerprint()])  # 1: form of the files
    stem = hashlib.sha256(key.encode()).hexdigest()[:16]
    return folder / f"{stem}.trunk.npy", folder / f"{stem}.npz"
