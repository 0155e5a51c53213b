r"""Frozen features on disk, in shards that are mapped into memory, never half written and never stale.

::

    <folder>/<key>/about.json          what the features are of; the key is its hash
    <folder>/<key>/00000.trunk         trunk tokens of the first 4,096 pictures, (4096, 1 + N^2, C) raw numbers
    <folder>/<key>/00000.safetensors   their teacher embeddings (4096, D) and labels (4096, K)
    <folder>/<key>/00001.trunk         and so on

The file of embeddings is written last, so a shard that has both is whole. It holds the hashes of both and the place of
the shard, which are checked when a cache is opened, by one process of a machine: 3 s of computing for the 49 GB of
NUS-WIDE, which are read from disk once more for it. A damaged shard is computed again, with a warning. Tokens are raw
numbers and not part of the safetensors file because a shard (1.2 GB of ViT-B/16) is then written batch by batch, and
because caches of earlier versions stay readable: these have no hashes, and their sizes alone are checked. Nothing here
is ever unpickled.
"""

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hrcf_lib.engine import devices
from hrcf_lib.engine.files import make_folder, read_json, remove_abandoned, replacing, write_json
from hrcf_lib.engine.hashes import check_file, hash_file
from hrcf_lib.engine.messages import list_some
from hrcf_lib.engine.weights import read_safetensors, write_tensors

FORM = 2  # of the files: raise it when they, or how pictures are read, change
SHARD = 4096  # pictures per shard, at most
WHAT = "frozen features of hrcf_lib: outputs of the last frozen block and the teacher's embeddings; safe to delete"
READERS = 4  # threads that check shards: more would wait for the disk


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
        self._opened = {}  # shard -> what ``_open`` gives, of those that were there

    def missing(self) -> list[int]:
        """Numbers of the shards that do not exist or, with a warning, are damaged."""
        there = [s for s in range(len(self.rows)) if all(path.exists() for path in self._paths(s))]
        with ThreadPoolExecutor(READERS) as readers:
            for s, opened in zip(there, readers.map(self._try, there)):
                self._opened[s] = opened
        faults = [str(opened) for opened in self._opened.values() if isinstance(opened, ValueError)]
        self._opened = {s: opened for s, opened in self._opened.items() if not isinstance(opened, ValueError)}
        if faults:
            warnings.warn(f"{list_some(faults, '; ')}: these features are computed again", stacklevel=3)
        return [s for s in range(len(self.rows)) if s not in self._opened]

    @contextmanager
    def filling(self, shards: list[int], numbers: int):
        r"""Make the folder for writing ``shards``; at the end it goes again if none was completed.

        Args:
            numbers: D + K, the float32 numbers that each picture needs beside its tokens.

        Raises ``OSError`` if the disk has no room for them, ``ValueError`` if ``about.json`` there says something else.
        """
        make_folder(self.home)
        try:
            self._check_about()
            remove_abandoned(self.home)
            self._check_room(sum(len(self.rows[s]) for s in shards), numbers)
            yield
        finally:
            with suppress(OSError):  # it is not empty
                self.home.rmdir()

    def write(self, shard: int, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """One shard from batches of tokens (b, T, C) in float16, teacher (b, D) and labels (b, K)."""
        trunk, small = self._paths(shard)
        teacher, labels = [], []
        with replacing(trunk, 2 * len(self.rows[shard]) * math.prod(self.tokens)) as part:
            with part.open("wb") as file:
                for x, e_p, y in batches:
                    file.write(x.contiguous().view(torch.uint8).numpy())
                    teacher.append(e_p)
                    labels.append(y)
            digest = hash_file(part)
            if not self._about.exists():  # written before any shard
                write_json(self._about, {"what": WHAT, **self.about})
        tensors = {"teacher": torch.cat(teacher), "labels": torch.cat(labels)}
        write_tensors(tensors, small, trunk=digest, place=self._place(shard))

    def read(self) -> tuple[Shards, Tensor, Tensor]:
        """Tokens (n, T, C) as a map, teacher (n, D) and labels (n, K). Raises ``ValueError`` for damaged files."""
        self._check_about()
        try:
            found = [self._opened.get(s) or self._open(s) for s in range(len(self.rows))]
        except ValueError as error:
            raise ValueError(f"{error}: run again, and it is made anew") from error
        trunk, teacher, labels = zip(*found)
        return Shards(list(trunk)), torch.cat(teacher), torch.cat(labels)

    def _try(self, shard: int):
        """A shard, or the error that says why it is damaged."""
        try:
            return self._open(shard)
        except ValueError as error:
            return error

    def _open(self, shard: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens as a map, teacher and labels. Raises ``ValueError`` that names a damaged file and says why."""
        (trunk, small), shape = self._paths(shard), (len(self.rows[shard]), *self.tokens)
        size = math.prod(shape)
        tensors, stated = read_safetensors(small)
        if lacking := {"teacher", "labels"} - tensors.keys():
            raise ValueError(f"{small} is no shard (it lacks {', '.join(sorted(lacking))})")
        teacher, labels = tensors["teacher"], tensors["labels"]
        if not len(teacher) == len(labels) == shape[0]:
            counts = f"{len(teacher)} embeddings and {len(labels)} rows of labels of {shape[0]} pictures"
            raise ValueError(f"{small} is damaged ({counts})")
        if (place := stated.get("place", self._place(shard))) != self._place(shard):
            raise ValueError(f"{small} is another file (shard {place})")
        if trunk.stat().st_size != 2 * size:
            raise ValueError(f"{trunk} is damaged ({trunk.stat().st_size:,} bytes where {2 * size:,} are expected)")
        if devices.leads_here():
            check_file(trunk, stated.get("trunk"))
        return torch.from_file(str(trunk), shared=False, size=size, dtype=torch.float16).view(shape), teacher, labels

    def _place(self, shard: int) -> str:
        return f"{self.home.name}/{shard:05d}"

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
            there = read_json(self._about)
            differ = [f"{k}: there {there.get(k)}, here {v}" for k, v in self.about.items() if there.get(k) != v]
        except ValueError as error:
            raise ValueError(
                f"{self._about} is damaged ({error}): delete the folder {self.home}, and run again"
            ) from error
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
