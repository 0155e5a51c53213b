"""A pytest plugin: the kernels of notebooks are forked from one process that has torch and all the rest imported.

    PYTHONPATH=.ci python -m pytest notebooks --nbval-lax -p warm_kernels

A kernel spends a dozen seconds of a core on imports before its first cell; forked, it starts within one. Each notebook
still has a process of its own, which begins as ``python -m ipykernel_launcher`` does. Where processes cannot be forked
(Windows), or not safely (macOS), kernels start as ever.
"""

import multiprocessing
import os
import sys
import threading

from ipykernel.kernelapp import IPKernelApp
from jupyter_client.provisioning import local_provisioner

IMPORTED = ("hrcf_lib.report", "hrcf_lib.speed.table", "hrcf_lib.studies.pretrain_mini", "skimage.data")
IMPORTED += ("hrcf_lib.apply.explorer", "hrcf_lib.apply.fine_tune", "hrcf_lib.apply.grad_cam")
context = None


def kernel(words: list[str], env: dict[str, str], cwd: str | None, leads) -> None:
    """What a forked process does; ``words`` are those behind ``ipykernel_launcher``."""
    os.setsid()  # a signal to its group reaches no other process
    leads.set()
    threading.Thread(target=end_with_pytest, daemon=True).start()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd or ".")
    IPKernelApp.launch_instance(words)


def end_with_pytest() -> None:
    """A kernel outlives no pytest that was killed. (Its own watch is on the process that it was forked from.)"""
    multiprocessing.parent_process().join()
    os._exit(1)


class Forked:
    """The process of a kernel, as the part of ``subprocess.Popen`` that jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, command: list[str], env=None, cwd=None, **streams):
        leads, words = context.Event(), command[command.index("ipykernel_launcher") + 1 :]
        self.process = context.Process(target=kernel, args=(words, dict(env or os.environ), cwd, leads))
        self.process.start()
        self.pid = self.process.pid
        while not leads.wait(1) and self.process.is_alive():  # jupyter_client asks for the group at once
            pass

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


if sys.platform == "linux":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # matplotlib reads it on import
    local_provisioner.launch_kernel = Forked
