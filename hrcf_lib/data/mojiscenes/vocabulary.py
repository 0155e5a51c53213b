r"""The vocabulary of MojiScenes: what a picture can show, the words above it, and which labels are unseen.

``assets/vocabulary.csv`` has one row per label:

``name``     as it is asked for
``kind``     ``thing``, a drawing; ``stuff``, which fills a region (``stuff.STUFF``); ``word``, a superordinate word
             that holds wherever one of its children is shown
``group``    of similar things, for reading
``parents``  labels that hold wherever this one does, joined by ``|``
``drawing``  of a thing: file name of OpenMoji without ``.svg``
``part``     ``seen``, ``val-unseen`` or ``test-unseen``
``rank``     of a thing: its place in the order of frequency, from 1

Unseen labels are of the three kinds of NUS-WIDE's 81: stuff and scenes, superordinate words, and frequent things.
Names of things: Unicode CLDR short names, English, shortened where they are long.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from numbers import Integral
from zlib import crc32

import numpy as np
import open_clip

from hrcf_lib.data.mojiscenes.stuff import STUFF
from hrcf_lib.labels import clean_name

PARTS = ("seen", "val-unseen", "test-unseen")
KINDS = ("thing", "stuff", "word")
LEAST = {"seen": 400, "val-unseen": 81, "test-unseen": 81}  # labels of each part: NUS-WIDE has 81 unseen ones
FREQUENT = 128  # first ranks, among which the unseen things are, at every ``vocabulary_seed``


@dataclass(frozen=True)
class Concept:
    """One row of ``assets/vocabulary.csv``; ``rank`` is 0 for what is no thing."""

    name: str
    kind: str
    group: str
    parents: tuple[str, ...]
    drawing: str
    part: str
    rank: int = 0


def read(text: str) -> tuple[Concept, ...]:
    """The concepts of a CSV with the columns of ``assets/vocabulary.csv``.

    Raises ``ValueError`` for other columns, a row with too few or too many cells, and what ``check`` refuses.
    """
    rows = csv.DictReader(io.StringIO(text))
    if wrong := set(Concept.__dataclass_fields__) ^ set(rows.fieldnames or ()):
        raise ValueError(f"a vocabulary has the columns {', '.join(Concept.__dataclass_fields__)}: see {sorted(wrong)}")
    found = []
    for row in rows:
        if None in row or None in row.values():
            raise ValueError(
                f"line {rows.line_num} of the vocabulary ({row['name']!r}) does not have {len(rows.fieldnames)} cells: "
                "correct it, and put a cell with a comma in quotes"
            )
        row["parents"] = tuple(filter(None, row["parents"].split("|")))
        if row["rank"] and not row["rank"].isdecimal():
            raise ValueError(f"{row['name']!r} has the rank {row['rank']!r}: give a whole number from 1")
        found.append(Concept(**row | {"rank": int(row["rank"] or 0)}))
    return check(found)


def check(concepts: Sequence[Concept], least: dict[str, int] = LEAST) -> tuple[Concept, ...]:
    r"""The concepts, if a benchmark can be made of them.

    Raises ``ValueError`` naming a label that is there twice (in two parts or in one), that CLIP's tokenizer reads as it
    reads another, whose name is blank, has ``|`` or spare blanks in it, whose kind, part, rank or painter is none,
    whose parent is not there, or that is its own ancestor; and a part with fewer labels than ``least``.
    """
    by_name: dict[str, Concept] = {}
    for c in concepts:
        if not c.name or "|" in c.name or c.name != clean_name(c.name):
            raise ValueError(f"label {c.name!r}: give it a name without '|' and without blanks at its ends or in a row")
        if c.name in by_name:
            parts = sorted({c.part, by_name[c.name].part})
            raise ValueError(f"label {c.name!r} is there twice, in {' and '.join(parts)}: remove one row")
        for field, choices in (("kind", KINDS), ("part", PARTS)):
            if getattr(c, field) not in choices:
                raise ValueError(
                    f"{c.name!r} has the {field} {getattr(c, field)!r}: choose one of {', '.join(choices)}"
                )
        if c.kind == "thing" and not (c.drawing and c.rank >= 1):
            raise ValueError(f"{c.name!r} is a thing with the drawing {c.drawing!r} and the rank {c.rank}: give both")
        if c.kind == "stuff" and c.name not in STUFF:
            raise ValueError(f"{c.name!r} is stuff that nothing paints: choose one of {', '.join(STUFF)}")
        by_name[c.name] = c
    for c in concepts:
        for parent in c.parents:
            if parent not in by_name:
                raise ValueError(f"{c.name!r} has the parent {parent!r}, which is no label: add its row, or correct it")
    _check_circles(by_name)
    _check_tokens(by_name)
    for part, number in least.items():
        if (found := sum(c.part == part for c in concepts)) < number:
            raise ValueError(f"{found} labels are {part}, asked for are at least {number}: add rows")
    return tuple(concepts)


def _check_circles(by_name: dict[str, Concept]) -> None:
    for name in by_name:
        todo, met = list(by_name[name].parents), set()
        while todo:
            if (parent := todo.pop()) == name:
                raise ValueError(f"{name!r} is its own ancestor: remove a parent from the circle")
            if parent not in met:
                met.add(parent)
                todo += by_name[parent].parents


def _check_tokens(by_name: dict[str, Concept]) -> None:
    alike: dict[tuple[int, ...], str] = {}
    for name in by_name:
        if (other := alike.setdefault(tuple(_tokenizer().encode(name)), name)) != name:
            raise ValueError(f"CLIP's tokenizer reads {name!r} as it reads {other!r}: rename one")


@cache
def _tokenizer():
    return open_clip.SimpleTokenizer()


def check_seed(seed: int) -> int:
    """A seed of the vocabulary's split as a plain int. Raises ``ValueError`` unless it is a whole number from 0."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"vocabulary_seed = {seed!r}: give a whole number from 0; 0 is the split that ships")
    return int(seed)


