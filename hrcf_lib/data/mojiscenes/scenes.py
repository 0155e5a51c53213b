r"""MojiScenes: scenes composed from OpenMoji drawings on painted stuff, each a pure function of (split, index, seed).

A picture has a *place*: outdoors (a sky, what is far away, one or two kinds of ground), indoors (a wall and a floor),
one kind of stuff, or a plain texture, which has no name. In it stand a few different things, one of them large. Labels
are all that was drawn and every word above it (a dog is a mammal, a pet and an animal). Boxes, and for every pixel what
is seen there, are exact.

Splits: ``train``, ``val`` and ``test`` follow one law, but val and test are pictures that people chose for *their*
unseen labels, as NUS-WIDE's pictures seem to be for its 81 concepts (how much of a picture these name is not
published): with chance ``coverage`` a region or a thing is drawn from what they name, else from what they do not name.
``test-line`` draws the line art only, a style that no training picture has. Any concept may be *in* any picture; what
differs is which labels the annotation speaks of (``LabelSpace``). A ``vocabulary_seed`` other than 0 makes other labels
the unseen ones.

Nothing is stored and nothing is downloaded: ``draw("test", 7)`` paints the eighth test scene, the same bits on every
machine with OpenMoji 17, resvg-py 0.5 and Pillow 13 (up to Pillow 12, ``resize`` rounds some pixels otherwise, by one
level). ``export`` writes a split to disk in the common form (``hrcf_lib.data.load`` reads it back).

Symbols: K labels; ``side`` is in pixels; boxes are x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
Drawings: OpenMoji, CC BY-SA 4.0; pictures made from them carry the same licence.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset

from hrcf_lib.data.mojiscenes import openmoji, stuff, vocabulary
from hrcf_lib.engine.files import make_folder, replacing
from hrcf_lib.engine.messages import check_known, is_real, is_whole, whole_number
from hrcf_lib.labels import LabelSpace, check_names

SPLITS = ("train", "val", "test", "test-line")
PLACES = ("outdoors", "indoors", "one kind of stuff", "plain texture")
ANY = ("far", "ground", "wall", "floor", "pattern")  # layers of the stuff that can fill a whole picture
TAG_NOISE = 0.3  # share of the training positives that are dropped by default
NOTHING = 255  # in ``Scene.owner``: a pixel of what has no name
GREY = np.full((3, 3), 1 / 3, np.float32)  # maps a colour to its grey value
CHROMA = np.eye(3) - GREY  # what is left of it


@dataclass(frozen=True)
class SceneLaw:
    """The distribution that scenes are drawn from. Sizes are shares of the picture's side.

    Raises ``ValueError`` naming the field whose value cannot be drawn from.
    """

    objects: tuple[int, int] = (1, 3)  # least and most things in a scene
    dominant: tuple[float, float] = (0.25, 0.65)  # size of the first thing, uniform; the largest, or close to it
    others: tuple[float, float] = (0.12, 0.35)  # size of each further thing, log-uniform
    covered: float = 0.5  # largest share of an earlier thing that a later one may hide (tried 10 times)
    places: tuple[float, float, float, float] = (0.4, 0.2, 0.3, 0.1)  # shares of ``PLACES``
    tail: float = 30.0  # the chance of a thing is in proportion to 1 / (rank + tail): a long tail
    coverage: float = 0.8  # chance of a region or a thing in val and test to be one that their unseen labels name
    fade: float = 0.5  # fill opacity is drawn from [1 - fade, 1]; 0: drawings as they are
    noise: float = 40.0  # largest deviation of the grey noise over a picture, in 0..255

    def __post_init__(self):
        if not _are(self.objects, 2, is_whole) or not 1 <= self.objects[0] <= self.objects[1] <= 20:
            raise ValueError(f"objects = {self.objects!r}: give least and most, between 1 and 20")
        for name in ("dominant", "others"):
            value = getattr(self, name)
            if not _are(value, 2) or not 0 < value[0] <= value[1] <= 1:
                raise ValueError(f"{name} = {value!r}: give least and most, as shares of the side in (0, 1]")
        places = self.places
        if not _are(places, len(PLACES)) or min(places) < 0 or not 0.999 < sum(places) < 1.001:
            raise ValueError(f"places = {places!r}: give shares of {', '.join(PLACES)}, which add up to 1")
        if not is_real(self.tail) or not 0 <= self.tail < 1e6:
            raise ValueError(f"tail = {self.tail!r}: give a number from 0; the larger, the more alike the frequencies")
        if not is_real(self.noise) or not 0 <= self.noise <= 255:
            raise ValueError(f"noise = {self.noise!r}: give a deviation from 0 to 255")
        check_coverage(self.coverage)
        for name in ("covered", "fade"):
            value = getattr(self, name)
            if not is_real(value) or not 0 <= value <= 1:
                raise ValueError(f"{name} = {value!r}: give a share between 0 and 1")


def _are(values, n: int, kind=is_real) -> bool:
    """Whether ``values`` are ``n`` numbers."""
    return isinstance(values, (tuple, list)) and len(values) == n and all(map(kind, values))


def check_coverage(coverage: float) -> None:
    """Raise ``ValueError`` for a coverage out of (0, 1]."""
    if not is_real(coverage) or not 0 < coverage <= 1:
        raise ValueError(f"coverage = {coverage!r}: give a share above 0 and up to 1")


@dataclass(frozen=True)
class Scene:
    r"""One picture with its exact annotation: all that it shows, whatever its split annotates.

    ``names``: what was drawn, things first (largest first, painted in this order) and then regions; then the words
    above it. ``boxes``: of a region around its pixels as it was painted, of a word around all that makes it hold.
    ``owner``: the place in ``names`` of what each pixel shows; ``NOTHING`` where that has no name.
    """

    image: np.ndarray  # (side, side, 3) uint8; a view, planes one after another in memory
    names: tuple[str, ...]
    boxes: np.ndarray  # (n, 4) float32: x0, y0, x1, y1 in pixels, one row per name
    owner: np.ndarray  # (side, side) uint8
    things: int = 0  # how many of the names are things
    regions: int = 0  # how many are regions
    split: str = ""
    index: int = -1

    @property
    def drawn(self) -> tuple[str, ...]:
        """Things and regions, without the words above them."""
        return self.names[: self.things + self.regions]

    def mask(self, *labels: str) -> np.ndarray:
        """Pixels (side, side) bool that show what makes one of the labels hold; none for a label that does not.

        Raises ``ValueError`` for a label that is no text, such as a list of them.
        """
        if wrong := [label for label in labels if not isinstance(label, str)]:
            raise ValueError(f"a label is {wrong[0]!r:.80}, not a string: give names, as in mask('sea', 'sky')")
        own = [i for i, n in enumerate(self.drawn) if not {n, *vocabulary.ancestors(n)}.isdisjoint(labels)]
        return np.isin(self.owner, own)

    def covered(self, labels) -> float:
        """Share of the pixels that any of ``labels``, a list, names. Raises ``ValueError`` for a bare string."""
        if isinstance(labels, str):
            raise ValueError(f"labels is the single string {labels!r:.80}, not a list of names; write [{labels!r:.80}]")
        return float(self.mask(*labels).mean())


def draw(
    split: str, index: int, seed: int = 0, side: int = 112, law: SceneLaw = SceneLaw(), vocabulary_seed: int = 0
) -> Scene:
    """The scene number ``index`` (from 0, without end) of a split. Same arguments, same bits.

    ``vocabulary_seed`` says which labels are unseen (``vocabulary.concepts``), which ``train`` scenes do not depend on.
    Raises ``ValueError`` for an unknown split, an index or seed that is no whole number from 0, or a side below 16 or
    above 152 pixels.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    index, seed = whole_number("index", index, 0), whole_number("seed", seed, 0)
    side = whole_number("side", side, 16, LARGEST_SIDE)
    asked = _Asked(unseen_part(split), law.coverage, vocabulary.check_seed(vocabulary_seed))
    rng = np.random.default_rng([crc32(split.encode()), index, seed])
    regions = _regions(rng, law, asked)
    count = int(rng.integers(law.objects[0], law.objects[1] + 1))
    chosen: list[vocabulary.Concept] = []
    while len(chosen) < count:
        things, chances = _things(*asked.drawn(rng), law.tail)
        if (thing := things[min(np.searchsorted(chances, rng.uniform()), len(things) - 1)]) not in chosen:
            chosen.append(thing)
    sizes = np.exp(rng.uniform(*np.log(law.others), count))
    sizes[0] = rng.uniform(*law.dominant)
    order = np.argsort(-sizes, kind="stable")
    style = "line" if split == "test-line" else "colour"
    return compose(rng, [chosen[i] for i in order], sizes[order], regions, side, style, law, split, index)


