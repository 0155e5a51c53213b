r"""What the readers of the official downloads share: finding their files, reading their lists, checking them.

Archives unpack below different prefixes, so files are found by name wherever they lie below the source folder. Text
files are read whatever their line ends; every fault names the file and the line.
"""

import csv
import filecmp
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path

from tqdm.auto import tqdm

from hrcf_lib.engine.folders import walk
from hrcf_lib.engine.messages import did_you_mean, list_some, user_path

ARCHIVES = (".zip", ".rar", ".tar", ".gz", ".tgz", ".7z")
PLACEHOLDER_BYTES = 10_000  # "photo unavailable" pictures are small; larger files are not compared
PLACEHOLDER_COPIES = 3  # so many different photographs do not share all their bytes


@cache
def label_list(name: str) -> tuple[str, ...]:
    """A list of ``hrcf_lib/assets/labels`` by its file name: the lines, or of a CSV (mid, name) pairs."""
    text = (package_files("hrcf_lib") / "assets" / "labels" / name).read_text(encoding="utf-8")
    return tuple(map(tuple, csv.reader(text.splitlines()))) if name.endswith(".csv") else tuple(text.splitlines())


class Source:
    r"""The files below a source folder, found by their names; upper and lower case are the same.

    Args:
        folder: where the archives were unpacked.
        endings: only files with these endings are looked at (and archives, for the message about one not unpacked).
        prune: names of folders that are not entered, those of pictures.

    Raises ``FileNotFoundError`` where there is no such folder.
    """

    def __init__(self, folder, endings: Sequence[str], prune: Iterable[str] = ()):
        self.folder = user_path(folder, "source")
        if self.folder.is_file():
            raise ValueError(f"{self.folder} is a file: give the folder that it lies in, {str(self.folder.parent)!r}")
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"no folder {self.folder}: give the one that the official archives were unpacked in"
            )
        prune = {name.lower() for name in prune}
        self._found: dict[str, list[Path]] = defaultdict(list)
        self._used: set[Path] = set()
        self.archives: list[str] = []
        for parent, names in walk(self.folder, lambda name: name.lower() not in prune and not name.startswith(".")):
            for name in names:
                if name.lower().endswith(tuple(endings)):
                    self._found[name.lower()].append(parent / name)
                elif name.lower().endswith(ARCHIVES):
                    self.archives.append(name)

    def get(self, *names: str) -> Path | None:
        """The file of one of these names, or None. ``ValueError`` for several that differ."""
        for name in names:
            paths = self._found.get(name.lower(), [])
            if any(not filecmp.cmp(paths[0], other, shallow=False) for other in paths[1:]):
                raise ValueError(
                    f"{self.folder} holds different files named {name}: {list_some(paths)}; keep the one of the archive"
                )
            if paths:
                return self.use(paths[0])
        return None

    def use(self, path: Path) -> Path:
        """The path itself, which counts as asked for (``state``)."""
        self._used.add(path)
        return path

    def need(self, *names: str, archive: str = "") -> Path:
        """As ``get``, but ``FileNotFoundError`` says what is missing and which archive holds it."""
        path = self.get(*names)
        if path is not None:
            return path
        origin = f"; it is part of {archive}" if archive else ""
        packed = f"; not unpacked yet: {list_some(self.archives)}" if self.archives else ""
        near = did_you_mean(names[0].lower(), list(self._found), "")
        near = f"; there is a {near.removeprefix('did you mean ').removesuffix('?')}" if near else ""
        raise FileNotFoundError(
            f"{self.folder} holds no {' or '.join(names)}, in no folder below it either{origin}{packed}{near}: "
            "download and unpack it there"
        )

    def matching(self, ending: str) -> list[Path]:
        """All files whose name ends so, in alphabetical order."""
        return sorted(path for name, paths in self._found.items() if name.endswith(ending.lower()) for path in paths)

    def state(self) -> list[list]:
        """Name, size and time of change of every file that was asked for so far: changes whenever one of them does."""
        return [[str(p.relative_to(self.folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(self._used)]


def image_root(source: Path, images, names: Sequence[str]) -> Path | None:
    r"""Where the pictures are: ``images`` if given, else the first of ``names`` that is a folder below ``source``.

    ``images=False`` gives None: the tables alone. Raises ``FileNotFoundError`` where there is no such folder.
    """
    if images is False:
        return None
    if images is not None:
        root = Path(images).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root}: correct images, or give images=False to write the labels alone")
        return root
    for name in names:
        if (source / name).is_dir():
            return source / name
    raise FileNotFoundError(
        f"{source} holds no folder of pictures ({list_some(names)}): give images=<folder>, or images=False to write "
        "the labels alone"
    )


def lines(path: Path) -> list[str]:
    r"""Lines of a text file, stripped of line ends and outer blanks; empty lines at the end are dropped.

    Raises ``ValueError`` for text that is not UTF-8, an empty file, or an empty line between others (named).
    """
    text = path.read_bytes()
    try:
        found = [line.strip() for line in text.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        at = text.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {at} is not text in UTF-8 ({error}); take the file from the archive, or save it as UTF-8"
        ) from error
    while found and not found[-1]:
        found.pop()
    if not found:
        raise ValueError(f"{path} is empty; take it from the archive again")
    if "" in found:
        raise ValueError(f"{path}, line {found.index('') + 1} is empty; take the file from the archive again")
    return found


def image_list(path: Path) -> list[str]:
    """Files of an image list with ``/`` between folders. ``ValueError`` for a file that is listed twice."""
    files = [line.replace("\\", "/").removeprefix("./") for line in lines(path)]
    return unique(files, f"{path} lists", "keep one line per picture")


def unique(items: list[str], what: str, fix: str) -> list[str]:
    """The items as they are; ``ValueError`` naming those that occur twice."""
    if len(set(items)) < len(items):
        seen: set = set()
        twice = list(dict.fromkeys(item for item in items if item in seen or seen.add(item)))
        raise ValueError(f"{what} {list_some(map(repr, twice))} more than once; {fix}")
    return items


def disjoint(splits: dict[str, Iterable[str]], what: str = "pictures") -> None:
    """``ValueError`` naming what is in two splits at once: such a test set measures memory."""
    home: dict[str, str] = {}
    for split, items in splits.items():
        both = [item for item in items if home.setdefault(item, split) != split]
        if both:
            raise ValueError(
                f"{len(both)} {what} are in {home[both[0]]} and in {split}: {list_some(both)}; take the lists from the "
                "archive again, or remove them from one"
            )


def same_list(found: Sequence[str], known: Sequence[str], what: str) -> None:
    """``ValueError`` where a list of the download is not the published one: the count, or the first difference."""
    if len(found) != len(known):
        raise ValueError(f"{what}: {len(found)} names, expected {len(known)}; take the file from the archive again")
    for i, (a, b) in enumerate(zip(found, known)):
        if a != b:
            raise ValueError(f"{what}: line {i + 1} is {a!r}, expected {b!r}; take the file from the archive again")


def placeholders(root: Path, files: Iterable[str], key, samples: Iterable = ()) -> dict[str, str]:
    r"""Pictures that a site sent in place of one it no longer has: file -> why it is taken for a placeholder.

    They are found by content: small files (at most ``PLACEHOLDER_BYTES``) with the same bytes under at least
    ``PLACEHOLDER_COPIES`` different photographs, or with the bytes of one of ``samples`` (paths). ``key(file)`` names
    the photograph, since one photograph may rightly be stored twice.
    """
    known = {hashlib.sha256(Path(sample).expanduser().read_bytes()).digest() for sample in samples}
    by_size = defaultdict(list)
    for file in tqdm(files, desc="sizes of pictures", disable=None, leave=False):
        try:
            size = (root / file).stat().st_size
        except OSError:
            continue
        if 0 < size <= PLACEHOLDER_BYTES or known:
            by_size[size].append(file)
    by_content = defaultdict(list)
    for size, same in tqdm(by_size.items(), desc="equal pictures", disable=None, leave=False):
        if known or len({key(file) for file in same}) >= PLACEHOLDER_COPIES:
            for file in same:
                by_content[hashlib.sha256((root / file).read_bytes()).digest(), size].append(file)
    found = {}
    for (digest, size), same in by_content.items():
        copies = len({key(file) for file in same})
        if digest in known or (copies >= PLACEHOLDER_COPIES and size <= PLACEHOLDER_BYTES):
            found |= dict.fromkeys(same, f"the same {size} bytes under {copies} photographs")
    return found
