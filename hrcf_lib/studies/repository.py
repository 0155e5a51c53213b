"""The repository that this library lies in, where it does: its folder and its commit."""

import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


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
