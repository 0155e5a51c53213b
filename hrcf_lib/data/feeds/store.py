r"""Frozen features on disk, in shards that are mapped into memory, never half written and never stale.

::

    <folder>/<key>/about.json          what the features are of; the key is its hash
    <folder>/<key>/00000.trunk         trunk tokens of the first 4,096 pictures, (4096, 1 + N^2, C) raw numbers
    <folder>/<key>/00000.safetensors   their teacher embeddings (4096, D) and labels (4096, K)
    <folder>/<key>/00001.trunk         and so on

The file of embeddings is written last, so a shard that has both is whole. Tokens are raw numbers and not part of the
safetensors file because a shard (1.2 GB of ViT-B/16) is then written batch by batch, and because caches of earlier
versions stay readable. Nothing here is ever unpickled.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hrcf_lib.engine.files import replacing_alone

FORM = 2  # of the files: raise it when they, or how pictures are read, change
SHARD = 4096  # pictures per shard, at most
WHAT = "frozen features of hrcf_lib: outputs of the last frozen block and the teacher's embeddings; safe to delete"
ABANDONED = 24 * 3600  # age in seconds at which a temporary file counts as abandoned


class Shards:
    r"""Trunk tokens (n, T, C) in parts of equal length (the last may be shorter), in memory or mapped from files.

    An index (a row, a slice, or an array or tensor of rows) returns a copy; ``take`` chooses rows and reads nothing.
    """

    def __init__(self, parts: list[Tensor], rows: np.ndarray | None = None):
        self.parts = parts
        self.rows = np.arange(sum(len(part) for part in parts)) if rows is None else rows  # (n,) of all parts' rows
        self.shape, self.dtype = (len(self.rows), *parts[0].shape[1:]), parts[0].dtype

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index) -> Tensor:
        rows = self.rows[index.numpy() if isinstance(index, Tensor) else index]
        part, at = np.divmod(rows.ravel(), len(self.parts[0]))
        found = torch.empty(len(at), *self.shape[1:], dtype=self.dtype)
        if len(at):
            torch.stack([self.parts[p][i] for p, i in zip(part.tolist(), at.tolist())], out=found)
        return found.view(*rows.shape, *self.shape[1:])

    def take(self, rows) -> "Shards":
        """Some rows, still where they are."""
        return Shards(self.parts, self.rows[np.asarray(rows, np.int64)])


class Cache:
    r"""The folder of one set of features, with its key as name.

    Args:
        folder: of all caches.
        about: plain values that differ for any other features, ``tokens`` (T, C) and the number of ``pictures`` among
            them.
    """

    def __init__(self, folder: str | Path, about: dict):
        about = {"form": FORM, **about, "pictures a shard": SHARD}
        self.about = json.loads(json.dumps(about))  # as ``about.json`` is read
        self.home = Path(folder) / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        self.tokens = tuple(about["tokens"])
        self.rows = torch.arange(about["pictures"]).split(SHARD)  # of each shard

    def missing(self) -> list[int]:
        """Numbers of the shards that do not exist, or are not whole."""
        return [s for s in range(len(self.rows)) if not all(path.exists() for path in self._paths(s))]

    @contextmanager
    def filling(self, shards: list[int], numbers: int):
        r"""Make the folder for writing ``shards``; at the end it goes again if none was completed.

        Args:
            numbers: D + K, the float32 numbers that each picture needs beside its tokens.

        Raises ``OSError`` if the disk has no room for them, ``ValueError`` if ``about.json`` there says something else.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            self._check_about()
            self._check_room(sum(len(self.rows[s]) for s in shards), numbers)
            for part in self.home.glob("*.part"):  # of killed runs
                with suppress(OSError):  # another run has removed it
                    if time.time() - part.stat().st_mtime > ABANDONED:
                        part.unlink()
            yield
        finally:
            with suppress(OSError):  # it is not empty
                self.home.rmdir()

    def write(self, shard: int, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """One shard from batches of tokens (b, T, C) in float16, teacher (b, D) and labels (b, K)."""
        trunk, small = self._paths(shard)
        teacher, labels = [], []
        with replacing_alone(trunk) as part:
            with part.open("wb") as file:
                for x, e_p, y in batches:
                    file.write(x.contiguous().view(torch.uint8).numpy())
                    teacher.append(e_p)
                    labels.append(y)
            if not self._about.exists():  # written before any shard
                with replacing_alone(self._about) as about:
                    about.write_text(json.dumps({"what": WHAT, **self.about}, indent=1) + "\n", encoding="utf-8")
        with replacing_alone(small) as part:
            save_file({"teacher": torch.cat(teacher), "labels": torch.cat(labels)}, part)

    def read(self) -> tuple[Shards, Tensor, Tensor]:
        """Tokens (n, T, C) as a map, teacher (n, D) and labels (n, K). Raises ``ValueError`` for damaged files."""
        self._check_about()
        found = [(self._mapped(s), *self._embeddings(s)) for s in range(len(self.rows))]
        trunk, teacher, labels = zip(*found)
        return Shards(list(trunk)), torch.cat(teacher), torch.cat(labels)

    def _mapped(self, shard: int) -> Tensor:
        path, shape = self._paths(shard)[0], (len(self.rows[shard]), *self.tokens)
        size = math.prod(shape)
        if path.stat().st_size != 2 * size:
            raise _damaged(path, f"{path.stat().st_size:,} bytes where {2 * size:,} are expected")
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.float16).view(shape)

    def _embeddings(self, shard: int) -> tuple[Tensor, Tensor]:
        path, n = self._paths(shard)[1], len(self.rows[shard])
        try:
            small = load_file(path)
            teacher, labels = small["teacher"], small["labels"]
        except Exception as error:  # safetensors has kinds of its own
            raise _damaged(path, str(error) or type(error).__name__) from error
        if not len(teacher) == len(labels) == n:
            raise _damaged(path, f"{len(teacher)} embeddings and {len(labels)} rows of labels of {n} pictures")
        return teacher, labels

    @property
    def _about(self) -> Path:
        return self.home / "about.json"

    def _paths(self, shard: int) -> tuple[Path, Path]:
        return self.home / f"{shard:05d}.trunk", self.home / f"{shard:05d}.safetensors"

    def _check_about(self) -> None:
        """Raise ``ValueError`` if ``about.json`` cannot be read or says something other than the key."""
        if not self._about.exists():
            if any(self.home.glob("*.trunk")):
                raise ValueError(f"{self.home} has shards and no about.json: delete the folder, and run again")
            return
        try:
            there = json.loads(self._about.read_text(encoding="utf-8"))
            differ = [f"{k}: there {there.get(k)}, here {v}" for k, v in self.about.items() if there.get(k) != v]
        except (ValueError, AttributeError) as error:
            raise _damaged(self._about, str(error), f"the folder {self.home}") from error
        if differ:
            says = "\n  ".join([f"{self._about} says that these are other features; they differ in", *differ])
            raise ValueError(f"{says}\ndelete the folder {self.home}, and run again")

    def _check_room(self, pictures: int, numbers: int) -> None:
        need = pictures * (2 * math.prod(self.tokens) + 4 * numbers)
        free = shutil.disk_usage(self.home).free
        if need > free:
            raise OSError(
                f"the features of {pictures:,} pictures need {need / 1e9:,.2f} GB and {self.home.parent} has "
                f"{free / 1e9:,.2f} GB free: give another folder, or train from pictures, which stores nothing (set "
                "augment, or stream)"
            )


def _damaged(path: Path, why: str, what: str = "it") -> ValueError:
    return ValueError(f"{path} is damaged ({why}): delete {what}, and run again; what is missing is then made anew")
