r"""Run a grid of notebooks x parameters headless, several at a time, on this machine or on a cluster.

::

    python -m hrcf_lib.studies.batch notebooks/06_x.ipynb -g seeds 0 1 2 -g lam 0.25 0.5 -p pictures 500 --workers 2
    python -m hrcf_lib.studies.batch grid.json --out runs/ablations --cluster tcp://scheduler:8786

Each job leaves ``<out>/<notebook>/<parameters>/`` with ``notebook.ipynb`` (the executed copy), ``records/``,
``figures/``, ``log.txt`` and ``job.json``. The same command goes on where it stopped: a job is run again if it failed
or was interrupted, or if its code cells, its parameters, ``HRCF_SIZE`` or the jobs it comes after have changed. A
changed library does not count; ``--again`` runs everything anew.

The cluster is Dask's (``pip install "hrcf[cluster]"``). Its client has an executor of ``concurrent.futures``, so that
runs on one machine and on many share their code; packages that others maintain, such as dask-jobqueue, start it on
Slurm, PBS, SSH or Kubernetes; and no service has to be installed. ``<out>``, the notebooks and the environment have to
lie where all machines see them.
"""

import argparse
import hashlib
import json
import signal
import sys
from concurrent.futures import as_completed
from contextlib import contextmanager
from pathlib import Path

import filelock
import pandas as pd

from hrcf_lib.studies.executors import executor, size
from hrcf_lib.studies.grid import Job, check, code_hash, folder_name, jobs, read_grid
from hrcf_lib.studies.one_job import tell, told
from hrcf_lib.studies.records import commit

__all__ = ["Job", "jobs", "read_grid", "records", "run"]

COLUMNS = ["notebook", "parameters", "status", "seconds", "error", "folder"]
SAME = ("parameters", "code", "size", "before")  # what must not have changed for a job to count as done
LOCK = ".batch.lock"  # held by the system as long as the batch lives: a killed one blocks nobody


