r"""Which code runs: the commit that records name."""

import subprocess
from pathlib import Path


def commit(repository: Path) -> str:
    """The commit of the repository, with a plus where the library differs from it; "unknown" outside a repository."""
    try:
        head = _git(repository, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(repository, "status", "--porcelain", "--", "hrcf_lib") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(repository: Path, *words: str) -> str:
    run = subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=True)
    return run.stdout.strip()
