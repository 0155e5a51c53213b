"""A process that ends with the one that started it. Nothing heavy is imported: short commands start with this."""

import os
import threading

import psutil


def end_with_parent() -> None:
    """End this process and all that it started once standard input closes, as it does when the parent dies.

    The parent gives it a pipe as standard input, and holds the only other end.
    """

    def watch():
        while os.read(0, 1):
            pass
        for process in psutil.Process().children(recursive=True):
            process.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
