"""Learning-rate curves over fractional epochs: pure functions."""

import math


def learning_rate(epoch: float, epochs: int, lr: float, min_lr: float, warmup: float) -> float:
    """MKT's schedule at a fractional ``epoch``: linear from 0 over ``warmup`` epochs, then a cosine to ``min_lr``."""
    if epoch < warmup:
        return lr * epoch / warmup
    turn = math.pi * (epoch - warmup) / max(epochs - warmup, 1e-12)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(min(turn, math.pi)))


def one_cycle(epoch: float, epochs: int, lr: float, rise: float = 0.3, first: float = 25.0, last: float = 1e4) -> float:
    """One cycle (Smith & Topin, 2018) at a fractional ``epoch``, with the defaults of PyTorch's ``OneCycleLR``.

    A cosine from ``lr / first`` up to ``lr`` over the share ``rise`` of training, then one down to
    ``lr / first / last``. PyTorch's class keeps state beside an optimizer; this is a function of the
    epoch alone.
    """
    low, end = lr / first, lr / first / last
    top = rise * epochs
    if epoch < top:
        return low + (lr - low) * 0.5 * (1 - math.cos(math.pi * epoch / top))
    return learning_rate(epoch - top, epochs - top, lr, end, 0.0)
