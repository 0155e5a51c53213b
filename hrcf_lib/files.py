"""Files that are always whole: written under another name first, renamed when complete."""

import json
import os
import secrets
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


@contextmanager
def replacing_alone(path: Path):
    """As ``replacing``, for large files that several runs may write at once: each has a temporary name of its own.

    It is on the disk before it is renamed, so that no crash of the machine leaves a hollow file, and removed if writing
    fails.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")  # containers share numbers
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, values: dict, default=None) -> None:
    """Write a JSON file, whole or not at all; ``default`` as in ``json.dumps``."""
    with replacing(path) as part:
        text = json.dumps(values, indent=1, ensure_ascii=False, default=default)
        part.write_text(text + "\n", encoding="utf-8")
