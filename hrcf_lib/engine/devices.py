r"""Where this process computes, and how many processes there are: what Accelerate knows of it."""

import ctypes
import os
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

PATIENCE = timedelta(hours=1)  # that processes wait for each other, as for the one that computes features for all


def process() -> PartialState:
    r"""This process among those that were started together: ``device``, ``process_index``, ``num_processes``.

    Without a launcher it is the only one, on the best device there is. ``ACCELERATE_USE_CPU=true`` keeps to the CPU.
    Raises ``RuntimeError`` if a launcher started several processes that do not find each other, as those on a machine
    without GPUs do, where this is not set: each would train alone.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != state.num_processes:
        raise RuntimeError(
            f"{started} processes were started, and this one knows of {state.num_processes}: on a machine without GPUs "
            "set ACCELERATE_USE_CPU=true, with GPUs start no more processes than there are"
        )
    return state


def workers() -> int:
    """Processes that decode pictures for each training process of this machine: its share of the cores, 16 at most."""
    return min(16, (os.cpu_count() or 1) // neighbours())


def neighbours() -> int:
    """Number of processes that were started together on this machine, this one among them."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def native_bf16(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies in bfloat16 by itself. A CPU that does not emulates it, slower than float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.11
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(device: torch.device | str, bf16: bool) -> torch.autocast:
    """What the image side runs in: bfloat16 products where asked for and native, float32 elsewhere."""
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and native_bf16(device))


def best() -> torch.device:
    """The device of this process: its GPU, Apple's, or the CPU."""
    return process().device


def available() -> list[str]:
    """Names of the devices of this machine: cpu, and cuda and mps where there are."""
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [name for name, there in has.items() if there]


def named(name: str | torch.device) -> torch.device:
    """A device of this machine by name: cpu, cuda, cuda:1, mps. Raises ``ValueError`` that names those there are."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    there = device is not None and device.type in available()
    if there and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = False
    if not there:
        raise ValueError(f"device = {str(name)!r}: this machine has {', '.join(available())}; choose one of these")
    return device


def move(x: torch.Tensor, device) -> torch.Tensor:
    """``x`` on ``device``; from pinned memory the copy runs beside the computation."""
    return x.to(device, non_blocking=x.is_pinned())


def pinned(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors in pinned memory where there is a CUDA device, otherwise as they are."""
    return tuple(x.pin_memory() for x in tensors) if torch.cuda.is_available() else tensors


def memory_gb() -> tuple[float, float]:
    r"""What this process holds now and what it held at most, GB (10^9 bytes), files that it maps included.

    The peak is Linux's VmHWM, which a process does not inherit as it does ``ru_maxrss``; ``ru_maxrss``, in bytes, on
    macOS; the peak working set on Windows.
    """
    info, status = psutil.Process().memory_info(), Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        peak = 1024 * int(line.split()[1])
    elif sys.platform == "win32":
        peak = info.peak_wset
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _gb(info.rss), _gb(peak)


def forget_peak() -> bool:
    r"""Let the peak of ``memory_gb`` start anew from what is held now; False where the system cannot (not Linux).

    Memory that was freed and not yet given back to the system is given back first: using it again would not show.
    """
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):  # a C library other than GNU's has no such function
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _gb(size: int) -> float:
    return round(size / 1e9, 3)
