r"""MojiScenes: scenes composed from OpenMoji drawings, each a pure function of (split, index, seed).

A scene shows 2 to 6 different things at sizes from 14 % to 90 % of the picture's side, on a nameable scene (beach,
night, ...) or on a plain texture. Labels and boxes are exact. Splits: ``train``, ``val`` and ``test`` follow one law,
but val and test show their own unseen things four times as often (the 81 unseen concepts of NUS-WIDE are frequent ones
too); ``test-line`` draws the line art only, a style that no training picture has. Any concept may be *in* any picture,
as in real benchmarks; what differs is which labels the annotation speaks of (``LabelSpace``). A ``vocabulary_seed``
other than 0 makes other labels the unseen ones.

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

from hrcf_lib.data.mojiscenes import backgrounds, openmoji
from hrcf_lib.engine.files import replacing
from hrcf_lib.engine.messages import check_known
from hrcf_lib.labels import LabelSpace, check_names

SPLITS = ("train", "val", "test", "test-line")
GREY = np.full((3, 3), 1 / 3, np.float32)  # maps a colour to its grey value
CHROMA = np.eye(3) - GREY  # what is left of it


@dataclass(frozen=True)
class SceneLaw:
    """The distribution that scenes are drawn from. Sizes are shares of the picture's side.

    Raises ``ValueError`` naming the field whose value cannot be drawn from.
    """

    objects: tuple[int, int] = (2, 6)  # least and most things in a scene
    dominant: tuple[float, float] = (0.40, 0.90)  # size of the first thing, uniform; the largest, or close to it
    others: tuple[float, float] = (0.14, 0.50)  # size of each further thing, log-uniform
    covered: float = 0.5  # largest share of an earlier thing that a later one may hide (tried 10 times)
    unseen_weight: float = 4.0  # val and test show their own unseen things this many times as often as others
    scene_share: float = 0.6  # share of pictures on a nameable scene; the rest is on a plain texture
    fade: float = 0.0  # fill opacity is drawn from [1 - fade, 1]; 0: drawings as they are

    def __post_init__(self):
        if not 1 <= self.objects[0] <= self.objects[1] <= len(_things()):
            raise ValueError(f"objects = {self.objects}: give least and most, between 1 and {len(_things())}")
        for name in ("dominant", "others"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} = {(low, high)}: give least and most, as shares of the side in (0, 1]")
        if not 0 < self.unseen_weight < 1e6:
            raise ValueError(f"unseen_weight = {self.unseen_weight}: give a positive number, 1 for no preference")
        for name in ("covered", "scene_share", "fade"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: give a share between 0 and 1")


@dataclass(frozen=True)
class Scene:
    """One picture with its exact annotation: everything that was drawn, whatever its split annotates."""

    image: np.ndarray  # (side, side, 3) uint8; a view, planes one after another in memory
    names: tuple[str, ...]  # things, largest first (painted in this order), then the scene if there is one
    boxes: np.ndarray  # (n, 4) float32: x0, y0, x1, y1 in pixels, one row per name; the whole picture for a scene
    split: str = ""
    index: int = -1


@cache
def _things(vocabulary_seed: int = 0) -> tuple[openmoji.Concept, ...]:
    """The concepts that are drawings."""
    return tuple(c for c in openmoji.vocabulary(vocabulary_seed) if c.openmoji)


def draw(
    split: str, index: int, seed: int = 0, side: int = 112, law: SceneLaw = SceneLaw(), vocabulary_seed: int = 0
) -> Scene:
    """The scene number ``index`` (from 0, without end) of a split. Same arguments, same bits.

    ``vocabulary_seed`` says which things are unseen (``openmoji.vocabulary``), which ``train`` scenes do not depend on.
    Raises ``ValueError`` for an unknown split, a negative index or seed, or a side below 16 pixels.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if index < 0 or seed < 0 or side < 16:
        raise ValueError(f"index = {index}, seed = {seed}, side = {side}: give numbers from 0, 0 and 16 up")
    vocabulary_seed = openmoji.check_seed(vocabulary_seed)
    rng = np.random.default_rng([crc32(split.encode()), index, seed])
    things = _things(vocabulary_seed)
    count = rng.integers(law.objects[0], law.objects[1] + 1)
    chosen = rng.choice(len(things), count, replace=False, p=_frequency(split, law.unseen_weight, vocabulary_seed))
    sizes = np.exp(rng.uniform(*np.log(law.others), len(chosen)))
    sizes[0] = rng.uniform(*law.dominant)
    order = np.argsort(-sizes, kind="stable")
    scenes = tuple(backgrounds.SCENES)
    scene = scenes[rng.integers(len(scenes))] if rng.uniform() < law.scene_share else None
    style = "line" if split == "test-line" else "colour"
    return compose(rng, [things[i] for i in chosen[order]], sizes[order], scene, side, style, law, split, index)


