r"""Pictures as they come from disk, for training with augmentation and for evaluation without a cache.

The student is a copy of the VLP and they share all blocks but the last, so the frozen trunk runs once for both. Both
classes have the interface of ``FrozenFeatures`` that ``train`` and ``evaluate`` use: ``batches``, ``frozen``,
``identity``, ``has_positives``, ``space`` and ``len``.

A view of a picture is a pure function of (seed of the pass, row): the same for any number of processes and of workers,
and after a resume.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hrcf_lib.data import common
from hrcf_lib.data.images import read_image, rgb
from hrcf_lib.features import Pass


class Pictures:
    r"""A data set whose pictures are read anew in every pass.

    Args:
        dataset: items ``(picture uint8 (3, side, side), labels (K,))``, with ``labels``, a ``LabelSpace``, and
            ``label_vector(i)`` and ``fingerprint()``; for augmentation also ``original(i)``, the PIL image in its own
            size.
        vlp: whose picture size and mean colour (which augmentation fills with) are used.
        augment: ``"none"``: resized and cut as CLIP does; or a RandAugment string of timm such as
            ``"rand-m9-mstd0.5-inc1"``, after a random crop of 8 to 100 % of the area, bicubic, and a flip (as in MKT).
        workers: processes that decode and augment; None: the cores of this machine, shared by its processes.

    Raises ``ValueError`` for augmentation of a data set that has no ``original``.
    """

    def __init__(self, dataset, vlp, augment: str = "none", workers: int | None = 0):
        if augment != "none" and not hasattr(dataset, "original"):
            kind = type(dataset).__name__
            raise ValueError(f"{kind} has no original(i), the picture in its own size: add one, or set augment to none")
        self.dataset, self.space, self.side, self.augment = dataset, dataset.labels, vlp.side, augment
        self.workers = cores() if workers is None else workers
        self.transform = None if augment == "none" else augmentation(augment, vlp)

    def __len__(self):
        return len(self.dataset)

    def batches(self, order: Pass) -> Iterator[tuple]:
        """(rows, (pictures uint8 (b, 3, side, side),), labels (b, K)) of this process, step by step; on the CPU."""
        return load(self, [rows.tolist() for rows in order.rows(len(self))], order.seed, self.workers)

    def view(self, row: int, seed: int | None) -> tuple[int, Tensor, Tensor]:
        """Row, picture uint8 (3, side, side) and labels (K,); augmented if there is a seed."""
        if self.transform is None or seed is None:
            return row, *self.dataset[row]
        image = augmented(self.dataset.original(row), self.transform, seed, row)
        return row, image, self.dataset.label_vector(row)

    @torch.no_grad()
    def frozen(self, vlp, inputs, bf16: bool = False) -> tuple[Tensor, Tensor]:
        """Trunk tokens (b, 1 + N^2, C) and teacher embeddings (b, D), float32: one pass of the trunk for both."""
        images = inputs[0].to(vlp.mean.device, non_blocking=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            trunk = vlp.trunk(images)
            teacher = vlp.teacher(trunk)
        return trunk.float(), teacher.float()

    @cached_property
    def labels(self) -> Tensor:
        """(n, K) int8, of all pictures: what evaluation compares scores with."""
        rows = torch.empty(len(self), len(self.space.names), dtype=torch.int8)
        for i in range(len(self)):
            rows[i] = self.dataset.label_vector(i)
        return rows

    def identity(self) -> dict:
        """What a run on these pictures belongs to: plain values that tell other data."""
        return {"pictures": len(self), "data": str(self.dataset.fingerprint())}

    def has_positives(self) -> bool:
        """Whether any picture has a positive seen label."""
        if hasattr(self.dataset, "label_counts"):
            return bool(self.dataset.label_counts()[0][self.space.columns("seen")].any())
        return any((self.dataset.label_vector(i)[self.space.columns("seen")] == 1).any() for i in range(len(self)))


class StreamedPictures:
    r"""Training pictures of a prepared table, whose Parquet shards are streamed: memory does not grow with the table.

    Rows are shuffled within a buffer (shards first), by the seed of the pass; every process reads the same stream and
    ``split_dataset_by_node`` leaves it every ``world``-th row. The shards hold names and labels only, so what costs
    time, decoding, is divided.

    Args:
        out: folder that a ``prepare`` wrote; ``split``: of it; ``images``: where the pictures are now, if not where
            ``prepare`` found them.
        vlp, augment, workers: as for ``Pictures``.
        buffer: rows to shuffle within.

    Unseen labels read 0 (unknown), as zero-shot training demands. Raises what ``common`` does for a folder that is no
    prepared table; ``ValueError`` for one without pictures, and in ``batches`` for a batch that the processes cannot
    divide evenly.
    """

    frozen = Pictures.frozen

    def __init__(self, out, vlp, augment="none", workers: int | None = 0, split="train", buffer=10_000, images=None):
        about = common.read_about(out)
        common.shards(out, split)  # its errors come at once
        root = about["images"] if images is None else images
        if root is None:
            raise ValueError(f"{out} was prepared without pictures; give images=<folder>")
        self.out, self.split, self.buffer, self.side, self.augment = out, split, buffer, vlp.side, augment
        self.space, self.root = common.read_label_space(out)[0], os.path.expanduser(str(root))
        self.counts = about["splits"][split]
        self.workers = cores() if workers is None else workers
        self.transform = None if augment == "none" else augmentation(augment, vlp)

    def __len__(self):
        return self.counts["rows"]

    def batches(self, order: Pass) -> Iterator[tuple]:
        """(files, (pictures uint8 (b, 3, side, side),), labels (b, K)) of this process, step by step; on the CPU."""
        if order.batch % order.world:
            raise ValueError(
                f"a batch of {order.batch} streamed pictures cannot be divided evenly between {order.world} processes: "
                "choose another batch or number of processes, or set stream to False"
            )
        own = order.batch // order.world
        rows = common.stream(self.out, self.split, self.buffer if order.seed is not None else 0, order.seed or 0)
        rows = split_dataset_by_node(rows, order.rank, order.world, strategy="examples").skip(order.first * own)
        return load(self, _batched(rows, own, order.steps(len(self)) - order.first), order.seed, self.workers)

    def view(self, row: dict, seed: int | None) -> tuple[str, Tensor, Tensor]:
        """File, picture uint8 (3, side, side) and labels (K,) of one row of the table; augmented if there is a seed."""
        path = os.path.join(self.root, row["file"])
        if self.transform is None or seed is None:
            image = read_image(path, self.side)
        else:
            image = augmented(rgb(path), self.transform, seed, row["row"])
        y = torch.zeros(len(self.space.names))
        y[row["negatives"]] = -1
        y[row["positives"]] = 1
        y[self.space.columns("ZSL")] = 0
        return row["file"], image, y

    def identity(self) -> dict:
        """What a run on these pictures belongs to: plain values that tell other data."""
        return {"pictures": len(self), "data": repr(self.counts), "stream": self.buffer, "labels": self.space.hash}

    def has_positives(self) -> bool:
        """Whether any picture has a label at all (which ones, only a pass over the shards would tell)."""
        return self.counts["positives"] > 0


def _batched(rows, size: int, steps: int) -> Iterator[list[dict]]:
    """``steps`` lists of ``size`` rows; the last may be shorter, or empty for a process that has none left."""
    rows = iter(rows)
    for _ in range(steps):
        yield list(islice(rows, size))


class _Views(Dataset):
    """What a worker runs."""

    def __init__(self, source, seed):
        self.source, self.seed = source, seed

    def __getitem__(self, row):
        return self.source.view(row, self.seed)


def load(source, batches, seed: int | None, workers: int) -> Iterator[tuple]:
    """Views of each batch of rows, in order; ``workers`` processes make them ahead of time."""
    side, K = source.side, len(source.space.names)

    def collate(items):
        images = torch.stack([image for _, image, _ in items]) if items else torch.empty(0, 3, side, side)
        labels = torch.stack([y for _, _, y in items]) if items else torch.empty(0, K)
        return [row for row, _, _ in items], (images,), labels

    yield from DataLoader(
        _Views(source, seed),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )


def augmentation(name: str, vlp):
    """timm's transform for training, PIL image -> uint8 array (3, side, side); the VLP itself does the rest."""
    transform = create_transform(
        vlp.side,
        is_training=True,
        color_jitter=None,
        auto_augment=name,
        interpolation="bicubic",
        mean=tuple(vlp.mean.flatten().tolist()),
        use_prefetcher=True,  # ends in uint8, without normalisation
    )
    for op in (op for step in transform.transforms for op in getattr(step, "ops", ())):
        if op.name.startswith("Posterize"):
            op.aug_fn = posterize
    return transform


def posterize(image: Image.Image, bits: int, **_) -> Image.Image:
    """Keep ``bits`` bits of each channel. At timm's highest magnitude none is left: black, where Pillow now refuses."""
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def augmented(image: Image.Image, transform, seed: int, row: int) -> Tensor:
    """One view, uint8 (3, side, side): the draw depends on seed and row alone; global random states stay as they were."""
    with _drawn(np.random.SeedSequence([seed, row]).generate_state(3).tolist()):
        return torch.from_numpy(np.ascontiguousarray(transform(image)))


@contextmanager
def _drawn(seeds):
    """timm draws from three global generators: seed them, and put them back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seeds[0]), np.random.seed(seeds[1]), torch.manual_seed(seeds[2])
    try:
        yield
    finally:
        random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])


def cores() -> int:
    """Cores for each training process of this machine."""
    return (os.cpu_count() or 1) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
