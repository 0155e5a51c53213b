"""Rows on what training waits for: pictures from JPEGs, with and without workers, and features from the cache."""

import io
import tempfile

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from hrcf_lib import training
from hrcf_lib.data.feeds.features import extract
from hrcf_lib.data.feeds.pictures import Pictures
from hrcf_lib.data.images import read_image
from hrcf_lib.engine import devices
from hrcf_lib.labels import LabelSpace
from hrcf_lib.speed.compare import summary
from hrcf_lib.speed.generated import noise_jpeg
from hrcf_lib.speed.inputs import Sizes, label_names, random_labels

AUGMENT = "rand-m9-mstd0.5-inc1"  # the paper's


def loader(sizes: Sizes) -> dict:
    """Training on JPEGs that worker processes decode and augment, against decoding between the steps."""
    model = sizes.model()
    data = Jpegs(_steps(sizes) * sizes.B, label_names(sizes.K), model.vlp.side)
    plain, plain_share = _epoch(sizes, Pictures(data, model.vlp, AUGMENT, workers=0))
    ours, share = _epoch(sizes, Pictures(data, model.vlp, AUGMENT, workers=devices.workers()))
    note = f"waits for pictures {share:.1%} of the time with {devices.workers()} workers, {plain_share:.1%} with none"
    what = f"step of the image side on {AUGMENT} views of JPEGs, B = {sizes.B}"
    return summary(plain, ours) | {"what": what, "note": note} | {"waiting": share, "waiting_plain": plain_share}


def cached_epoch(sizes: Sizes) -> dict:
    """A step from the cache on disk, against one from decoded JPEGs with a shared trunk."""
    model = sizes.model()
    data = Jpegs(_steps(sizes) * sizes.B, label_names(sizes.K), model.vlp.side)
    plain, plain_share = _epoch(sizes, Pictures(data, model.vlp, workers=devices.workers()))
    with tempfile.TemporaryDirectory() as folder:
        stored = extract(model.vlp, data, data.labels, folder)
        ours, share = _epoch(sizes, stored)
        del stored  # some systems do not remove a file that is mapped
    note = f"waits {share:.1%} of the time from the cache, {plain_share:.1%} without"
    what = f"step of the image side from the cache against from JPEGs, B = {sizes.B}"
    return summary(plain, ours) | {"what": what, "note": note} | {"waiting": share, "waiting_plain": plain_share}


def _filling() -> int:
    """Steps at the start of an epoch whose pictures were ready in advance: each worker makes two batches ahead."""
    return 2 * devices.workers() + 2


def _steps(sizes: Sizes) -> int:
    return _filling() + sizes.steps


def _epoch(sizes: Sizes, pictures) -> tuple[list[float], float]:
    """Seconds of each step, and the share of the time spent waiting, after the steps of ``_filling``."""
    augment = pictures.augment
    model = sizes.model(phases=(("hcg", 1, sizes.B),), augment=augment)
    history = training.train(model, pictures).iloc[_filling() - 1 :]
    took = history["seconds"].diff().iloc[1:]  # seconds of each step, waiting included
    return took.tolist(), float(history["waited"].iloc[1:].sum() / took.sum())


class Jpegs(Dataset):
    """JPEGs of 640 x 480 in main memory, about as large as photographs, with random seen labels."""

    def __init__(self, n: int, names: list[str], side: int, kinds: int = 16):
        self.side, self.labels, self.y = side, LabelSpace(names), random_labels(n, len(names)).cpu().float()
        rng = np.random.default_rng(0)
        self.files = [noise_jpeg(rng, coarse=(15, 20), quality=90) for _ in range(min(n, kinds))]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return read_image(self.original(i), self.side), self.y[i]

    def original(self, i: int) -> Image.Image:
        """The decoded picture in its original size."""
        return Image.open(io.BytesIO(self.files[i % len(self.files)])).convert("RGB")

    def label_vector(self, i: int) -> Tensor:
        """(K,) of -1 and +1."""
        return self.y[i]

    def fingerprint(self) -> str:
        """The pictures are the same in every run."""
        return f"{len(self)} JPEGs of the benchmark"
