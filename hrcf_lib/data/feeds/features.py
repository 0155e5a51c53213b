r"""Frozen features: what the VLP says of every picture, computed once.

The first blocks of the ViT (all but ``VLP.trained_blocks``; eleven of twelve for HRCF) and the teacher never change, so
their outputs are stored: trunk tokens (n, 1 + N^2, C) as float16 in memory-mapped shards, teacher embeddings e_p (n, D)
in float32. A step of HRCF's training then costs one block and two convolutions. This is exact for pictures without
augmentation, up to the rounding of the tokens (relative error at most 2^-11). Of a ResNet the tokens are its last map,
behind their mean.

A picture takes 2 (1 + N^2) C bytes: 0.30 MB with ViT-B/16, 0.20 MB with RN50 or RN101 at 224 pixels and 0.81 MB at 448.
For the 82,081 labelled training pictures of COCO 2014 these are 25, 17 and 66 GB. While RN50 computes, each picture of
the batch takes 54 MB at 448 pixels (on the CPU), 3.4 GB for 64 of them.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from hrcf_lib.data.feeds.order import BatchOrder, read_ahead
from hrcf_lib.data.feeds.store import Cache, Shards
from hrcf_lib.data.labelled_folder import label_matrix, row_numbers
from hrcf_lib.engine.devices import move, pinned
from hrcf_lib.labels import LabelSpace


@dataclass
class FrozenFeatures:
    """Features and annotation of one split, a ``Feed``; n pictures, K labels in the order of ``space.names``.

    Raises ``ValueError`` for tables of different numbers of pictures, or another number of labels.
    """

    trunk: Shards  # (n, 1 + N^2, C), perhaps memory-mapped; a tensor or an array becomes one
    teacher: Tensor  # (n, D) float32, e_p
    labels: Tensor  # (n, K) -1/0/+1
    space: LabelSpace
    trained_blocks: int | None = None  # blocks of a ViT that come after the tokens (``VLP.trained_blocks``), if known
    augment = "none"

    def __post_init__(self):
        if not isinstance(self.trunk, Shards):
            self.trunk = Shards([torch.as_tensor(self.trunk)])
        self.teacher, self.labels = torch.as_tensor(self.teacher), torch.as_tensor(self.labels)
        n = {"tokens": len(self.trunk), "teacher embeddings": len(self.teacher), "labels": len(self.labels)}
        if len({*n.values()}) > 1:
            given = ", ".join(f"{name} of {number}" for name, number in n.items())
            raise ValueError(f"{given} pictures: give all three of the same pictures")
        if self.labels.shape[1:] != (len(self.space.names),):
            raise ValueError(
                f"labels {tuple(self.labels.shape)} of a LabelSpace with {len(self.space.names)} names: give a column "
                "for each name, in their order"
            )

    def __len__(self):
        return len(self.teacher)

    def batch(self, rows: Tensor, device="cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Trunk tokens (float32), teacher embeddings and labels of some rows."""
        return self.trunk[rows].to(device).float(), self.teacher[rows].to(device), self.labels[rows].to(device)

    def batches(self, order: BatchOrder) -> Iterator[tuple]:
        """(rows, (tokens, e_p), labels (b, K)) of this process, on the CPU; a thread reads one step ahead."""

        def read(rows):
            return rows, pinned(self.trunk[rows], self.teacher[rows]), self.labels[rows]

        return read_ahead(read, order.rows(len(self)))

    def frozen(self, vlp, inputs, bf16: bool = False) -> tuple[Tensor, Tensor]:
        """Trunk tokens (b, 1 + N^2, C) and teacher embeddings (b, D), float32, on the VLP's device."""
        return self.tokens(vlp, inputs), move(inputs[1], vlp.mean.device)

    def tokens(self, vlp, inputs) -> Tensor:
        """Trunk tokens (b, 1 + N^2, C), float32, on the VLP's device."""
        return move(inputs[0], vlp.mean.device).float()

    def take(self, rows, labels_of=None) -> "FrozenFeatures":
        """Some pictures, with their own labels or, as a control, with those of the rows ``labels_of``.

        Trunk tokens stay where they are, in memory or on disk.
        """
        rows = row_numbers(rows, len(self))
        labels = self.labels[rows if labels_of is None else np.asarray(labels_of, np.int64)]
        trunk, teacher = self.trunk.take(rows), self.teacher[torch.from_numpy(rows)]
        return dataclasses.replace(self, trunk=trunk, teacher=teacher, labels=labels)

    def relabel(self, dataset) -> "FrozenFeatures":
        """The same pictures with the annotation of ``dataset``, which has as many."""
        return dataclasses.replace(self, labels=label_matrix(dataset).to(self.labels.dtype))

    def identity(self) -> dict:
        """Plain values that differ for other features or other seen labels."""
        labels = self.labels[:, self.space.columns("seen")].to("cpu", torch.int8).contiguous().numpy()
        return {
            "pictures": len(self),
            "labels": hashlib.sha256(labels).hexdigest()[:16],
            "features": hashlib.sha256(self.teacher.cpu().contiguous().numpy()).hexdigest()[:16],
            "precision": str(self.trunk.dtype).removeprefix("torch."),
        }

    def has_positives(self) -> bool:
        """Whether any picture has a positive seen label."""
        return bool((self.labels[:, self.space.columns("seen")] == 1).any())


