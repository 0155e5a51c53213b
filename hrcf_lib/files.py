"""Files that are always whole: written under another name first, renamed when complete."""

from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path):
    """A temporary name beside ``path`` to write to; renamed to it at the end. The folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    yield part
    part.replace(path)
