r"""What the mini VLP is trained and probed on: portraits and crowds, with captions.

A portrait is a picture of one dominant thing, and its caption names that thing. A crowd shows up to four things, and
its caption names one of them: the larger a thing, the more often it is named, as in captions on the web.
"""

from dataclasses import dataclass

import numpy as np

from hrcf_lib.data.mojiscenes import backgrounds, openmoji, scenes

TEMPLATES = (
    "a photo of a {}.",
    "a drawing of a {}.",
    "a picture of a {}.",
    "there is a {}.",
    "there is a {} in the scene",
    "A photo for multi-label classification, there is a {}.",
    "a small {}.",
    "a large {}.",
    "this is a {}.",
    "the {}",
    "{}",
)
TEXTURE_CAPTIONS = {kind: f"a {kind} background" for kind in backgrounds.TEXTURES}


@dataclass(frozen=True)
class Portrait:
    """A picture and what its caption names, (3, side, side) uint8; place in ``concepts()``; the caption."""

    image: np.ndarray
    concept: int
    caption: str


def concepts() -> tuple[str, ...]:
    """Everything that a portrait can be of: the vocabulary, then the textures."""
    return openmoji.names() + tuple(TEXTURE_CAPTIONS.values())


def portrait(rng, concept: int, side: int = 112, size=(0.25, 0.95), distractors=0.0, fade=0.0) -> Portrait:
    """Paint one portrait; ``size`` is the range of the dominant thing's share of the side."""
    vocabulary = openmoji.vocabulary()
    things, sizes, scene = [], [], None
    if concept < len(vocabulary) and vocabulary[concept].openmoji:
        things, sizes = [vocabulary[concept]], [rng.uniform(*size)]
        if rng.uniform() < 0.5:
            scene = rng.choice(list(backgrounds.SCENES))
    elif concept < len(vocabulary):
        scene = vocabulary[concept].name
    if rng.uniform() < distractors:
        others = [c for c in vocabulary if c.openmoji]
        largest = 0.6 * sizes[0] if sizes else 0.35
        for k in rng.choice(len(others), rng.integers(1, 3), replace=False):
            things.append(others[k])
            sizes.append(rng.uniform(0.12, max(0.16, min(0.4, largest))))
    if concept >= len(vocabulary):
        return _texture(rng, concept, side)
    return _painted(rng, concept, things, sizes, scene, side, fade)


def crowd(rng, concept: int, side: int = 112, size=(0.14, 0.75), alone=0.4, most: int = 4, fade=0.0) -> Portrait:
    """Paint a picture with ``concept`` in it, and up to ``most`` things in all, and name ``concept``.

    The chance that a thing of a given size is the one that is named grows in proportion to its size. ``alone``: share
    of pictures that show the named thing only (it may then be as large as in a portrait).
    """
    vocabulary = openmoji.vocabulary()
    if concept >= len(vocabulary):
        return _texture(rng, concept, side)
    others = [c for c in vocabulary if c.openmoji]
    named = vocabulary[concept]
    n = int(rng.integers(2, most + 1)) if rng.uniform() >= alone else 1
    sizes = rng.uniform(size[0], 0.95 if n == 1 else size[1], n)
    if named.openmoji:
        first = rng.choice(n, p=sizes / sizes.sum())  # size of the named thing
        sizes[[0, first]] = sizes[[first, 0]]
        things = [named] + [others[k] for k in rng.choice(len(others), n - 1, replace=False)]
        scene = rng.choice(list(backgrounds.SCENES)) if rng.uniform() < 0.5 else None
    else:
        things, scene = [others[k] for k in rng.choice(len(others), n - 1, replace=False)], named.name
        sizes = sizes[1:]
    order = np.argsort(-sizes)  # the largest is painted first
    return _painted(rng, concept, [things[k] for k in order], sizes[order].tolist(), scene, side, fade)


def _painted(rng, concept: int, things, sizes, scene, side: int, fade: float) -> Portrait:
    """Things of given sizes on a scene (or a texture), with a caption that names ``concept`` of the vocabulary."""
    law = scenes.SceneLaw(fade=fade, covered=0.25)
    image = scenes.compose(rng, things, sizes, scene, side, law=law).image
    caption = TEMPLATES[rng.integers(len(TEMPLATES))].format(openmoji.vocabulary()[concept].name)
    return Portrait(image.transpose(2, 0, 1), concept, caption)


def _texture(rng, concept: int, side: int) -> Portrait:
    """A picture of nothing but a texture; ``concept`` counts on from the vocabulary."""
    kind = list(TEXTURE_CAPTIONS)[concept - len(openmoji.vocabulary())]
    canvas = backgrounds.texture(rng, side, kind) + rng.normal(0, rng.uniform(0, 8), (side, side, 1))
    return Portrait(np.clip(canvas, 0, 255).astype(np.uint8).transpose(2, 0, 1), concept, TEXTURE_CAPTIONS[kind])
