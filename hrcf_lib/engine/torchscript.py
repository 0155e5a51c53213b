r"""Tensors of TorchScript archives (``torch.jit.save``), such as OpenAI's files of CLIP, without running their code.

``torch.jit.load`` compiles the code of an archive, and ``torch.load(weights_only=True)`` refuses one. But an archive is
a zip whose parts can be read one by one:

``<root>/data.pkl``   the tree of modules, as a pickle; a tensor is the name of a storage, an offset, sizes and strides
``<root>/data/<key>`` the numbers of a storage
``<root>/code/...``   the code, which is never opened here

The pickle is read by an unpickler that knows five kinds of names, all of which make inert records of this file: modules
(``__torch__.*``), tensors, types of storages, ``OrderedDict`` and typed lists. Every other name is refused before it is
looked up, so that no function of any library is ever called, and tensors are made after the pickle has been read.
"""

import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
LARGEST_PICKLE = 64_000_000  # bytes; that of the largest CLIP has less than one million
MOST_PARTS = 100_000  # a small pickle may name its parts again and again


class Storage(NamedTuple):
    """The numbers of one or more tensors, by their place in the archive."""

    dtype: torch.dtype
    key: str
    numbers: int


class Place(NamedTuple):
    """A tensor that is not made yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Module:
    """A module: its ``__dict__`` has tensors, modules and plain values."""


def is_archive(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, which a file of ``torch.save`` is not, although it is a zip too."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor of all modules in the archive, on the CPU. Raises ``ValueError`` that says what is wrong with it,
    and what ``zipfile`` and ``pickle`` raise for a damaged one."""
    with zipfile.ZipFile(path) as archive:
        root, tree, _ = _tree(archive)
        byteorder = f"{root}/byteorder"  # older archives have none: they are little-endian
        if byteorder in archive.namelist() and archive.read(byteorder).decode() != sys.byteorder:
            raise ValueError("its numbers have the byte order of another kind of machine")
        places, storages = _places(tree), {}
        for place in places.values():
            if place.storage.key not in storages:
                storages[place.storage.key] = _numbers(archive, root, place.storage)
        return {name: _tensor(place, storages[place.storage.key]) for name, place in places.items()}


def class_names(path: str | Path) -> set[str]:
    """Names of the modules' classes, such as ``QuickGELU``. Raises as ``read``."""
    with zipfile.ZipFile(path) as archive:
        return _tree(archive)[2]


def _tree(archive: zipfile.ZipFile) -> tuple[str, Module, set[str]]:
    """The folder that everything is in, the module at the top, and the names of all modules' classes."""
    trees = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
    if len(trees) != 1:
        raise ValueError(f"it has {len(trees)} files data.pkl, where an archive of PyTorch 1.4 or later has one")
    if trees[0].file_size > LARGEST_PICKLE:
        raise ValueError(f"its data.pkl has {trees[0].file_size:,} bytes, which no model needs")
    with archive.open(trees[0]) as file:
        reader = _Reader(file)
        tree = reader.load()
    if not isinstance(tree, Module):
        raise ValueError(f"it holds a {type(tree).__name__} and no module")
    return trees[0].filename.removesuffix("/data.pkl"), tree, reader.classes


class _Reader(pickle.Unpickler):
    """Builds ``Module``, ``Place``, plain values and containers, and nothing else."""

    def __init__(self, file):
        super().__init__(file)
        self.classes: set[str] = set()

    def find_class(self, module: str, name: str):
        """What stands for a name of the pickle. All are made anew, as a pickle may change what it is given."""
        if module == "__torch__" or module.startswith("__torch__."):
            self.classes.add(name)
            return type(name, (Module,), {})
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return lambda storage, offset, size, stride, *others: Place(storage, offset, tuple(size), tuple(stride))
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *others: tensor
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return lambda values: list(values)
        if module == "torch.jit._pickle" and name == "restore_type_tag":
            return lambda value, kind: value
        raise ValueError(f"its data.pkl asks for {module}.{name}, which is no part of a tree of modules")

    def persistent_load(self, name) -> Storage:
        """A storage, by ``("storage", type, key, device, numbers)``."""
        kind, dtype, key, _, numbers = name
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"its data.pkl has a {kind!r} where a storage should be")
        return Storage(dtype, str(key), int(numbers))


def _places(top: Module) -> dict[str, Place]:
    """Name -> tensor to be made, of a module and all below it."""
    found: dict[str, Place] = {}
    below = [("", top, frozenset())]  # a module with its prefix and the modules above it
    for visited in count():
        if not below:
            return found
        prefix, module, above = below.pop()
        if id(module) in above:
            raise ValueError(f"its module {prefix.rstrip('.')!r} holds itself")
        for name, value in vars(module).items():
            if isinstance(value, Place):
                found[prefix + name] = value
            elif isinstance(value, Module):
                below.append((f"{prefix}{name}.", value, above | {id(module)}))
        if len(found) + len(below) + visited > MOST_PARTS:
            raise ValueError(f"it has more than {MOST_PARTS:,} modules and tensors, which no model has")


def _numbers(archive: zipfile.ZipFile, root: str, storage: Storage) -> Tensor:
    """The numbers of a storage as one row. ``zipfile`` checks their CRC-32."""
    info = archive.getinfo(f"{root}/data/{storage.key}")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != storage.numbers * storage.dtype.itemsize:
        raise ValueError(f"its storage {storage.key} has {info.file_size:,} bytes, not those of {storage.numbers:,}")
    return torch.frombuffer(bytearray(archive.read(info)), dtype=storage.dtype) if storage.numbers else torch.empty(0)


def _tensor(place: Place, numbers: Tensor) -> Tensor:
    """The tensor at a place; ``as_strided`` refuses one that reaches beyond its storage."""
    if math.prod(place.size) > len(numbers):
        raise ValueError(f"a tensor {place.size} has more numbers than its storage, {len(numbers):,}")
    return numbers.to(place.storage.dtype).as_strided(place.size, place.stride, place.offset)
