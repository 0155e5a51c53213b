"""Device, processes and memory: where this process computes, and how many were started together (by Accelerate)."""

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

TIMEOUT = timedelta(hours=1)  # of processes that wait for each other, as while one of them computes features


def process() -> PartialState:
    """State of this process among those started together: ``device``, ``process_index``, ``num_processes``.

    Without a launcher it is the only process, on the best device of the machine; ``ACCELERATE_USE_CPU=true`` restricts
    it to the CPU. Raises ``RuntimeError`` if a launcher started several processes that do not find each other, so that
    each would train alone. This happens on a machine without GPUs where that variable is not set.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT)
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != state.num_processes:
        raise RuntimeError(
            f"{started} processes were started, and this one knows of {state.num_processes}: on a machine without GPUs "
            "set ACCELERATE_USE_CPU=true, with GPUs start no more processes than there are"
        )
    return state


def workers() -> int:
    """Number of processes that decode pictures for this training process: its share of the cores, at most 16."""
    return min(16, (os.cpu_count() or 1) // neighbours())


def neighbours() -> int:
    """Number of processes that were started together on this machine, this one included."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def leads_here() -> bool:
    """Whether this process does what one of those that were started together on this machine has to do."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def native_bf16(device: torch.device | str) -> bool:
    """Whether ``device`` multiplies in bfloat16 natively. Other CPUs emulate it, which is slower than float32."""
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
    """Context for the image side: products in bfloat16 if ``bf16`` is set and the device is native, else in float32."""
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and native_bf16(device))


def best() -> torch.device:
    """The device of this process: its GPU, Apple's GPU, or the CPU."""
    return process().device


def available() -> list[str]:
    """Names of the kinds of devices of this machine: cpu, and cuda and mps if it has them."""
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [name for name, is_here in found.items() if is_here]


def named(name: str | torch.device) -> torch.device:
    """A device by name: cpu, cuda, cuda:1, mps. Raises ``ValueError`` if this machine does not have it."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    exists = device is not None and device.type in available()
    if exists and device.type == "cuda":
        exists = (device.index or 0) < torch.cuda.device_count()
    if not exists:
        raise ValueError(f"device = {str(name)!r}: this machine has {', '.join(available())}; choose one of these")
    return device


def move(x: torch.Tensor, device) -> torch.Tensor:
    """``x`` on ``device``. A copy from pinned memory runs at the same time as the computation."""
    return x.to(device, non_blocking=x.is_pinned())


def pinned(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors in pinned memory if there is a CUDA device; otherwise as they are."""
    return tuple(x.pin_memory() for x in tensors) if torch.cuda.is_available() else tensors


def memory_gb() -> tuple[float, float]:
    """Memory that this process holds now and held at most, in GB (10^9 bytes), mapped files included.

    The peak is VmHWM on Linux (a process inherits ``ru_maxrss`` from its parent, but not this), ``ru_maxrss`` on macOS,
    where it is in bytes, and the peak working set on Windows.
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


def reset_peak_memory() -> bool:
    """Restart the peak of ``memory_gb`` from what is held now. Returns False where the system cannot do it (not Linux).

    Freed memory is returned to the system first; otherwise its reuse would not show in the peak.
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
