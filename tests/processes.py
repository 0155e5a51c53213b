"""New processes for tests, forked from one that has imported torch and the rest: a start of a second, not of ten.

They know nothing of the test's own process but the arguments. Where processes cannot be forked (Windows), or not
safely (macOS), they are started anew.
"""

import multiprocessing
import os
import socket
import sys

import torch

FORKS = sys.platform == "linux"
CONTEXT = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    CONTEXT.set_forkserver_preload(["hrcf_lib.studies.one_run"])


def run(work, *arguments, processes: int = 1, strangers: bool = False, **environment: str) -> list[int]:
    """Exit codes of ``processes`` new processes that each call ``work(*arguments)``, a function of a module.

    Unless they are ``strangers``, several find each other, on the CPU, by the variables that ``accelerate launch``
    sets. One alone has as many threads as the test's own process.
    """
    threads = torch.get_num_threads() if processes == 1 else 1
    started = []
    for variables in [{}] * processes if strangers or processes == 1 else launched(processes):
        given = (variables | environment, threads, work, arguments)
        started.append(CONTEXT.Process(target=_begin, args=given))
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def launched(processes: int) -> list[dict[str, str]]:
    """The variables of each process."""
    shared = {name: str(processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    return [shared | {name: str(rank) for name in ("RANK", "LOCAL_RANK")} for rank in range(processes)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _begin(environment, threads, work, arguments) -> None:
    os.environ.update(environment)
    torch.set_num_threads(threads)
    work(*arguments)