@cache
def _frequency(split: str, unseen_weight: float, vocabulary_seed: int = 0) -> np.ndarray | None:
    """Chance of each thing to be drawn; ``None`` (all alike) in train, whose pictures nobody chose for unseen labels.

    The 81 test concepts of NUS-WIDE are frequent (1.9 per test picture): without a weight, two test scenes of three
    would show no unseen thing at all.
    """
    if split == "train":
        return None
    unseen = "test-unseen" if split.startswith("test") else "val-unseen"
    weights = np.array([unseen_weight if thing.split == unseen else 1.0 for thing in _things(vocabulary_seed)])
    return weights / weights.sum()


def compose(rng, things, sizes, scene=None, side=112, style="colour", law=SceneLaw(), split="", index=-1) -> Scene:
    """Paint a background (``scene`` names one; ``None``: a texture) and paste ``things``, first at the back.

    Args:
        rng: numpy ``Generator``; the same state gives the same bits.
        things: concepts with a drawing.
        sizes: of each thing, the longer side of its box as a share of the picture's side, in (0, 1].
        style: ``"colour"`` or ``"line"`` (line art on a paler background).

    Raises:
        ValueError: an unknown scene or style, or another number of sizes than of things.
    """
    if scene is not None and scene not in backgrounds.SCENES:
        raise ValueError(f"unknown scene {scene!r}: choose one of {', '.join(backgrounds.SCENES)}")
    if style not in ("colour", "line"):
        raise ValueError(f"unknown style {style!r}: choose colour or line")
    canvas = backgrounds.SCENES[scene](rng, side) if scene else backgrounds.texture(rng, side)  # (side, side, 3)
    canvas = canvas.transpose(2, 0, 1)  # (3, side, side), contiguous
    canvas += np.float32(rng.uniform(0, 8)) * rng.standard_normal((side, side), dtype=np.float32)
    if style == "line":  # pale paper, so that black ink shows on every scene
        canvas *= 0.5
        canvas += 127
    np.clip(canvas, 0, 255, out=canvas)
    boxes: list[tuple[int, int, int, int]] = []
    for thing, size in zip(things, sizes, strict=True):
        rgba = _jittered(rng, thing.openmoji, size * side, style, law.fade)  # (4, h, w)
        h, w = rgba.shape[1:]
        x, y = _place(rng, side, w, h, boxes, law.covered)
        window = canvas[:, y : y + h, x : x + w]
        window *= 1 - rgba[3] / 255
        window += rgba[:3]
        boxes.append((x, y, x + w, y + h))
    names = tuple(t.name for t in things) + ((str(scene),) if scene else ())
    boxes = boxes + [(0, 0, side, side)] * bool(scene)
    image = canvas.astype(np.uint8).transpose(1, 2, 0)  # (side, side, 3)
    return Scene(image, names, np.array(boxes, np.float32).reshape(-1, 4), split, index)


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
    unseen = "test-unseen" if split.startswith("test") else "val-unseen"
    return LabelSpace(openmoji.names("seen", vocabulary_seed), openmoji.names(unseen, vocabulary_seed))


class MojiScenes(Dataset):
    r"""``size`` scenes of one split as ``(image uint8 (3, side, side), labels (K,) in -1/0/+1)``.

    Columns are ``label_space(split, vocabulary_seed).names``. In ``train`` the unseen columns are 0 (unknown): nobody
    annotated them.

    Args:
        split: one of ``SPLITS``.
        size: number of scenes, at least 1; the first ``n`` scenes are the same at every size.
        seed: from 0; another seed is another draw of the benchmark.
        side: of a picture, in pixels, at least 16.
        law: the distribution.
        tag_noise: share of the *training* positives to drop, as people forget tags on Flickr (a dropped positive reads
            -1, "tag absent"). Other splits stay exact.
        vocabulary_seed: 0: the vocabulary's split that ships; another number: other labels are seen, as many in each
            group (``openmoji.vocabulary``).

    Raises:
        ValueError: an unknown split, a size, seed or side too small, or a share outside 0..1.
    """

    def __init__(self, split, size, seed=0, side=112, law=SceneLaw(), tag_noise=0.0, vocabulary_seed=0):
        self.labels = label_space(split, vocabulary_seed)
        if size < 1 or seed < 0 or side < 16:
            raise ValueError(f"size = {size}, seed = {seed}, side = {side}: give numbers from 1, 0 and 16 up")
        if not 0 <= tag_noise <= 1:
            raise ValueError(f"tag_noise is a share of positives between 0 and 1, got {tag_noise}")
        self.split, self.size, self.seed, self.side, self.law, self.tag_noise = split, size, seed, side, law, tag_noise
        self.vocabulary_seed = openmoji.check_seed(vocabulary_seed)
        self._column = {name: k for k, name in enumerate(self.labels.names)}

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        scene = self.scene(index)
        return torch.from_numpy(scene.image).permute(2, 0, 1), self.labels_of(scene)  # (3, side, side), (K,)

    def scene(self, index: int) -> Scene:
        """The scene with names and boxes. Raises ``IndexError`` beyond the split's size."""
        if not 0 <= index < self.size:
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
    (out / "images").mkdir(parents=True, exist_ok=True)
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
