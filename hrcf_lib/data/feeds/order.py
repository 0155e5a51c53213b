r"""The order in which training and evaluation go through pictures, and reading ahead of them."""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchOrder:
    r"""One pass over n pictures: its order, its batches, and the share of each that this process computes.

    The batch is that of all processes together, and the order does not depend on how many they are.
    """

    batch: int  # B, pictures per step
    seed: int | None = None  # of the order and of augmentation; None: in the order of the rows, and not augmented
    skip: int = 0  # steps that were done before
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
        return [rows[self.rank :: self.world] for rows in self.batches(n)[self.skip :]]


def read_ahead(read: Callable, items: Iterable) -> Iterator:
    r"""``read(item)`` of each item, in order; while one result is used, a thread reads the next.

    An error of ``read`` is raised in the place of its result. An iterator that is not used to its end waits for the
    read that is under way and leaves no thread behind.
    """
    with ThreadPoolExecutor(1) as thread:
        ahead = None
        for item in items:
            ready, ahead = ahead, thread.submit(read, item)
            if ready is not None:
                yield ready.result()
        if ahead is not None:
            yield ahead.result()
