"""Work in a process of its own: its peak of memory is its own, and a crash is reported by name."""

import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch

from hrcf_lib.engine.devices import memory_gb


def run_stage(title: str, stage: Callable, *arguments, preload: Iterable[str] = ()) -> dict:
    r"""``stage(*arguments)`` in a process of its own -> its row of a table. ``stage`` is a function of some module.

    The row holds stage (the title), seconds, ``peak_gb`` of main memory, ``gpu_gb`` where there is a GPU, and what the
    stage returned; or ``error`` where it failed or was killed, as the system does when memory runs out.

    Args:
        preload: names of modules that a server process imports once (on Linux), which saves each stage their loading.
            The peaks of its processes are still their own.
    """
    context = get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(list(preload))
    row, start = {"stage": title}, time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return row | pool.submit(_measured, stage, arguments).result()
        except BrokenProcessPool:
            row["error"] = "the process was killed; most likely there was too little memory"
        except Exception as error:  # whatever a stage raises is its result
            row["error"] = f"{type(error).__name__}: {error}"
    return row | {"seconds": time.perf_counter() - start}


def _measured(stage: Callable, arguments) -> dict:
    start = time.perf_counter()
    result = stage(*arguments)
    row = {"seconds": time.perf_counter() - start, "peak_gb": memory_gb()[1]}
    if torch.cuda.is_available():
        row["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return row | result
