r"""The image side while it is fixed: global embeddings and regions of all pictures, computed once.

While prompts learn (Eq. 21), and while labels, lambda or RSS are varied at test time, the image side does not change.
n pictures, J regions, D embedding width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from hrcf_lib.data.feeds.features import FrozenFeatures
from hrcf_lib.data.feeds.feed import Batches, Feed, check_feed
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.engine import devices


@dataclass
class Embedded:
    """Global embeddings (n, D) in float32 and regions (n, J, D) in the type the image side computes, on the CPU."""

    e_g: Tensor
    regions: Tensor


@torch.no_grad()
def embed(model, data: Feed, batch: int = 128) -> Embedded:
    """The image side of ``model`` over a split; 280 D bytes per picture for J = 140 in bfloat16, twice that in float32.

    Raises what ``check_feed`` raises.
    """
    check_feed(model, data)
    held, at = None, 0
    for _, inputs, labels in data.batches(BatchOrder(batch)):
        with model.autocast():
            e_g, regions = model.image_embeddings(data.tokens(model.vlp, inputs))
        if held is None:  # shapes and type are known from here on
            n = len(data)
            held = Embedded(torch.empty(n, e_g.shape[1]), torch.empty(n, *regions.shape[1:], dtype=regions.dtype))
        held.e_g[at : at + len(labels)], held.regions[at : at + len(labels)] = e_g.cpu(), regions.cpu()
        at += len(labels)
    return held


@dataclass
class FixedImageSide:
    """``Batches`` of a prompt phase: embeddings take the place of the trunk tokens of ``FrozenFeatures``."""

    embedded: Embedded
    data: FrozenFeatures

    @property
    def space(self):
        """Label names of the annotation."""
        return self.data.space

    def batches(self, order: BatchOrder) -> Iterator[tuple]:
        """(rows, (e_g, regions, e_p), labels (b, K)) of this process, step by step, on the CPU."""
        for rows in order.rows(len(self.data)):
            images = self.embedded.e_g[rows], self.embedded.regions[rows]
            yield rows, (*images, self.data.teacher[rows]), self.data.labels[rows]

    def frozen(self, vlp, inputs, bf16: bool = False) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """(e_g (b, D), regions (b, J, D)) and teacher embeddings (b, D), on the VLP's device."""
        e_g, regions, teacher = (x.to(vlp.mean.device) for x in inputs)
        return (e_g, regions), teacher


def fix_image_side(model, data: Feed, epochs: int) -> Batches:
    r"""The data for a prompt phase of ``epochs``: ``FixedImageSide`` where it pays, otherwise ``data`` itself.

    It pays where there are more epochs than processes: the image side has learnt since the phase before, so each
    picture is embedded once per phase anyway, and each process embeds all of them. Phases of one epoch, as in the
    presets, therefore compute embeddings in every step. Augmented pictures differ in every epoch. ``FixedImageSide``
    holds (2 J + 4) D bytes per picture in bfloat16; it may take half of the free main memory, divided by the processes
    of this machine.
    """
    if epochs <= devices.process().num_processes or not isinstance(data, FrozenFeatures):
        return data
    J = sum(side**2 for side in model.region_sides)
    half = model.config.bf16 and devices.native_bf16(model.vlp.mean.device)
    size = len(data) * (4 + (2 if half else 4) * J) * model.vlp.D  # bytes
    if size > psutil.virtual_memory().available / 2 / devices.neighbours():
        return data
    return FixedImageSide(embed(model, data), data)