def concepts(seed: int = 0) -> tuple[Concept, ...]:
    r"""All concepts in file order: things, stuff, words.

    ``seed`` 0 has the parts of the file. Another one exchanges them inside each kind, and among things inside the
    ``FREQUENT`` ones and inside the others: each part keeps its size in each kind, and unseen things stay frequent.
    Names, parents, drawings and ranks stay, so that pictures of ``train`` do. Raises ``ValueError`` unless it is a
    whole number from 0.
    """
    return _concepts(check_seed(seed))


@cache
def _concepts(seed: int) -> tuple[Concept, ...]:
    if seed:
        return _shuffled(_concepts(0), seed)
    return read((files("hrcf_lib") / "assets" / "vocabulary.csv").read_text(encoding="utf-8"))


def _shuffled(given: tuple[Concept, ...], seed: int) -> tuple[Concept, ...]:
    """The same concepts with parts exchanged inside each kind."""
    kind = lambda c: f"{c.kind} {c.rank <= FREQUENT}"
    parts = {}
    for k in {kind(c): None for c in given}:
        rng = np.random.default_rng([crc32(k.encode()), seed])  # a kind's own: the others do not matter
        parts[k] = iter(rng.permutation([c.part for c in given if kind(c) == k]).tolist())
    return tuple(replace(c, part=next(parts[kind(c)])) for c in given)


def names(part: str | None = None, seed: int = 0) -> tuple[str, ...]:
    """Names of one part (``"seen"``, ``"val-unseen"``, ``"test-unseen"``), or of all concepts, in file order.

    ``seed``: of the split, as in ``concepts``. Raises ``ValueError`` for another part or a bad seed.
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"unknown part of the vocabulary {part!r}: choose one of {', '.join(PARTS)}, or None for all")
    return _names(part, check_seed(seed))


@cache
def _names(part: str | None, seed: int) -> tuple[str, ...]:
    return tuple(c.name for c in _concepts(seed) if part is None or c.part == part)


@cache
def by_name(seed: int = 0) -> dict[str, Concept]:
    """Name -> concept. Shared: do not write to it."""
    return {c.name: c for c in concepts(seed)}


@cache
def ancestors(name: str) -> tuple[str, ...]:
    """Every label that holds wherever ``name`` does, nearest first, without itself."""
    found: dict[str, None] = {}
    for parent in by_name()[name].parents:
        found |= dict.fromkeys((parent, *ancestors(parent)))
    return tuple(found)


@cache
def shown(name: str) -> tuple[str, ...]:
    """Things and stuff that make a label hold: itself, or of a word all that is drawn below it."""
    drawn = [c.name for c in concepts() if c.kind != "word"]
    return tuple(n for n in drawn if n == name or name in ancestors(n))


@cache
def named(name: str, part: str, seed: int = 0) -> bool:
    """Whether a label of ``part`` names what is drawn: itself, or a word above it."""
    return any(by_name(seed)[n].part == part for n in (name, *ancestors(name)))