def run(many: list[Job], out="runs/batch", workers=None, cluster=None, again=False) -> pd.DataFrame:
    r"""Run jobs, and return a row for each: notebook, parameters, status, seconds, error, folder.

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
    check(many)
    if workers is not None and (workers < 1 or cluster not in (None, "local")):
        raise ValueError(f"workers = {workers}: give 1 or more; a cluster of its own brings its own workers")
    out = Path(out).absolute()
    chosen: dict[Path, Job] = {}
    for job in many:  # one that comes twice is run once
        chosen.setdefault(out / Path(job.notebook).stem / folder_name(job.parameters), job)
    with _alone(out), executor(workers, cluster, len(chosen)) as submit:
        ended = _stages(chosen, submit, again)
    rows = [[Path(job.notebook).stem, job.parameters, *ended[folder], str(folder)] for folder, job in chosen.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def records(out: str | Path = "runs/batch") -> pd.DataFrame:
    """The records that done jobs have left: notebook, parameters, path of each JSON file."""
    done = [(path.parent, told(path.parent)) for path in sorted(Path(out).glob("*/*/job.json"))]
    rows = [
        [values["notebook"], values["parameters"], path]
        for folder, values in done
        for path in sorted(folder.glob("records/*.json"))
        if values.get("status") == "done"
    ]
    return pd.DataFrame(rows, columns=["notebook", "parameters", "path"])


@contextmanager
def _alone(out: Path):
    out.mkdir(parents=True, exist_ok=True)
    try:
        held = filelock.FileLock(out / LOCK).acquire(timeout=0)
    except filelock.Timeout:
        raise RuntimeError(f"another batch writes to {out}: wait until it ends, or choose another folder") from None
    with held:
        yield


# -- what runs ---------------------------------------------------------------------------------------------------------


def _stages(chosen: dict[Path, Job], submit, again: bool) -> dict[Path, list]:
    """Folder of each job -> its status, seconds and error; stage by stage."""
    ended: dict[Path, list] = {}
    head = commit(Path(__file__).resolve().parents[2])
    for stage in sorted({job.stage for job in chosen.values()}):
        mine = {folder: job for folder, job in chosen.items() if job.stage == stage}
        failed = sum(row[0] == "failed" for row in ended.values())
        if failed:
            error = f"not started: of the jobs before it {failed} failed"
            ended |= {folder: ["failed", None, error] for folder in mine}
            continue
        before = _fingerprint(ended)
        orders = {folder: _order(job, before) | {"commit": head} for folder, job in mine.items()}
        for folder in [folder for folder, order in orders.items() if not again and _is_done(folder, order)]:
            ended[folder] = ["skipped", told(folder)["seconds"], ""]
            del orders[folder]
        _run_all(orders, submit, ended, len(chosen))
    return ended


def _run_all(orders: dict[Path, dict], submit, ended: dict[Path, list], total: int) -> None:
    """Run jobs and add how they ended, with a line for each."""
    print(f"{len(orders)} jobs to run, {len(ended)} of {total} done", flush=True)
    for folder, order in orders.items():
        (folder / "job.json").unlink(missing_ok=True)
        tell(folder, status="waiting", **order)
    futures = {submit(folder): folder for folder in orders}
    for future in as_completed(futures):
        folder = futures[future]
        try:
            values = future.result()
        except Exception as error:  # Dask gave it up, as when its workers die again and again
            values = tell(folder, status="failed", error=f"{type(error).__name__}: {error}")
        ended[folder] = [values["status"], values.get("seconds"), values.get("error", "")]
        title = f"{folder.parent.name}/{folder.name}"
        print(f"[{len(ended)}/{total}] {title}: {' '.join(str(x) for x in _line(*ended[folder]))}", flush=True)


def _line(status: str, seconds: float | None, error: str) -> list[str]:
    return [status, *([f"after {seconds:.0f} s"] if seconds is not None else []), *([f"- {error}"] if error else [])]


def _order(job: Job, before: str) -> dict:
    """What ``job.json`` says of a job that is to run; as JSON gives it back."""
    path = Path(job.notebook).absolute()
    order = {"notebook": path.stem, "path": str(path), "parameters": job.parameters, "code": code_hash(path)}
    return json.loads(json.dumps(order | {"size": size(), "before": before}))


def _is_done(folder: Path, order: dict) -> bool:
    values = told(folder)
    return values.get("status") == "done" and all(values.get(name) == order[name] for name in SAME)


def _fingerprint(ended: dict[Path, list]) -> str:
    """Changes when one of these jobs is run again, or another one joins them: then those after them run again."""
    runs = sorted((folder.name, folder.parent.name, told(folder).get("finished")) for folder in ended)
    return hashlib.sha256(json.dumps(runs).encode()).hexdigest()[:16] if runs else ""


# -- the command -------------------------------------------------------------------------------------------------------


def _asked(given) -> list[Job]:
    """Jobs of a command line. Raises ``ValueError`` that lists all that is wrong."""
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
    """The command line. It exits with 0 if all is done, 1 if a job failed, 2 for an error of the user's."""
    parser = argparse.ArgumentParser(prog="python -m hrcf_lib.studies.batch", description=__doc__.splitlines()[0])
    parser.add_argument("what", type=Path, nargs="+", metavar="NOTEBOOK_OR_GRID.json")
    parser.add_argument("-g", nargs="+", action="append", default=[], metavar=("NAME", "VALUE"), help="a grid's values")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    parser.add_argument("--out", default="runs/batch", help="folder of results (default: runs/batch)")
    parser.add_argument("--workers", type=int, help="jobs at a time (default: one a core; two of --cluster local)")
    parser.add_argument("--cluster", help="address of a Dask scheduler, or local: two processes of this machine")
    parser.add_argument("--again", action="store_true", help="also run what is done")
    given = parser.parse_args(words)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        table = run(_asked(given), given.out, given.workers, given.cluster, given.again)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on from here\n")
    print(table.assign(parameters=table["parameters"].map(folder_name)).drop(columns="folder").to_string(index=False))
    sys.exit(int((table["status"] == "failed").any()))


if __name__ == "__main__":
    main()