LARGEST_SIDE = stuff.SHEET - 16  # a region is cut out of a sheet, with some room to shift it


def unseen_part(split: str) -> str | None:
    """The part of the vocabulary that a split's pictures were chosen for; None of train."""
    return None if split == "train" else "test-unseen" if split.startswith("test") else "val-unseen"


@dataclass(frozen=True)
class _Asked:
    """The unseen labels that a split was chosen for, and how often they are asked for."""

    part: str | None
    coverage: float
    seed: int

    def drawn(self, rng) -> tuple[str | None, bool, int]:
        """Part, whether the next thing or region is one that the part names, and seed; part None: anything."""
        return self.part, self.part is not None and bool(rng.uniform() < self.coverage), self.seed


@cache
def _things(part: str | None, wanted: bool, seed: int, tail: float) -> tuple[list[vocabulary.Concept], np.ndarray]:
    """Things that may come next, and the running sums of their chances."""
    found = [c for c in vocabulary.concepts() if c.kind == "thing"]
    found = [c for c in found if part is None or vocabulary.named(c.name, part, seed) == wanted]
    chances = np.array([1 / (c.rank + tail) for c in found])
    return found, np.cumsum(chances / chances.sum())


@cache
def _stuff(layers: tuple[str, ...], part: str | None, wanted: bool, seed: int) -> list[str]:
    """Stuff of these layers that may fill the next region; empty if all, or none, is named by the part."""
    own = [name for name, (_, layer) in stuff.STUFF.items() if layer in layers]
    return [name for name in own if part is None or vocabulary.named(name, part, seed) == wanted]


