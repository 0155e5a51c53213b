r"""What all rows of the benchmark share: sizes, random inputs, and how time, memory and differences are taken.

B pictures, J regions, K labels, N pictures of a test set.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hrcf_lib import config as configs
from hrcf_lib.data.official import checks
from hrcf_lib.engine import devices
from hrcf_lib.model import HRCF
from hrcf_lib.vlp import MINI


@dataclass(frozen=True)
class Sizes:
    """How large the comparisons are; plain values, so that they can be sent to another process."""

    vlp: str = "ViT-B-16"
    K: int = 925  # seen labels of NUS-WIDE
    K_large: int = 7186  # seen labels of Open Images
    K_all: int = 7586  # all labels of Open Images
    B: int = 16  # pictures of a step
    B_large: int = 128
    B_inference: int = 32
    N: int = 107_859  # test pictures of NUS-WIDE
    K_test: int = 1006  # all labels of NUS-WIDE
    steps: int = 12  # of training that are timed, on pictures that are decoded and augmented
    part: int = 37  # names that the plain text tower takes at a time: otherwise its activations fill the memory

    @classmethod
    def of(cls, smoke: bool) -> "Sizes":
        """Those of the paper, or some that take seconds."""
        small = cls(MINI, K=40, K_large=300, K_all=400, B=4, B_large=8, B_inference=4, N=2000, K_test=20, steps=3)
        return small if smoke else cls()

    def model(self, **changes) -> HRCF:
        """HRCF with random weights on the best device, with the settings of the paper's run on NUS-WIDE."""
        ready = {"vlp": self.vlp, "vlp_weights": None, "augment": "none"} | changes
        return HRCF(configs.PRESETS["nus_wide"]().replace(**ready), pretrained=False).to(devices.best())


def names_of(K: int) -> list[str]:
    """K label names: the first seen labels of NUS-WIDE."""
    return list(checks.label_list("nus_wide_seen925.txt")[:K])


def draw(*shape, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Normal numbers of that deviation, on the best device."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(devices.best())


def draw_images(B: int, side: int) -> Tensor:
    """Pictures uint8 (B, 3, side, side) of noise, on the best device."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (B, 3, side, side), generator=rng, dtype=torch.uint8).to(devices.best())


def annotate(B: int, K: int, positives: float = 2.4, seed: int = 1) -> Tensor:
    """(B, K) of -1 and +1 with about as many positives a picture as NUS-WIDE has, at least one."""
    chance = torch.rand(B, K, generator=torch.Generator().manual_seed(seed))
    labels = torch.where(chance < positives / K, 1, -1)
    labels[:, 0] = 1
    return labels.to(devices.best())


def seconds(run: Callable) -> tuple[float, object]:
    """Wall time of ``run()``, to the end of what it started on a GPU, and what it returns."""
    _synchronize()
    start = time.perf_counter()
    result = run()
    _synchronize()
    return time.perf_counter() - start, result


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def duel(plain_form: Callable, ours: Callable, repeats: int, warm: bool = True) -> dict:
    """Both forms in turn, ``repeats`` times: medians and their ratio; the peak of memory is that of a run of ours."""
    peak = peak_mb(ours)
    if warm:
        plain_form()
    times = {"plain_s": [], "ours_s": []}
    for _ in range(repeats):
        for key, run in (("plain_s", plain_form), ("ours_s", ours)):
            times[key].append(seconds(run)[0])
    medians = {key: statistics.median(values) for key, values in times.items()}
    return {"ratio": medians["plain_s"] / medians["ours_s"], "peak_mb": peak, **medians}


def peak_mb(run: Callable, on_gpu: bool = True) -> float | None:
    """Memory that ``run()`` takes beyond what is there, 10^6 bytes, of a GPU if it uses one; None if unknown."""
    gc.collect()
    if on_gpu and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if not devices.forget_peak():
        return None
    before = devices.memory_gb()[0]
    run()
    return 1e3 * (devices.memory_gb()[1] - before)


def differ(plain_form: Callable, ours: Callable, inputs: dict[str, Tensor]) -> dict:
    """Largest difference of values, and of the gradients of a weighted sum of them (see ``relative``)."""
    values, gradients = [], []
    for form in (plain_form, ours):
        leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
        value = form(**leaves)
        weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value.device)
        (value * weights).sum().backward()
        values.append(value.detach())
        gradients.append([x.grad for x in leaves.values()])
    return {"max_abs_diff": far(*values), "grad_rel_diff": max(map(relative, *gradients))}


def far(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors."""
    return (a.cpu().double() - b.cpu().double()).abs().max().item()


def relative(reference: Tensor, other: Tensor) -> float:
    """Largest difference, divided by the largest entry of ``reference``."""
    return far(reference, other) / max(reference.abs().max().item(), 1e-30)
