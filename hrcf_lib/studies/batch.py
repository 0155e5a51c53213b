r"""Run a grid of notebooks x parameters headless, several at a time, on this machine or on a cluster.

::

    python -m hrcf_lib.studies.batch notebooks/06_x.ipynb -g seeds 0 1 2 -g lam 0.25 0.5 -p pictures 500 --workers 2
    python -m hrcf_lib.studies.batch grid.json --out runs/ablations --cluster tcp://scheduler:8786

Each job has its own process and leaves ``<out>/<notebook>/<parameters>/`` with ``notebook.ipynb`` (the executed copy),
``records/``, ``figures/``, ``log.txt`` and ``job.json``. The same command goes on where it stopped: a job is run again
if it failed or was interrupted, or if its code cells, its parameters, ``HRCF_SIZE`` or the jobs it comes after have
changed. A changed library does not count; ``--again`` runs everything anew.

The cluster is Dask's (``pip install "hrcf[cluster]"``): its client has an executor of ``concurrent.futures``, so that
one machine and many share their code, and packages that others maintain start it on Slurm, PBS, SSH or Kubernetes.
``<out>``, the notebooks and the environment have to lie where all machines see them.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import joblib
import pandas as pd

from hrcf_lib.config import is_smoke
from hrcf_lib.engine.files import alone, read_json, write_json
from hrcf_lib.studies.grid import Job, check_jobs, code_hash, folder_name, jobs, read_grid
from hrcf_lib.studies.repository import REPOSITORY, commit

__all__ = ["Job", "jobs", "read_grid", "records", "run"]

COLUMNS = ["notebook", "parameters", "status", "seconds", "error", "folder"]
SAME = ("parameters", "code", "size", "before")  # a job is done if none of these in its job.json has changed
MADE = ("notebook.ipynb", "records", "figures", "log.txt")  # what a job leaves in its folder beside job.json
RUNNER = ("-m", "hrcf_lib.studies.notebooks")  # what Python runs in the process of a job
LOCK = ".batch.lock"  # the system releases it when the process of the batch dies
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
THREADS += ("VECLIB_MAXIMUM_THREADS",)
MISSING = 'a cluster needs Dask, which is not installed: pip install "hrcf[cluster]"'


def read_status(folder: str | Path) -> dict:
    """What ``job.json`` says; nothing where there is none, or where it is broken."""
    try:
        return read_json(Path(folder) / "job.json")
    except (OSError, ValueError):
        return {}


def write_status(folder: str | Path, **more) -> dict:
    """Add to ``job.json``; returns all of it."""
    values = read_status(folder) | more
    write_json(Path(folder) / "job.json", values, default=str)
    return values


def records(out: str | Path = "runs/batch") -> pd.DataFrame:
    """The records that done jobs have left: notebook, parameters, path of each JSON file."""
    folders = [path.parent for path in sorted(Path(out).glob("*/*/job.json"))]
    done = [(folder, status) for folder in folders if (status := read_status(folder)).get("status") == "done"]
    rows = [[s["notebook"], s["parameters"], path] for f, s in done for path in sorted(f.glob("records/*.json"))]
    return pd.DataFrame(rows, columns=["notebook", "parameters", "path"])


# -- a batch -----------------------------------------------------------------------------------------------------------


def run(many: list[Job], out="runs/batch", workers=None, cluster=None, again=False) -> pd.DataFrame:
    r"""Run jobs; returns one row per job: notebook, parameters, status, seconds, error, folder.

    The status is done, failed, or skipped (it was done before). A job that fails stops no other, but those of later
    stages are not started.

    Args:
        many: from ``jobs`` and ``read_grid``.
        out: folder of the results. One batch at a time writes to it.
        workers: jobs at a time; by default as many as there are cores, with ``cluster="local"`` two.
        cluster: None for processes of this one; address of a Dask scheduler; ``"local"`` for a Dask of this machine.
        again: also run what is done.

    Raises ``ValueError`` that lists all faulty parameters, before anything starts; ``RuntimeError`` if another batch
    writes to ``out``; ``ImportError`` and ``OSError`` if Dask is not installed, or does not answer.
    """
    check_jobs(many)
    if workers is not None and (workers < 1 or cluster not in (None, "local")):
        raise ValueError(f"workers = {workers}: give 1 or more; a cluster of its own brings its own workers")
    out = Path(out).absolute()
    chosen: dict[Path, Job] = {}
    for job in many:  # one that comes twice is run once
        chosen.setdefault(out / Path(job.notebook).stem / folder_name(job.parameters), job)
    ended: dict[Path, list] = {}  # folder -> status, seconds, error
    with alone(out, "another batch", LOCK), _executor(workers, cluster, len(chosen)) as submit:
        for stage in sorted({job.stage for job in chosen.values()}):
            _run_stage({f: job for f, job in chosen.items() if job.stage == stage}, submit, again, ended, len(chosen))
    rows = [[Path(job.notebook).stem, job.parameters, *ended[folder], str(folder)] for folder, job in chosen.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def _run_stage(mine: dict[Path, Job], submit, again: bool, ended: dict[Path, list], total: int) -> None:
    """Run the jobs of one stage that are not done, and add how each ended, with one line per job."""
    if failed := sum(status == "failed" for status, *_ in ended.values()):
        error = f"not started: of the jobs before it {failed} failed"
        ended |= {folder: ["failed", None, error] for folder in mine}
        return
    before = sorted((folder.name, folder.parent.name, read_status(folder).get("finished")) for folder in ended)
    before = hashlib.sha256(json.dumps(before).encode()).hexdigest()[:16] if before else ""  # changes if one runs again
    orders = {folder: _order(job, before) for folder, job in mine.items()}
    for folder, order in list(orders.items()):
        status = read_status(folder)
        if not again and status.get("status") == "done" and all(status.get(name) == order[name] for name in SAME):
            ended[folder] = ["skipped", status["seconds"], ""]
            del orders[folder]
    print(f"{len(orders)} jobs to run, {len(ended)} of {total} done", flush=True)
    for folder, order in orders.items():
        (folder / "job.json").unlink(missing_ok=True)
        write_status(folder, status="waiting", **order)
    futures = {submit(folder): folder for folder in orders}
    for future in as_completed(futures):
        folder = futures[future]
        try:
            status = future.result()
        except Exception as error:  # Dask gave it up, as when its workers die again and again
            status = write_status(folder, status="failed", error=f"{type(error).__name__}: {error}")
        ended[folder] = [status["status"], status.get("seconds"), status.get("error", "")]
        print(f"[{len(ended)}/{total}] {folder.parent.name}/{folder.name}: {_line(*ended[folder])}", flush=True)


def _order(job: Job, before: str) -> dict:
    """What ``job.json`` says of a job that is to run; as JSON gives it back."""
    path = Path(job.notebook).absolute()
    order = {"notebook": path.stem, "path": str(path), "parameters": job.parameters, "code": code_hash(path)}
    order |= {"size": "smoke" if is_smoke() else "full", "before": before, "commit": commit(REPOSITORY)}
    return json.loads(json.dumps(order))


def _line(status: str, seconds: float | None, error: str) -> str:
    return status + (f" after {seconds:.0f} s" if seconds is not None else "") + (f" - {error}" if error else "")


# -- where jobs run ----------------------------------------------------------------------------------------------------


@contextmanager
def _executor(workers: int | None, cluster: str | None, count: int):
    """A function that submits a job by its folder, and returns the future of its status. No job outlives this."""
    cores = joblib.cpu_count()
    workers = workers or (2 if cluster else max(1, min(cores, count)))
    share = max(1, cores // workers) if cluster in (None, "local") else None  # a cluster's machines count their own
    environment = {name: os.environ[name] for name in THREADS if os.environ.get(name)}
    environment |= {"HRCF_SIZE": "smoke" if is_smoke() else "full"}
    if cluster is None:  # each thread waits for the process of one job
        pool, stop = ThreadPoolExecutor(workers), threading.Event()
        try:
            yield lambda folder: pool.submit(run_job, str(folder), environment, share, stop.is_set)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        return
    with _dask(cluster, workers) as client:
        pool = client.get_executor(pure=False)  # a job that is asked for again is run again
        try:
            yield lambda folder: pool.submit(run_job, str(folder), environment, share)
        finally:
            pool.shutdown(wait=False)


def _dask(cluster: str, workers: int):
    """A client of Dask; raises ``ImportError`` if it is not installed, ``OSError`` if no scheduler answers."""
    try:
        import distributed
    except ImportError:
        raise ImportError(MISSING) from None
    if cluster == "local":
        return distributed.Client(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
    try:
        client = distributed.Client(cluster)
    except (OSError, ValueError) as error:
        raise OSError(f"no Dask scheduler answers at {cluster}: start one with `dask scheduler` ({error})") from None
    if not client.ncores():
        print(f"{cluster} has no workers yet: jobs wait until some come", flush=True)
    return client


def run_job(folder: str, environment: dict, share: int | None, unwanted: Callable | None = None) -> dict:
    r"""Run the job in ``folder``, in a process of its own, and return its status; its failure is not raised.

    Args:
        folder: of the job, with its ``job.json``.
        environment: variables of the process, such as ``HRCF_SIZE`` and the limits of threads that the user has set.
        share: threads of the job; None: its share of what a Dask worker has.
        unwanted: whether to end the job, because the batch has ended; on a Dask worker by default whether Dask has
            dropped the task.
    """
    home, start = Path(folder), time.perf_counter()
    if unwanted is None:
        unwanted, threads = _dask_task()
        share = share or max(1, joblib.cpu_count() // threads)
    status = read_status(home)
    if not status:
        return {"status": "failed", "error": f"{platform.node()} does not see {home}: choose a folder that all share"}
    for path in (home / name for name in MADE):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_status(home, status="running")
    limits = dict.fromkeys(THREADS, environment.get("OMP_NUM_THREADS", str(share)).split(",")[0])
    surroundings = os.environ | limits | environment | {"HRCF_OUT": str(home)}
    command = [sys.executable, *RUNNER, status["path"], str(home / "notebook.ipynb")]
    for name, value in status["parameters"].items():
        command += ["-p", name, value if isinstance(value, str) else repr(value)]
    how = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": surroundings}
    how |= {"start_new_session": True}  # Ctrl-C is for the batch, which then ends its jobs
    with (home / "log.txt").open("wb") as log:
        process = subprocess.Popen([*command, "--end-with-parent"], stdout=log, **how)
    with process.stdin:  # the process ends when it closes, however this one ends
        while process.poll() is None and not unwanted():
            time.sleep(0.2)
    if process.wait() and unwanted():
        return status
    seconds, finished = round(time.perf_counter() - start, 1), datetime.now().isoformat()
    error = _error(process.returncode, home / "log.txt")
    outcome = "failed" if process.returncode else "done"
    return write_status(home, status=outcome, error=error, seconds=seconds, finished=finished)


def _error(code: int, log: Path) -> str:
    """Why a job failed: the last line of its log, or that it was killed."""
    if not code:
        return ""
    if code == -9:
        return f"the process of the job was killed, most likely because memory ran out; see {log}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"the process of the job ended with code {code}"


def _dask_task() -> tuple[Callable, int]:
    """Whether Dask has dropped the task of this thread, as when the batch leaves the cluster; threads of the worker."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    return lambda: getattr(worker.state.tasks.get(key), "state", "cancelled") == "cancelled", worker.state.nthreads