def _regions(rng, law: SceneLaw, asked: _Asked) -> list[tuple[str, str | None]]:
    """Layer and stuff of each region, from the back; the stuff is None for a plain texture."""

    def region(layer: str, layers: tuple[str, ...] = ()) -> tuple[str, str | None]:
        options = _stuff(layers or (layer,), *asked.drawn(rng))
        return layer, options[rng.integers(len(options))] if options else None

    place = PLACES[min(int(np.searchsorted(np.cumsum(law.places), rng.uniform())), len(PLACES) - 1)]
    if place == "plain texture":
        part, wanted, _ = asked.drawn(rng)
        return [region("whole", ANY) if wanted else ("whole", None)]
    if place == "one kind of stuff":
        return [region("whole", ANY)]
    if place == "indoors":
        return [region("wall"), region("floor")]
    far, more = rng.uniform() < 0.5, rng.uniform() < 0.3
    return [region("sky"), *[region("far")] * far, region("ground"), *[region("ground")] * more]


def compose(
    rng, things, sizes, regions=(("whole", None),), side=112, style="colour", law=SceneLaw(), split="", index=-1
) -> Scene:
    """Paint regions, and paste ``things`` on them, first at the back.

    Args:
        rng: numpy ``Generator``; the same state gives the same bits.
        things: concepts with a drawing.
        sizes: of each thing, the longer side of its box as a share of the picture's side, in (0, 1].
        regions: (layer, name of the stuff or None for a plain texture), from the back. The first fills the picture;
            ``far`` begins above a horizon, the first ``ground`` at it and the second below, a ``floor`` lower down.
        style: ``"colour"`` or ``"line"`` (line art on a paler background).

    Raises:
        ValueError: an unknown style, layer or stuff, no region, a thing that comes twice, a side that ``draw`` does not
            take, a size out of (0, 1], or another number of sizes than of things.
    """
    if style not in ("colour", "line"):
        raise ValueError(f"unknown style {style!r}: choose colour or line")
    if not regions:
        raise ValueError("regions is empty: give at least one, such as ('whole', None) for a plain texture")
    check_known([layer for layer, _ in regions], ("whole", *stuff.LAYERS), "unknown layer")
    check_known([name for _, name in regions if name], stuff.STUFF, "unknown stuff")
    if twice := [thing.name for i, thing in enumerate(things) if thing in things[:i]]:
        raise ValueError(f"{twice[0]!r} is among the things twice: a name has one box, leave one of them out")
    side = whole_number("side", side, 16, LARGEST_SIDE)
    if wrong := [size for size in sizes if not is_real(size) or not 0 < size <= 1]:
        raise ValueError(f"size = {wrong[0]!r}: give a share of the picture's side, above 0 and up to 1")
    canvas, region_of = _painted(rng, regions, side)  # (3, side, side), (side, side)
    canvas += np.float32(rng.uniform(0, 8)) * rng.standard_normal((side, side), dtype=np.float32)
    if style == "line":  # pale paper, so that black ink shows on everything
        canvas *= 0.5
        canvas += 127
    np.clip(canvas, 0, 255, out=canvas)
    boxes: list[tuple[int, int, int, int]] = []
    owner = np.full((side, side), NOTHING, np.uint8)
    for number, (thing, size) in enumerate(zip(things, sizes, strict=True)):
        rgba = _jittered(rng, thing.drawing, size * side, style, law.fade)  # (4, h, w)
        h, w = rgba.shape[1:]
        x, y = _place(rng, side, w, h, boxes, law.covered)
        window = canvas[:, y : y + h, x : x + w]
        window *= 1 - rgba[3] / 255
        window += rgba[:3]
        owner[y : y + h, x : x + w][rgba[3] > 127] = number
        boxes.append((x, y, x + w, y + h))
    if law.noise:
        canvas += np.float32(rng.uniform(0, law.noise)) * rng.standard_normal((side, side), dtype=np.float32)
        np.clip(canvas, 0, 255, out=canvas)
    drawn = [t.name for t in things]
    for name in dict.fromkeys(name for _, name in regions if name):  # one may come twice
        mask = np.isin(region_of, [i for i, (_, other) in enumerate(regions) if other == name])
        owner[mask & (owner == NOTHING)] = len(drawn)
        boxes.append(_around(mask))
        drawn.append(name)
    found = dict(zip(drawn, boxes, strict=True))
    for name in drawn:
        for word in vocabulary.ancestors(name):
            found[word] = _union(found[word], found[name]) if word in found else found[name]
    image = canvas.astype(np.uint8).transpose(1, 2, 0)  # (side, side, 3)
    boxes_of = np.array(list(found.values()), np.float32).reshape(-1, 4)
    return Scene(image, tuple(found), boxes_of, owner, len(things), len(drawn) - len(things), split, index)


