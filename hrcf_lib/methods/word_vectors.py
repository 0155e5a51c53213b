r"""Word vectors from a text file, as GloVe, word2vec and fastText write them: a word and its numbers on each line.

Such files are large (GloVe: 400,000 words, 1 GB): a file is streamed, only the words that are asked for are kept, and
they are read once. K labels.

Source: BiAM and the zero-shot methods before it name their labels by GloVe vectors (papers/biam.md).
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hrcf_lib.labels import check_names
from hrcf_lib.methods.blocks import fixed_prompts

_read: dict[tuple, dict] = {}  # file as it is on disk -> word -> its numbers, or None for a word that it lacks


def words(name: str) -> list[str]:
    """The words of a label name: lower case, split at blanks, hyphens and punctuation.

    >>> words("Crane (bird)"), words("jack-o'-lantern")
    (['crane', 'bird'], ['jack', 'o', 'lantern'])
    """
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", name).lower())


def read_vectors(path: str | Path, names, missing: str = "error") -> Tensor:
    r"""One vector per label: the mean over its words, (K, width), float32, at the scale of the file.

    Args:
        path: UTF-8 text, "word v1 v2 ..." on each line. A first line of two whole numbers (word2vec) is skipped. Words
            may hold blanks, as some of GloVe do; of a word that occurs twice the first line counts.
        names: label names, see ``words`` for how they are taken apart.
        missing: ``"error"``, or ``"skip"``: of a name of several words those that the file lacks are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: names that ``check_names`` refuses; a name without a single word in the file, or, unless they are
            skipped, with a word that it lacks (all such names are reported); a line that is too short or too long, or
            of the needed words one whose numbers are none.
    """
    if missing not in ("error", "skip"):
        raise ValueError(f"unknown missing {missing!r}; use 'error' or 'skip'")
    parts = {name: words(name) for name in check_names(names)}
    known = _look_up(Path(path), {word for own in parts.values() for word in own})
    lacking = {name: [word for word in own if known[word] is None] for name, own in parts.items()}
    faults = [
        f"label {name!r}: {', '.join(map(repr, lacking[name])) or 'no word of it'} is not in {path}"
        for name, own in parts.items()
        if len(lacking[name]) == len(own) or (lacking[name] and missing == "error")
    ]
    if faults:
        more = [f"and {len(faults) - 5} more"] if len(faults) > 5 else []
        fix = "Name such labels by other words, or take another file"
        if missing == "error":
            fix += "; missing='skip' (a method's glove_missing='skip') takes the mean of the words that are there"
        raise ValueError("\n  ".join(["labels without word vectors:", *faults[:5], *more]) + f"\n{fix}.")
    means = [torch.tensor([known[word] for word in own if known[word]]).mean(dim=0) for own in parts.values()]
    return torch.stack(means)  # (K, width)


def of_names(vlp, names, config) -> Tensor:
    """Vectors of names that are never trained: of the file ``config.glove``, else of ``config.template`` by the VLP.

    (K, width of the file) or (K, D), not of unit length, on the VLP's device. Raises as ``read_vectors`` and
    ``fixed_prompts``.
    """
    if config.glove:
        return read_vectors(config.glove, names, config.glove_missing).to(vlp.mean.device)
    return fixed_prompts(vlp, names, config.template)


def unit_vectors(vlp, names, config) -> Tensor:
    """``of_names`` brought to length 1. Raises as it does, and ``ValueError`` naming labels whose vector is 0."""
    names = check_names(names)
    vectors = of_names(vlp, names, config)  # (K, width)
    if (zero := ~vectors.any(dim=1)).any():
        odd = ", ".join(repr(names[k]) for k in zero.nonzero()[:5, 0].tolist())
        source = config.glove or f"the texts of {vlp.name}"
        raise ValueError(f"word vectors of {odd} are 0 throughout in {source}: name such labels by other words")
    return F.normalize(vectors, dim=1)


def label_width(vlp, config) -> int:
    """Width of what ``of_names`` returns: that of the file ``config.glove``, else the VLP's D. Raises as ``width``."""
    return width(config.glove) if config.glove else vlp.D


def width(path: str | Path) -> int:
    """Width of the vectors, by the first line of the file. Raises as ``read_vectors``."""
    _, line = next(_lines(Path(path)), (0, ""))
    if " " not in line:
        raise ValueError(f"{path} holds no word vectors: each line is a word and its numbers, with blanks between")
    return line.count(" ")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(Number, line) of the lines that hold a word. A word may hold any character but a line feed."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no word vectors at {path}: give the path of a GloVe text file, such as glove.6B.300d.txt, unzipped"
        )
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip()
            if line and not (number == 1 and re.fullmatch(r"\d+ \d+", line)):
                yield number, line


def _look_up(path: Path, wanted: set[str]) -> dict:
    """Word -> its numbers, or ``None``, for at least the ``wanted`` words; the file is read if one of them is new."""
    there = path.stat() if path.is_file() else None
    known = _read.setdefault((path.resolve(), there.st_mtime_ns, there.st_size), {}) if there else {}
    new = {word for word in wanted if word not in known}
    if not new:
        return known
    n, found = width(path), {}
    for number, line in _lines(path):
        blanks = line.count(" ")
        if blanks != n and _wrong_width(line, n):
            raise ValueError(f"{path}, line {number}: {blanks} numbers, but {n} on the first; is the file damaged?")
        word = line.partition(" ")[0]
        if blanks == n and word in new and word not in found:
            found[word] = _numbers(line, path, number)
            if len(found) == len(new):
                break
    known.update(dict.fromkeys(new) | found)
    return known


def _wrong_width(line: str, n: int) -> bool:
    """Whether a line without ``n`` blanks is damaged, and not a word with blanks inside before its n numbers."""
    head = line.rsplit(" ", n)
    return len(head) <= n or all(_is_number(x) for x in head[0].split(" ")[1:])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _numbers(line: str, path: Path, number: int) -> list[float]:
    word, *values = line.split(" ")
    if odd := [value for value in values if not _is_number(value)]:
        raise ValueError(f"{path}, line {number}: {odd[0][:40]!r} after {word!r} is not a finite number")
    return [float(value) for value in values]