# -- the command -------------------------------------------------------------------------------------------------------


def _jobs_of_words(given) -> list[Job]:
    """Jobs of a command line. Raises ``ValueError`` that lists all faults."""
    grid, parameters = {name: values for name, *values in given.g}, dict(given.p)
    found, faults = [], []
    if len(grid) < len(given.g) or len(parameters) < len(given.p):
        faults.append("a parameter is given twice: give all its values after one -g, or one value after -p")
    if (grid or parameters) and all(path.suffix == ".json" for path in given.what):
        faults.append("-g and -p are for notebooks on the command line: write those of a grid file into the file")
    for path in given.what:
        try:
            found += read_grid(path) if path.suffix == ".json" else jobs(path, grid, parameters, words=True)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))
    return found


def _interrupt(*_):
    raise KeyboardInterrupt


def main(words=None) -> None:
    """The command line. It exits with 0 if all is done, 1 if a job failed, 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="python -m hrcf_lib.studies.batch", description=__doc__.splitlines()[0])
    parser.add_argument("what", type=Path, nargs="+", metavar="NOTEBOOK_OR_GRID.json")
    parser.add_argument("-g", nargs="+", action="append", default=[], metavar=("NAME", "VALUE"), help="a grid's values")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    parser.add_argument("--out", default="runs/batch", help="folder of results (default: runs/batch)")
    parser.add_argument("--workers", type=int, help="jobs at a time (default: one per core; two with --cluster local)")
    parser.add_argument("--cluster", help="address of a Dask scheduler, or local: two processes of this machine")
    parser.add_argument("--again", action="store_true", help="also run what is done")
    given = parser.parse_args(words)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        table = run(_jobs_of_words(given), given.out, given.workers, given.cluster, given.again)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on from here\n")
    print(table.assign(parameters=table["parameters"].map(folder_name)).drop(columns="folder").to_string(index=False))
    sys.exit(int((table["status"] == "failed").any()))


if __name__ == "__main__":
    main()
