"""How two forms of one computation are compared: time, memory, values and gradients."""

import gc
import statistics
import timeit
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.benchmark import timer  # waits for the GPU before it reads the clock

from hrcf_lib.engine import devices

REPEATS = 5  # of each form of a row

# ``torch.utils.benchmark.Timer`` runs a form at least twice before it times it, and plain forms can take minutes; the
# standard library's ``timeit`` with PyTorch's clock does not.


def seconds(run: Callable) -> float:
    """Wall time of one ``run()``, to the end of what it started on a GPU."""
    return timeit.timeit(run, timer=timer, number=1)


def fastest(run: Callable, repeats: int) -> float:
    """Seconds of the fastest of ``repeats`` runs, after one to warm up."""
    run()
    return min(timeit.repeat(run, timer=timer, repeat=repeats, number=1))


def median_and_spread(times: Iterable[float]) -> tuple[float, float]:
    """Median of times, and their spread: the interquartile range over the median, 0 where all are equal.

    >>> median_and_spread([2.0, 2.0, 2.0, 3.0, 4.0])
    (2.0, 0.5)
    """
    times = sorted(times)
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return middle, (high - low) / middle


def compare_times(plain_form: Callable, ours: Callable, repeats: int = REPEATS, share: float = 1) -> tuple[dict, list]:
    """Time both forms in turn, ``repeats`` times, after one run of each to warm up.

    Returns the medians ``plain_s`` and ``ours_s``, their ``ratio``, the spreads ``plain_spread`` and ``ours_spread`` of
    ``median_and_spread``, and ``peak_mb`` of one run of ours; and the last result of each form. A plain form that does
    a ``share`` of the work has its times divided by it.
    """
    peak = peak_mb(ours)
    plain_form()
    times, results = {"plain_s": [], "ours_s": []}, {}
    for _ in range(repeats):
        for key, form in (("plain_s", plain_form), ("ours_s", ours)):
            times[key].append(seconds(lambda key=key, form=form: results.update({key: form()})))
    return summary(*times.values(), share) | {"peak_mb": peak}, list(results.values())


def summary(plain: Iterable[float], ours: Iterable[float], share: float = 1) -> dict:
    """``ratio``, medians and spreads of the times of both forms; ``share`` as in ``compare_times``."""
    plain_s, plain_spread = median_and_spread(t / share for t in plain)
    ours_s, ours_spread = median_and_spread(ours)
    spreads = {"plain_spread": plain_spread, "ours_spread": ours_spread}
    return {"ratio": plain_s / ours_s, "plain_s": plain_s, "ours_s": ours_s, **spreads}


def peak_mb(run: Callable, on_gpu: bool = True) -> float | None:
    """Memory that ``run()`` takes beyond what is held, 10^6 bytes; of the GPU if there is one. None if unknown."""
    gc.collect()
    if on_gpu and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if not devices.reset_peak_memory():
        return None
    before = devices.memory_gb()[0]
    run()
    return 1e3 * (devices.memory_gb()[1] - before)


def compare_values(plain_form: Callable, ours: Callable, inputs: dict[str, Tensor]) -> dict:
    """``max_abs_diff`` of the values, ``grad_rel_diff`` of the gradients of a weighted sum of them."""
    values, gradients = [], []
    for form in (plain_form, ours):
        leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
        value = form(**leaves)
        weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value.device)
        (value * weights).sum().backward()
        values.append(value.detach())
        gradients.append([x.grad for x in leaves.values()])
    return {"max_abs_diff": max_difference(*values), "grad_rel_diff": max(map(relative_difference, *gradients))}


def max_difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference of two tensors."""
    return (a.cpu().double() - b.cpu().double()).abs().max().item()


def relative_difference(reference: Tensor, other: Tensor) -> float:
    """Largest absolute difference, divided by the largest entry of ``reference``."""
    return max_difference(reference, other) / max(reference.abs().max().item(), 1e-30)
