r"""One job of a batch: a notebook in a process of its own, which ends when the process that started it does.

The job's folder holds all that the process has to know, in ``job.json``; its outcome is written there too.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import psutil

from hrcf_lib.engine.files import write_json

MADE = ("notebook.ipynb", "records", "figures", "log.txt")  # what a job leaves in its folder
THREADS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    "VECLIB_MAXIMUM_THREADS",
)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def told(folder: str | Path) -> dict:
    """What ``job.json`` says; nothing where there is none, or where it is broken."""
    try:
        return json.loads((Path(folder) / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def tell(folder: str | Path, **more) -> dict:
    """Add to ``job.json``; returns all of it."""
    values = told(folder) | more
    write_json(Path(folder) / "job.json", values, default=str)
    return values


def run_job(folder: str, size: str, kept: dict, share: int | None = None, unwanted: Callable | None = None) -> dict:
    r"""Run the job in ``folder`` and return its ``job.json`` at the end; a job that fails is told there, not raised.

    Args:
        folder: of the job, with its ``job.json``.
        size: value of ``HRCF_SIZE`` for the notebook.
        kept: limits of threads that the user has set, as environment variables.
        share: threads of the job; None: its share of what a Dask worker has.
        unwanted: tells whether to end the job, because nobody waits for it any more.
    """
    worker = None if unwanted else _dask_worker()
    unwanted = unwanted or _released(worker)
    if not told(folder):
        return {"status": "failed", "error": f"{platform.node()} does not see {folder}: choose a folder that all share"}
    for name in MADE:
        _remove(Path(folder) / name)
    share = share or max(1, cores() // (worker.state.nthreads if worker else 1))
    code = _wait(_start(Path(folder), _surroundings(folder, size, kept, share)), unwanted)
    values = told(folder)
    if values.get("status") in ("done", "failed") or unwanted():
        return values
    reason = "killed, most likely because memory ran out" if code == -9 else f"ended with code {code}"
    return tell(folder, status="failed", error=f"the process of the job was {reason}; see {Path(folder) / 'log.txt'}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _surroundings(folder: str, size: str, kept: dict, share: int) -> dict:
    """Environment variables of the job; what the user has set of the threads is kept."""
    limit = kept.get("OMP_NUM_THREADS", str(share)).split(",")[0]
    own = {"HRCF_OUT": str(folder), "HRCF_SIZE": size}
    return {**os.environ, **dict.fromkeys(THREADS, limit), **kept, **own}


def _start(folder: Path, surroundings: dict) -> subprocess.Popen:
    """The job's process. It watches its standard input, which closes when this process ends, however it ends."""
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "hrcf_lib.studies.one_job", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=surroundings,
            start_new_session=True,  # Ctrl-C is for the batch, which then ends its jobs
        )


def _wait(process: subprocess.Popen, unwanted: Callable) -> int:
    with process.stdin:
        while not unwanted():
            try:
                return process.wait(0.2)
            except subprocess.TimeoutExpired:
                pass
    return process.wait()


def _dask_worker():
    """The Dask worker that this thread computes for; None where there is none."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


def _released(worker) -> Callable:
    """Whether Dask has dropped the task of this thread, as it does when the batch leaves the cluster."""
    if worker is None:
        return lambda: False
    key = worker.get_current_task()
    return lambda: getattr(worker.state.tasks.get(key), "state", "cancelled") == "cancelled"


# -- inside the job's process ------------------------------------------------------------------------------------------


def _end_with_parent() -> None:
    """Once standard input closes, end this process and all it has started, the kernel first of all."""

    def watch():
        while os.read(0, 1):
            pass
        for process in psutil.Process().children(recursive=True):
            process.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(folder: str) -> None:
    """Run the notebook that ``job.json`` names, and tell there how it ended."""
    _end_with_parent()  # before the slow imports
    start, status, error = time.perf_counter(), "done", ""
    values = tell(folder, status="running", host=platform.node())
    try:
        from hrcf_lib.studies.notebooks import run_notebook

        run_notebook(values["path"], Path(folder) / "notebook.ipynb", values["parameters"], progress=True)
    except Exception as failure:  # whatever a notebook raises is the outcome
        traceback.print_exc()
        status, error = "failed", _in_words(failure)
    seconds, finished = round(time.perf_counter() - start, 1), datetime.now().isoformat()
    tell(folder, status=status, error=error, seconds=seconds, finished=finished)


def _in_words(failure: Exception) -> str:
    if hasattr(failure, "exec_count"):  # papermill's, of a cell
        return f"cell {failure.exec_count}: {failure.ename}: {failure.evalue}"
    return f"{type(failure).__name__}: {failure}"


if __name__ == "__main__":
    main(sys.argv[1])
