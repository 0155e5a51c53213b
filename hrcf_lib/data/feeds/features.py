r"""Frozen features: what the VLP says of every picture, computed once.

The first blocks of the ViT (all but ``VLP.trained_blocks``; eleven of twelve for HRCF) and the teacher never change, so
their outputs are stored: trunk tokens (n, 1 + N^2, C) as float16 in memory-mapped shards, teacher embeddings e_p (n, D)
in float32. A step of HRCF's training then costs one block and two convolutions. This is exact for pictures without
augmentation, up to the rounding of the tokens.
"""

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
from hrcf_lib.data.feeds.store import DTYPES, Cache, Shards
from hrcf_lib.engine.devices import move, pinned
from hrcf_lib.engine.messages import check_known
from hrcf_lib.labels import LabelSpace


@dataclass
class FrozenFeatures:
    """Features and annotation of one split; n pictures, K labels in the order of ``space.names``."""

    trunk: Shards  # (n, 1 + N^2, C), perhaps memory-mapped; a tensor or an array becomes one
    teacher: Tensor  # (n, D) float32, e_p
    labels: Tensor  # (n, K) -1/0/+1
    space: LabelSpace
    trained_blocks: int | None = (
        None  # blocks of the ViT that come after the tokens (``VLP.trained_blocks``); None: not known
    )

    def __post_init__(self):
        if not isinstance(self.trunk, Shards):
            self.trunk = Shards([torch.as_tensor(self.trunk)])

    def __len__(self):
        return len(self.teacher)

    def batch(self, rows: Tensor, device="cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Trunk tokens (float32), teacher embeddings and labels of some rows."""
        return self.trunk[rows].to(device).float(), self.teacher[rows].to(device), self.labels[rows].to(device)

    def batches(self, order: BatchOrder) -> Iterator[tuple]:
        r"""(rows, what ``frozen`` takes, labels (b, K)) of this process, step by step; all on the CPU.

        A thread reads one step ahead.
        """

        def read(rows):
            return rows, pinned(self.trunk[rows], self.teacher[rows]), self.labels[rows]

        return read_ahead(read, order.rows(len(self)))

    def frozen(self, vlp, inputs, bf16: bool = False) -> tuple[Tensor, Tensor]:
        """Trunk tokens (b, 1 + N^2, C) and teacher embeddings (b, D), float32, on the VLP's device."""
        return self.tokens(vlp, inputs), move(inputs[1], vlp.mean.device)

    def tokens(self, vlp, inputs) -> Tensor:
        """Trunk tokens (b, 1 + N^2, C), float32, on the VLP's device: all that evaluation needs."""
        return move(inputs[0], vlp.mean.device).float()

    def identity(self) -> dict:
        """What a run on these features belongs to: plain values that tell other data."""
        labels = self.labels[:, self.space.columns("seen")].to("cpu", torch.int8).contiguous().numpy()
        return {
            "pictures": len(self),
            "labels": hashlib.sha256(labels).hexdigest()[:16],
            "features": hashlib.sha256(self.teacher.cpu().contiguous().numpy()).hexdigest()[:16],
            "precision": str(self.trunk.dtype).removeprefix("torch."),
        }

    def take(self, rows, labels_of=None) -> "FrozenFeatures":
        """Some pictures, with their own labels or, as a control, with those of the rows ``labels_of``.

        Trunk tokens stay where they are, in memory or on disk.
        """
        rows = np.asarray(rows)
        if rows.dtype == bool:
            raise ValueError("rows are numbers of pictures, not a mask: give mask.nonzero()[0]")
        rows = rows.astype(np.int64)
        labels = self.labels[rows if labels_of is None else np.asarray(labels_of, np.int64)]
        return FrozenFeatures(
            self.trunk.take(rows), self.teacher[torch.from_numpy(rows)], labels, self.space, self.trained_blocks
        )

    def has_positives(self) -> bool:
        """Whether any picture has a positive seen label."""
        return bool((self.labels[:, self.space.columns("seen")] == 1).any())


@dataclass
class AugmentedFeatures:
    r"""Features of k augmented views of the same pictures, for training: a pass with seed s reads view s mod k.

    The seeds of a side's epochs follow each other, so that its epochs go through the views in turn. Made of one
    ``extract(vlp, pictures.AugmentedView(dataset, vlp, augment, view), space, folder)`` a view.

    Raises ``ValueError`` for no view, or views of different pictures or labels.
    """

    views: list[FrozenFeatures]
    augment: str  # of all views; ``train`` compares it with the config's
    plain: object = None  # the same pictures without augmentation, where something is to be evaluated on them

    def __post_init__(self):
        if not self.views:
            raise ValueError("no augmented views: give at least one")
        for view in self.views[1:]:
            if view.space != self.space or not torch.equal(view.labels, self.labels):
                raise ValueError("views of different pictures or labels: extract all of them from one data set")
            view.labels = self.labels  # held once

    def __len__(self):
        return len(self.views[0])

    @property
    def space(self) -> LabelSpace:
        return self.views[0].space

    @property
    def labels(self) -> Tensor:
        """(n, K) -1/0/+1."""
        return self.views[0].labels

    @property
    def trained_blocks(self) -> int | None:
        """Blocks of the ViT that come after the tokens."""
        return self.views[0].trained_blocks

    def batches(self, order: BatchOrder) -> Iterator[tuple]:
        """As those of ``FrozenFeatures``, of one view. Raises ``ValueError`` for a pass without a seed."""
        if order.seed is None:
            raise ValueError(
                "augmented views are for training: evaluate on features or pictures made without augmentation"
            )
        return self.views[order.seed % len(self.views)].batches(order)

    def frozen(self, vlp, inputs, bf16: bool = False) -> tuple[Tensor, Tensor]:
        """Trunk tokens (b, 1 + N^2, C) and teacher embeddings (b, D), float32, on the VLP's device."""
        return self.views[0].frozen(vlp, inputs)

    def tokens(self, vlp, inputs) -> Tensor:
        """Trunk tokens (b, 1 + N^2, C), float32, on the VLP's device."""
        return self.views[0].tokens(vlp, inputs)

    def identity(self) -> dict:
        """What a run on these views belongs to: plain values that tell other data, or other or more views."""
        own = [view.identity() for view in self.views]
        return own[0] | {"augmented views": len(own), "features": " ".join(one["features"] for one in own)}

    def take(self, rows, labels_of=None) -> "AugmentedFeatures":
        """Some pictures, with their own labels or, as a control, with those of the rows ``labels_of``."""
        plain = self.plain and self.plain.take(rows, labels_of)
        return AugmentedFeatures([view.take(rows, labels_of) for view in self.views], self.augment, plain)

    def has_positives(self) -> bool:
        """Whether any picture has a positive seen label."""
        return self.views[0].has_positives()


def check_depth(model, data) -> None:
    """Raise ``ValueError`` for features that leave the ViT elsewhere than ``model`` goes on: it would not notice."""
    free, own = getattr(data, "trained_blocks", None), model.vlp.trained_blocks
    if free is not None and free != own:
        raise ValueError(
            f"these features are tokens before the last {free} blocks of the ViT, {model.title} takes those before the "
            f"last {own}: make them for this model, fit.source(model, split), or in studies take a shelf"
        )


@torch.no_grad()
def extract(
    vlp,
    dataset: Dataset,
    space: LabelSpace,
    folder: str | Path | None = None,
    batch: int = 64,
    workers: int = 0,
    precision: str = "float16",
) -> FrozenFeatures:
    r"""Run the frozen VLP over ``dataset`` (items: image uint8 (3, side, side), labels (K,)).

    With ``folder``, the result is stored there in shards (``shards.py``) under a key made of the VLP's weights and
    picture side, ``precision``, the label names and the data (``dataset.fingerprint()``: plain values that change
    whenever a picture or an annotation does), so that a stale cache is never read. An interrupted run goes on after its
    last whole shard. Progress is shown on a terminal.

    Args:
        batch: pictures that the VLP takes at a time.
        workers: processes that read pictures.
        precision: of trunk tokens, with its largest relative rounding error: ``"float16"`` (2^-11), ``"bfloat16"``
            (2^-8, and the range of float32) or ``"float32"`` (none, at twice the size).

    Raises ``ValueError`` for an empty dataset, labels that do not fit ``space``, a dataset that cannot be told from
    another (no ``fingerprint``) though a folder is given, pictures whose features are not finite in ``precision``, and
    a damaged cache; ``OSError`` where the disk has no room.
    """
    n, tokens, free = len(dataset), (1 + vlp.N**2, vlp.C), getattr(vlp, "trained_blocks", 1)
    if not n:
        raise ValueError("the dataset is empty: there is nothing to extract features of")
    check_known([precision], list(DTYPES), "unknown precision")
    if folder is None:
        trunk, small = torch.empty(n, *tokens, dtype=DTYPES[precision]), []
        rows = torch.arange(n).split(batch)
        for own, (x, *rest) in zip(rows, _compute(vlp, dataset, space, rows, workers, precision)):
            trunk[own] = x
            small.append(rest)
        teacher, labels = (torch.cat(parts) for parts in zip(*small))
        return FrozenFeatures(trunk, teacher, labels, space, free)
    about = {"VLP": vlp.name, "weights": vlp.hash, "picture side": vlp.side, "precision": precision, "tokens": tokens}
    about |= {"labels": space.names, "data": _fingerprint(dataset), "pictures": n}
    about |= {"blocks after them": free} if free != 1 else {}
    cache = Cache(folder, about | {"reading": f"Pillow {PIL.__version__}"})  # which resizes pictures
    if missing := cache.missing():
        with cache.filling(missing, vlp.D + len(space.names)):
            parts = {s: cache.rows[s].split(batch) for s in missing}
            rows = [own for part in parts.values() for own in part]
            found = _compute(vlp, dataset, space, rows, workers, precision)
            for s, part in parts.items():
                cache.write(s, islice(found, len(part)))
    return FrozenFeatures(*cache.read(), space, free)


def _compute(vlp, dataset, space, rows: list[Tensor], workers: int, precision: str) -> Iterator[tuple]:
    """Trunk tokens (b, 1 + N^2, C) in ``precision``, e_p (b, D) and labels (b, K) of each batch of rows; on the CPU."""
    pin = torch.cuda.is_available()
    loader = DataLoader(dataset, batch_sampler=[own.tolist() for own in rows], num_workers=workers, pin_memory=pin)
    done = len(dataset) - sum(len(own) for own in rows)
    with tqdm(total=len(dataset), initial=done, desc="frozen features", disable=None, leave=False) as progress:
        for own, (images, y) in zip(rows, loader):
            if y.shape[1] != len(space.names):
                raise ValueError(
                    f"the dataset annotates {y.shape[1]} labels, the label space has {len(space.names)} names"
                )
            x = vlp.trunk(move(images, vlp.mean.device))  # (b, 1 + N*N, C)
            e_p = vlp.teacher(x)  # (b, D)
            x = x.to(DTYPES[precision])
            finite = (x.isfinite().flatten(1).all(dim=1) & e_p.isfinite().all(dim=1)).cpu()  # (b,)
            if not finite.all():
                first = int(own[~finite][0])
                raise ValueError(
                    f"features of picture {first} are NaN or beyond {precision}: look at it and at the VLP's weights"
                )
            progress.update(len(own))
            yield x.cpu(), e_p.cpu(), y.to(torch.int8)


def _fingerprint(dataset):
    if not hasattr(dataset, "fingerprint"):
        kind = type(dataset).__name__
        raise ValueError(f"{kind} has no fingerprint(), so its features cannot be cached: give folder=None, or add one")
    return dataset.fingerprint()
