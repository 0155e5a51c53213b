r"""Where the jobs of a batch run: on the cores of this machine, or on a Dask cluster."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from hrcf_lib.config import is_smoke
from hrcf_lib.studies.one_job import THREADS, cores, run_job

MISSING = 'a cluster needs Dask, which is not installed: pip install "hrcf[cluster]"'


def size() -> str:
    """``HRCF_SIZE`` of the notebooks, in words."""
    return "smoke" if is_smoke() else "full"


@contextmanager
def executor(workers: int | None, cluster: str | None, count: int):
    r"""A function that submits a job by its folder and returns the future of its ``job.json``.

    When this ends, no job runs on.

    Args:
        workers: jobs at a time; by default one a core, but not more than ``count``, and two for ``"local"``.
        cluster: None, address of a Dask scheduler, or ``"local"``.
        count: of jobs.

    Raises ``ImportError`` if Dask is asked for and not installed, ``OSError`` if its scheduler does not answer.
    """
    workers = workers or (2 if cluster else max(1, min(cores(), count)))
    share = max(1, cores() // workers)
    kept = {name: os.environ[name] for name in THREADS if os.environ.get(name)}
    with _dask(cluster, workers) if cluster else _threads(workers) as (submit, more):
        share = None if cluster not in (None, "local") else share  # machines of a cluster count their own cores
        yield lambda folder: submit(run_job, str(folder), size(), kept, share, *more)


@contextmanager
def _threads(workers: int):
    """Each thread waits for the process of one job."""
    pool, stop = ThreadPoolExecutor(workers), threading.Event()
    try:
        yield pool.submit, [stop.is_set]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _dask(cluster: str, workers: int):
    with _client(cluster, workers) as client:
        many = client.get_executor(pure=False)  # a job that is asked for again is run again
        try:
            yield many.submit, []
        finally:
            many.shutdown(wait=False)


@contextmanager
def _client(cluster: str, workers: int):
    try:
        import distributed
    except ImportError:
        raise ImportError(MISSING) from None
    if cluster == "local":
        here = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
        with here, distributed.Client(here) as client:
            yield client
        return
    try:
        client = distributed.Client(cluster)
    except (OSError, ValueError) as error:
        raise OSError(f"no Dask scheduler answers at {cluster}: start one with `dask scheduler` ({error})") from None
    with client:
        if not client.ncores():
            print(f"{cluster} has no workers yet: jobs wait until some come", flush=True)
        yield client
