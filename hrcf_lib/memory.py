"""Main memory of this process, on Linux, macOS and Windows."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import psutil


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
