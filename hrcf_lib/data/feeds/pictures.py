r"""Pictures read from disk, for training with augmentation and for evaluation without a cache.

Student and teacher share the blocks before the last ``VLP.trained_blocks`` (HRCF: 1): the frozen trunk runs once.
``Pictures`` and ``StreamedPictures`` are feeds (``feed.Feed``).

A view of a picture is a pure function of (seed of the pass, row): it is the same for any number of processes and of
workers, and after a resume.
"""

import copy
import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice

import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hrcf_lib.data import table_format
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.data.images import read_image, rgb
from hrcf_lib.data.labelled_folder import label_matrix
from hrcf_lib.engine import devices


class _FromDisk:
    """Base class: augmentation and the frozen forward pass."""

    trained_blocks = None  # the VLP computes the tokens anew, before as many blocks as it trains

    def __init__(self, vlp, augment: str, workers: int | None):
        self.side, self.augment = vlp.side, augment
        self.workers = devices.workers() if workers is None else workers
        self.transform = None if augment == "none" else augmentation(augment, vlp)

    def augments(self, seed: int | None) -> bool:
        """Whether a pass with this seed shows augmented pictures."""
        return self.transform is not None and seed is not None

    @torch.no_grad()
    def tokens(self, vlp, inputs) -> Tensor:
        """Trunk tokens (b, 1 + N^2, C), float32, on the VLP's device."""
        return vlp.trunk(inputs[0].to(vlp.mean.device, non_blocking=True))

    @torch.no_grad()
    def frozen(self, vlp, inputs, bf16: bool = False) -> tuple[Tensor, Tensor]:
        """Trunk tokens (b, 1 + N^2, C) and teacher embeddings (b, D), float32: one pass of the trunk for both."""
        with devices.autocast(vlp.mean.device, bf16):
            trunk = self.tokens(vlp, inputs)
            teacher = vlp.teacher(trunk)
        return trunk.float(), teacher.float()


class Pictures(_FromDisk):
    r"""A data set whose pictures are read anew in every pass, a ``Feed``.

    Args:
        dataset: items ``(picture uint8 (3, side, side), labels (K,))``, with ``labels``, a ``LabelSpace``, and
            ``label_vector(i)`` and ``fingerprint()``; for augmentation also ``original(i)``, the PIL image in its own
            size.
        vlp: whose picture size and mean colour (which augmentation fills with) are used.
        augment: ``"none"``: as the data set resizes them; or a RandAugment string of timm such as
            ``"rand-m9-mstd0.5-inc1"``, after a random crop of 8 to 100 % of the area, bicubic, and a flip (as in MKT).
        workers: processes that decode and augment; None: the cores of this machine, divided by its processes.

    Raises ``ValueError`` for augmentation of a data set without ``original``.
    """

    def __init__(self, dataset, vlp, augment: str = "none", workers: int | None = 0):
        if augment != "none" and not hasattr(dataset, "original"):
            kind = type(dataset).__name__
            raise ValueError(f"{kind} has no original(i), the picture in its own size: add one, or set augment to none")
        super().__init__(vlp, augment, workers)
        self.dataset, self.space = dataset, dataset.labels
        self.rows = self.labels_of = np.arange(len(dataset))  # of the data set, for each picture and its labels

    def __len__(self):
        return len(self.rows)

    def take(self, rows, labels_of=None) -> "Pictures":
        """Some pictures, with their own labels or, as a control, with those of the rows ``labels_of``."""
        part = copy.copy(self)
        part.__dict__.pop("labels", None)
        part.rows = self.rows[np.asarray(rows, np.int64)]
        part.labels_of = self.labels_of[np.asarray(rows if labels_of is None else labels_of, np.int64)]
        return part

    def relabel(self, dataset) -> "Pictures":
        """The same pictures with the annotation of ``dataset``, which has as many."""
        part = self.take(range(len(self)))
        part.dataset = dataset
        return part

    def batches(self, order: BatchOrder) -> Iterator[tuple]:
        """(rows, (pictures uint8 (b, 3, side, side),), labels (b, K)) of this process, step by step; on the CPU."""
        return load_views(self, [rows.tolist() for rows in order.rows(len(self))], order.seed, self.workers)

    def view(self, row: int, seed: int | None) -> tuple[int, Tensor, Tensor]:
        """Row, picture uint8 (3, side, side) and labels (K,); augmented if there is a seed."""
        i, k = int(self.rows[row]), int(self.labels_of[row])
        if not self.augments(seed):
            image, labels = self.dataset[i]
            return row, image, labels if k == i else self.dataset.label_vector(k)
        return row, augmented(self.dataset.original(i), self.transform, seed, row), self.dataset.label_vector(k)

    @cached_property
    def labels(self) -> Tensor:
        """(n, K) int8, of all pictures: what evaluation compares scores with."""
        return label_matrix(self.dataset, self.labels_of)

    def identity(self) -> dict:
        """Plain values that differ for other pictures or other labels."""
        rows = hashlib.sha256(np.stack([self.rows, self.labels_of]).tobytes()).hexdigest()[:16]
        return {"pictures": len(self), "data": str(self.dataset.fingerprint()), "rows": rows}

    def has_positives(self) -> bool:
        """Whether any picture has a positive seen label."""
        seen = self.space.columns("seen")
        return any((self.dataset.label_vector(int(k))[seen] == 1).any() for k in self.labels_of)


