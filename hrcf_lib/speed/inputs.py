"""Sizes and random inputs of the speed table. B pictures, J regions, K labels, N pictures of a test set."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hrcf_lib import config as configs
from hrcf_lib.data.official import checks, open_images
from hrcf_lib.engine import devices
from hrcf_lib.model import HRCF
from hrcf_lib.vlp import MINI


@dataclass(frozen=True)
class Sizes:
    """How large the comparisons are. Plain values, so that they can be sent to another process."""

    vlp: str = "ViT-B-16"
    K: int = 925  # seen labels of NUS-WIDE
    K_large: int = 7186  # seen labels of Open Images
    K_all: int = 7586  # all labels of Open Images
    B: int = 16  # pictures of a step
    B_large: int = 128
    B_inference: int = 8
    N: int = 107_859  # test pictures of NUS-WIDE
    K_test: int = 1006  # all labels of NUS-WIDE
    steps: int = 5  # timed steps of training on pictures that are decoded and augmented
    part: int = 37  # names per pass of the plain text tower: more would fill the memory with activations

    @classmethod
    def of(cls, smoke: bool) -> "Sizes":
        """The sizes of the paper, or small ones that take seconds."""
        small = cls(MINI, K=40, K_large=300, K_all=400, B=4, B_large=8, B_inference=4, N=2000, K_test=20, steps=3)
        return small if smoke else cls()

    def model(self, **changes) -> HRCF:
        """HRCF with random weights on the best device, with the settings of the paper's run on NUS-WIDE."""
        settings = {"vlp": self.vlp, "vlp_weights": None, "augment": "none"} | changes
        return HRCF(configs.PRESETS["nus_wide"]().replace(**settings), pretrained=False).to(devices.best())


def label_names(K: int) -> list[str]:
    """The first K seen labels of NUS-WIDE; more than its 925 are labels of Open Images."""
    if K <= 925:
        return list(checks.label_list("nus_wide_seen925.txt")[:K])
    return list(open_images.label_space()[0].names[:K])


def random_normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Normal numbers of standard deviation ``scale``, on the best device."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(devices.best())


def random_images(B: int, side: int) -> Tensor:
    """Pictures of noise: uint8 (B, 3, side, side), on the best device."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (B, 3, side, side), generator=rng, dtype=torch.uint8).to(devices.best())


def random_labels(B: int, K: int, positives: float = 2.4, seed: int = 1) -> Tensor:
    """(B, K) of -1 and +1 with at least one positive per picture; on average about as many as NUS-WIDE has."""
    chance = torch.rand(B, K, generator=torch.Generator().manual_seed(seed))
    labels = torch.where(chance < positives / K, 1, -1)
    labels[:, 0] = 1
    return labels.to(devices.best())