def _painted(rng, regions, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The canvas (3, side, side) float32, and which region is at each pixel, (side, side) uint8."""
    canvas = _region(rng, regions[0][1], side)
    region_of = np.zeros((side, side), np.uint8)
    v = np.arange(side, dtype=np.float32)[:, None] / side
    horizon = rng.uniform(0.3, 0.6)
    grounds = 0
    for i, (layer, name) in enumerate(regions[1:], 1):
        if layer == "far":
            edge = _wave(rng, side, horizon - rng.uniform(0.12, 0.28), 0.02, rng.uniform(0.5, 2))
        elif layer == "floor":
            edge = np.full((1, side), rng.uniform(0.45, 0.75), np.float32)
        elif grounds:
            edge = _wave(rng, side, rng.uniform(horizon + 0.15, 0.88), 0.03, rng.uniform(0.5, 2))
        else:
            edge = _wave(rng, side, horizon, rng.uniform(0, 0.02), 1)
        grounds += layer == "ground"
        np.copyto(canvas, _region(rng, name, side), where=v > edge)
        region_of[v > edge] = i
    return canvas, region_of


def _region(rng, name: str | None, side: int) -> np.ndarray:
    """A picture (3, side, side) float32 of one kind of stuff: a sheet shifted, mirrored and tinted, or a texture."""
    if name is None:
        return stuff.texture(rng, side)
    sheet = stuff.sheet(name, int(rng.integers(stuff.SHEETS)))
    y, x = rng.integers(0, stuff.SHEET - side + 1, 2)
    sheet = sheet[:, y : y + side, x : x + side]
    if rng.uniform() < 0.5:
        sheet = sheet[:, :, ::-1]
    return sheet * rng.uniform(0.85, 1.12, (3, 1, 1)).astype(np.float32)


def _wave(rng, side: int, base: float, height: float, waves: float) -> np.ndarray:
    """A wavy line v = f(u) around ``base``: (1, side) float32."""
    u = np.arange(side, dtype=np.float32) / side
    return (base + height * np.sin(2 * np.pi * (waves * u + rng.uniform()))).astype(np.float32)[None]


def _around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box around the True pixels of a mask; (0, 0, 0, 0) if there is none."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1) if len(xs) else (0, 0, 0, 0)


def _union(a, b) -> tuple[int, int, int, int]:
    return (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))


def _jittered(rng, code: str, longest: float, style: str, fade: float) -> np.ndarray:
    """A sprite whose longer side is ``longest`` pixels: flipped, stretched a little, recoloured.

    Returns ``(4, h, w)`` float32 in 0..255, premultiplied: red, green, blue, then opacity.
    """
    opacity = 1 - rng.uniform(0, fade) if fade else 1.0
    if style == "colour" and opacity < 1:
        colour, line = openmoji.sprite(code)
        picture = _picture((opacity * colour.astype(np.float32) + (1 - opacity) * line).astype(np.uint8))
    else:
        picture = _layer(code, style)
    w, h = picture.size
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    w, h = w * stretch, h / stretch
    scale = longest / max(w, h)
    w, h = (max(4, int(round(s * scale))) for s in (w, h))
    pixels = np.asarray(picture.resize((w, h), Image.Resampling.BILINEAR))  # (h, w, 4)
    if rng.uniform() < 0.5:
        pixels = pixels[:, ::-1]
    rgba = pixels.transpose(2, 0, 1).astype(np.float32, order="C")  # (4, h, w)
    mix = _recolour(rng)[..., None, None]
    r, g, b, a = rgba
    # element by element, not as a matrix product, so that every machine rounds alike
    rgb = r * mix[:, 0]  # (3, h, w)
    rgb += g * mix[:, 1]
    rgb += b * mix[:, 2]
    rgb += np.float32(rng.uniform(-20, 20)) * a / 255
    np.maximum(rgb, 0, out=rgb)
    np.minimum(rgb, a, out=rgba[:3])
    return rgba


@cache
def _layer(code: str, style: str) -> Image.Image:
    """The whole drawing (``"colour"``) or its line art (``"line"``) as a PIL picture."""
    return _picture(openmoji.sprite(code)[style == "line"])


def _picture(rgba: np.ndarray) -> Image.Image:
    return Image.frombuffer("RGBa", rgba.shape[1::-1], rgba.tobytes())


def _recolour(rng) -> np.ndarray:
    """A 3 x 3 matrix, float32: saturation in 0.3..1.3 around the grey axis, a gain in 0.75..1.2 for each channel."""
    saturation = rng.uniform(0.3, 1.3)
    return (rng.uniform(0.75, 1.2, (3, 1)) * (GREY + saturation * CHROMA)).astype(np.float32)


def _place(rng, side: int, w: int, h: int, boxes, covered: float) -> tuple[int, int]:
    """A position where no earlier box is hidden by more than ``covered``; the last of ten tries if there is none."""
    for _ in range(10):
        x, y = int(rng.integers(0, side - w + 1)), int(rng.integers(0, side - h + 1))
        if all(
            max(0, min(x + w, bx1) - max(x, bx0)) * max(0, min(y + h, by1) - max(y, by0))
            <= covered * (bx1 - bx0) * (by1 - by0)
            for bx0, by0, bx1, by1 in boxes
        ):
            break
    return x, y


def label_space(split: str, vocabulary_seed: int = 0) -> LabelSpace:
    """Seen labels, and as unseen those of validation (``train``, ``val``) or of test (``test``, ``test-line``).

    ``vocabulary_seed``: of the vocabulary's split, 0 for the one that ships. Raises ``ValueError`` for an unknown split
    or a bad seed.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    unseen = unseen_part(split) or "val-unseen"
    return LabelSpace(vocabulary.names("seen", vocabulary_seed), vocabulary.names(unseen, vocabulary_seed))


class MojiScenes(Dataset):
    r"""``size`` scenes of one split as ``(image uint8 (3, side, side), labels (K,) in -1/0/+1)``.

    Columns are ``label_space(split, vocabulary_seed).names``. In ``train`` the unseen columns are 0 (unknown): nobody
    annotated them.

    Args:
        split: one of ``SPLITS``.
        size: number of scenes, at least 1; the first ``n`` scenes are the same at every size.
        seed: from 0; another seed is another draw of the benchmark.
        side: of a picture, in pixels, 16 to ``LARGEST_SIDE``.
        law: the distribution.
        tag_noise: share of the *training* positives to drop, as people forget tags on Flickr (a dropped positive reads
            -1, "tag absent"); 0 is the clean form. Other splits are exact.
        vocabulary_seed: 0: the vocabulary's split that ships; another number: other labels are seen, as many in each
            kind (``vocabulary.concepts``).

    Raises:
        ValueError: an unknown split, a size, seed or side that is no whole number within its bounds, or a share outside
            0..1.
    """

    def __init__(self, split, size, seed=0, side=112, law=SceneLaw(), tag_noise=TAG_NOISE, vocabulary_seed=0):
        self.labels = label_space(split, vocabulary_seed)
        if not is_real(tag_noise) or not 0 <= tag_noise <= 1:
            raise ValueError(f"tag_noise is a share of positives between 0 and 1, got {tag_noise!r}")
        self.size, self.seed = whole_number("size", size), whole_number("seed", seed, 0)
        self.side = whole_number("side", side, 16, LARGEST_SIDE)
        self.split, self.law, self.tag_noise = split, law, tag_noise
        self.vocabulary_seed = vocabulary.check_seed(vocabulary_seed)
        self._column = {name: k for k, name in enumerate(self.labels.names)}

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        scene = self.scene(index)
        return torch.from_numpy(scene.image).permute(2, 0, 1), self.labels_of(scene)  # (3, side, side), (K,)

    def scene(self, index: int) -> Scene:
        """The scene with names and boxes. Raises ``IndexError`` beyond the split's size, and what ``draw`` raises."""
        if is_whole(index) and not 0 <= index < self.size:
            raise IndexError(f"scene {index} of {self.size}")
        return draw(self.split, index, self.seed, self.side, self.law, self.vocabulary_seed)

    def annotated(self, scene: Scene) -> list[str]:
        """Names that the annotation of this split gives to a scene: never an unseen one in ``train``."""
        names = [n for n in scene.names if n in self._column]
        if self.split == "train" and self.tag_noise:
            rng = np.random.default_rng([crc32(b"tags"), scene.index, self.seed])
            names = [n for n, u in zip(names, rng.uniform(size=len(names))) if u >= self.tag_noise]
        return [n for n in names if self.split != "train" or self._column[n] < self.labels.n_seen]

    def original(self, index: int) -> Image.Image:
        """The picture as a PIL image."""
        return Image.fromarray(self.scene(index).image)

    def label_vector(self, index: int) -> torch.Tensor:
        """(K,) in -1/0/+1, as annotated in this split."""
        return self.labels_of(self.scene(index))

    def labels_of(self, scene: Scene) -> torch.Tensor:
        """(K,) in -1/0/+1 of a scene of this split, as annotated in it."""
        y = np.full(len(self._column), -1, np.float32)
        if self.split == "train":
            y[self.labels.n_seen :] = 0
        y[[self._column[n] for n in self.annotated(scene)]] = 1
        return torch.from_numpy(y)

    def fingerprint(self) -> str:
        """All that pictures and labels depend on, the painting (by its first scene) included; a key for caches."""
        first = hashlib.sha256(self.scene(0).image.tobytes()).hexdigest()[:16]
        arguments = (self.split, self.size, self.seed, self.side, self.law, self.tag_noise)
        text = f"MojiScenes{arguments} labels {self.labels.hash} first {first}"
        if self.vocabulary_seed:  # 0 is left out: features and runs are stored under the text without it
            text += f" vocabulary_seed {self.vocabulary_seed}"
        return text


def export(dataset: MojiScenes, out: str | Path, labels=None) -> Path:
    """Write a split to disk in the common form that ``hrcf_lib.data.load`` reads; returns ``out``.

    ``images/*.png`` (lossless); ``labels.csv``: file, labels joined by ``|``, *as the split annotates them*;
    ``label_space.csv``: the columns, and which of them were annotated; ``boxes.csv``: everything that was drawn, with
    its box in pixels. ``labels.csv`` is written last: a folder that has one is complete. The pictures are CC BY-SA 4.0.

    With ``labels`` (names), the folder is that of a user who annotates these alone: ``labels.csv`` names no other, and
    there is no ``label_space.csv``. Raises ``ValueError`` for a name that the split does not annotate.
    """
    out, kept = Path(out), None if labels is None else set(check_names(labels))
    check_known(kept or (), dataset.labels.names, f"{dataset.split} has no label")
    make_folder(out / "images")
    (out / "labels.csv").unlink(missing_ok=True)  # of an earlier export: from here on the folder is incomplete
    rows, boxes = [], []
    for index in range(len(dataset)):
        scene = dataset.scene(index)
        file = f"images/{index:06d}.png"
        Image.fromarray(scene.image).save(out / file)
        rows.append((file, "|".join(n for n in dataset.annotated(scene) if kept is None or n in kept)))
        boxes += [(file, name, *box) for name, box in zip(scene.names, scene.boxes.tolist(), strict=True)]
    space = [("seen", n, "yes") for n in dataset.labels.seen]
    space += [("unseen", n, "no" if dataset.split == "train" else "yes") for n in dataset.labels.unseen]
    if kept is None:
        _write(out / "label_space.csv", space, ["part", "label", "annotated"])
    else:
        (out / "label_space.csv").unlink(missing_ok=True)
    _write(out / "boxes.csv", boxes, ["file", "label", "x0", "y0", "x1", "y1"])
    licence = f"{openmoji.CREDIT}\nhttps://creativecommons.org/licenses/by-sa/4.0/\n"
    (out / "LICENSE.txt").write_text(licence, encoding="utf-8")
    _write(out / "labels.csv", rows, ["file", "labels"])
    return out


def _write(path: Path, rows, columns) -> None:
    with replacing(path) as part:
        pd.DataFrame(rows, columns=columns).to_csv(part, index=False)
