"""Rows on what a training waits for: pictures from JPEGs, with and without workers, and from the cache."""

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
from hrcf_lib.speed.measure import Sizes, annotate, names_of

AUGMENT = "rand-m9-mstd0.5-inc1"  # the paper's


def loader(sizes: Sizes) -> dict:
    """Training on JPEGs that are decoded and augmented beside the computation, against one after the other."""
    model = sizes.model()
    data = Jpegs(_steps(sizes) * sizes.B, names_of(sizes.K), model.vlp.side)
    alone, waits = _epoch(sizes, Pictures(data, model.vlp, AUGMENT, workers=0))
    beside, share = _epoch(sizes, Pictures(data, model.vlp, AUGMENT, workers=devices.workers()))
    note = f"waits for pictures {share:.1%} of the time with {devices.workers()} workers, {waits:.1%} with none"
    what = f"step of the image side on {AUGMENT} views of JPEGs, B = {sizes.B}"
    return _row(alone, beside, what, note) | {"waiting": share, "waiting_plain": waits}


def cached_epoch(sizes: Sizes) -> dict:
    """A step from the cache on disk, against one from JPEGs that are decoded and whose trunk is shared."""
    model = sizes.model()
    data = Jpegs(_steps(sizes) * sizes.B, names_of(sizes.K), model.vlp.side)
    alone, waits = _epoch(sizes, Pictures(data, model.vlp, workers=devices.workers()))
    with tempfile.TemporaryDirectory() as folder:
        stored = extract(model.vlp, data, data.labels, folder)
        cached, share = _epoch(sizes, stored)
        del stored  # some systems remove no file that is mapped
    note = f"waits {share:.1%} of the time from the cache, {waits:.1%} without"
    what = f"step of the image side from the cache against from JPEGs, B = {sizes.B}"
    return _row(alone, cached, what, note) | {"waiting": share, "waiting_plain": waits}


def _row(plain_s: float, ours_s: float, what: str, note: str) -> dict:
    return {"ratio": plain_s / ours_s, "plain_s": plain_s, "ours_s": ours_s, "what": what, "note": note}


def _filling() -> int:
    """Steps at the start of an epoch whose pictures the workers (two batches each) had made before they were needed."""
    return 2 * devices.workers() + 2


def _steps(sizes: Sizes) -> int:
    return _filling() + sizes.steps


def _epoch(sizes: Sizes, pictures) -> tuple[float, float]:
    """Median seconds a step, and the share of the time that was waited for pictures, once the pipe has run empty."""
    augment = getattr(pictures, "augment", "none")
    model = sizes.model(phases=(("hcg", 1, sizes.B),), augment=augment)
    history = training.train(model, pictures).iloc[_filling() - 1 :]
    took = history["seconds"].diff().iloc[1:]  # of each step, what it waited for included
    return float(took.median()), float(history["waited"].iloc[1:].sum() / took.sum())


class Jpegs(Dataset):
    """JPEGs of 640 x 480 in main memory, about as heavy as photographs, annotated at random with seen labels."""

    def __init__(self, n: int, names: list[str], side: int, kinds: int = 16):
        self.side, self.labels, self.y = side, LabelSpace(names), annotate(n, len(names)).cpu().float()
        rng, self.files = np.random.default_rng(0), []
        for _ in range(min(n, kinds)):
            coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
            noisy = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(noisy).save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return read_image(self.original(i), self.side), self.y[i]

    def original(self, i: int) -> Image.Image:
        """The decoded picture, in its own size."""
        return Image.open(io.BytesIO(self.files[i % len(self.files)])).convert("RGB")

    def label_vector(self, i: int) -> Tensor:
        """(K,) of -1 and +1."""
        return self.y[i]

    def fingerprint(self) -> str:
        """These are always the same pictures."""
        return f"{len(self)} JPEGs of the benchmark"