@torch.no_grad()
def extract(
    vlp, dataset: Dataset, space: LabelSpace, folder: str | Path | None = None, batch: int = 64, workers: int = 0
) -> FrozenFeatures:
    r"""Run the frozen VLP over ``dataset`` (items: image uint8 (3, side, side), labels (K,)).

    With ``folder``, the result is stored there in shards (``store``) under a key made of the VLP's weights and picture
    side, the label names and the data (``dataset.fingerprint()``: plain values that change whenever a picture or an
    annotation does), so that a stale cache is never read. An interrupted run goes on after its last whole shard, and a
    damaged shard is computed again, with a warning. A terminal shows the progress.

    Args:
        batch: pictures that the VLP takes at a time.
        workers: processes that read pictures.

    Raises ``ValueError`` for an empty dataset, labels that do not fit ``space``, a dataset without ``fingerprint``
    where a folder is given, pictures whose features are not finite in float16, and a cache whose ``about.json`` is
    damaged; ``OSError`` where the disk has no room.
    """
    n, tokens, after = len(dataset), (1 + vlp.N**2, vlp.C), vlp.trained_blocks
    if not n:
        raise ValueError("the dataset is empty: there is nothing to extract features of")
    if folder is None:
        trunk, small = torch.empty(n, *tokens, dtype=torch.float16), []
        rows = torch.arange(n).split(batch)
        for own, (x, *rest) in zip(rows, _compute(vlp, dataset, space, rows, workers)):
            trunk[own] = x
            small.append(rest)
        teacher, labels = (torch.cat(parts) for parts in zip(*small))
        return FrozenFeatures(trunk, teacher, labels, space, after)
    about = {"VLP": vlp.name, "weights": vlp.hash, "picture side": vlp.side, "precision": "float16", "tokens": tokens}
    about |= {"labels": space.names, "data": _fingerprint(dataset), "pictures": n}
    about |= {"blocks after them": after} if after != 1 else {}
    cache = Cache(folder, about | {"reading": f"Pillow {PIL.__version__}"})  # which resizes pictures
    if missing := cache.missing():
        with cache.filling(missing, vlp.D + len(space.names)):
            parts = {s: cache.rows[s].split(batch) for s in missing}
            rows = [own for part in parts.values() for own in part]
            computed = _compute(vlp, dataset, space, rows, workers)
            for s, part in parts.items():
                cache.write(s, islice(computed, len(part)))
    return FrozenFeatures(*cache.read(), space, after)


def _compute(vlp, dataset, space, rows: list[Tensor], workers: int) -> Iterator[tuple]:
    """Trunk tokens (b, 1 + N^2, C) in float16, e_p (b, D) and labels (b, K) of each batch of rows; on the CPU."""
    pin = torch.cuda.is_available()
    loader = DataLoader(dataset, batch_sampler=[own.tolist() for own in rows], num_workers=workers, pin_memory=pin)
    done = len(dataset) - sum(len(own) for own in rows)
    with tqdm(total=len(dataset), initial=done, desc="frozen features", disable=None, leave=False) as progress:
        for own, (images, y) in zip(rows, loader):
            if y.shape[1] != len(space.names):
                raise ValueError(
                    f"the dataset annotates {y.shape[1]} labels, the label space has {len(space.names)} names"
                )
            x = vlp.trunk(move(images, vlp.mean.device))  # (b, 1 + N^2, C)
            e_p = vlp.teacher(x)  # (b, D)
            x = x.half()
            finite = (x.isfinite().flatten(1).all(dim=1) & e_p.isfinite().all(dim=1)).cpu()  # (b,)
            if not finite.all():
                first = int(own[~finite][0])
                raise ValueError(
                    f"features of picture {first} are NaN or beyond float16: look at it and at the VLP's weights"
                )
            progress.update(len(own))
            yield x.cpu(), e_p.cpu(), y.to(torch.int8)


def _fingerprint(dataset):
    if not hasattr(dataset, "fingerprint"):
        kind = type(dataset).__name__
        raise ValueError(f"{kind} has no fingerprint(), so its features cannot be cached: give folder=None, or add one")
    return dataset.fingerprint()