class StreamedPictures(_FromDisk):
    r"""Training pictures of a prepared table, a ``Feed`` that streams its Parquet shards: memory does not grow with it.

    The seed of the pass shuffles rows within a buffer (shards first). Every process reads the same stream, and
    ``split_dataset_by_node`` leaves it every ``world``-th row. The shards hold names and labels only; decoding, which
    takes the time, is divided.

    Args:
        out: folder that a ``prepare`` wrote; ``split``: of it; ``images``: where the pictures are now, if not where
            ``prepare`` found them.
        vlp, augment, workers: as for ``Pictures``.
        buffer: rows to shuffle within.
        resize: how pictures become square without augmentation, see ``read_image``.

    Unseen labels read 0 (unknown), as zero-shot training demands. Raises what ``table_format`` raises for a folder that
    is not a prepared table; ``ValueError`` for one without pictures, and in ``batches`` for a batch that the processes
    cannot divide evenly.
    """

    def __init__(
        self,
        out,
        vlp,
        augment="none",
        workers: int | None = 0,
        split="train",
        buffer=10_000,
        images=None,
        resize="crop",
    ):
        about = table_format.read_about(out)
        table_format.shards(out, split)  # its errors come at once
        root = about["images"] if images is None else images
        if root is None:
            raise ValueError(f"{out} was prepared without pictures; give images=<folder>")
        super().__init__(vlp, augment, workers)
        self.out, self.split, self.buffer, self.resize = out, split, buffer, resize
        self.space, self.root = table_format.read_label_space(out)[0], os.path.expanduser(str(root))
        self.counts = about["splits"][split]

    def __len__(self):
        return self.counts["rows"]

    def batches(self, order: BatchOrder) -> Iterator[tuple]:
        """(files, (pictures uint8 (b, 3, side, side),), labels (b, K)) of this process, step by step; on the CPU."""
        if order.batch % order.world:
            raise ValueError(
                f"a batch of {order.batch} streamed pictures cannot be divided evenly between {order.world} processes: "
                "choose another batch or number of processes, or set stream to False"
            )
        own = order.batch // order.world
        rows = table_format.stream(self.out, self.split, self.buffer if order.seed is not None else 0, order.seed or 0)
        rows = split_dataset_by_node(rows, order.rank, order.world, strategy="examples").skip(order.skip * own)
        return load_views(self, _batched(rows, own, order.steps(len(self)) - order.skip), order.seed, self.workers)

    def view(self, row: dict, seed: int | None) -> tuple[str, Tensor, Tensor]:
        """File, picture uint8 (3, side, side) and labels (K,) of one row of the table; augmented if there is a seed."""
        path = os.path.join(self.root, row["file"])
        if self.augments(seed):
            image = augmented(rgb(path), self.transform, seed, row["row"])
        else:
            image = read_image(path, self.side, self.resize)
        y = torch.zeros(len(self.space.names))
        y[row["negatives"]] = -1
        y[row["positives"]] = 1
        y[self.space.columns("ZSL")] = 0
        return row["file"], image, y

    def take(self, rows, labels_of=None):
        """Not possible: raises ``ValueError``."""
        raise ValueError("streamed pictures come in their own order and cannot be chosen by row: set stream to False")

    def relabel(self, dataset):
        """Not possible: raises ``ValueError``."""
        raise ValueError("labels are hidden by row, which a stream does not count: set stream to False")

    def identity(self) -> dict:
        """Plain values that differ for other pictures or other labels."""
        return {"pictures": len(self), "data": repr(self.counts), "buffer": self.buffer, "labels": self.space.hash}

    def has_positives(self) -> bool:
        """Whether any picture has a positive label, seen or not: a stream counts no more without a pass over it."""
        return self.counts["positives"] > 0


def _batched(rows, size: int, steps: int) -> Iterator[list[dict]]:
    """``steps`` lists of ``size`` rows; the last may be shorter, or empty for a process that has none left."""
    rows = iter(rows)
    for _ in range(steps):
        yield list(islice(rows, size))


class _Views(Dataset):
    """Items of a ``DataLoader``: a source's views in a pass with this seed."""

    def __init__(self, source, seed):
        self.source, self.seed = source, seed

    def __getitem__(self, row):
        return self.source.view(row, self.seed)


def load_views(source, batches, seed: int | None, workers: int) -> Iterator[tuple]:
    """Views of each batch of rows, in order; ``workers`` processes make them ahead of time."""
    yield from DataLoader(
        _Views(source, seed),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(_collate, side=source.side, K=len(source.space.names)),
        pin_memory=torch.cuda.is_available(),
    )


def _collate(items: list, side: int, K: int) -> tuple:
    """Rows, pictures and labels of a batch, which may be empty. A function of the module, so that workers find it."""
    images = torch.stack([image for _, image, _ in items]) if items else torch.empty(0, 3, side, side)
    labels = torch.stack([y for _, _, y in items]) if items else torch.empty(0, K)
    return [row for row, _, _ in items], (images,), labels


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
    """One view, uint8 (3, side, side), drawn from seed and row alone; global random states stay as they were."""
    with _drawn(np.random.SeedSequence([seed, row]).generate_state(3).tolist()):
        return torch.from_numpy(np.ascontiguousarray(transform(image)))


@contextmanager
def _drawn(seeds):
    """timm draws from three global generators: seed them, and put them back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seeds[0]), np.random.seed(seeds[1]), torch.manual_seed(seeds[2])  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])  # noqa: NPY002
