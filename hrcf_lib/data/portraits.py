r"""Portraits: pictures of one dominant thing, and captions that name it. What the mini VLP is trained and probed on."""

from dataclasses import dataclass

import numpy as np

from hrcf_lib.data import backgrounds, mojiscenes, openmoji

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
    """A picture of one thing, (3, side, side) uint8; its place in ``concepts()``; a caption."""

    image: np.ndarray
    concept: int
    caption: str


def concepts() -> tuple[str, ...]:
    """Everything that a portrait can be of: the vocabulary, then the textures."""
    return openmoji.names() + tuple(TEXTURE_CAPTIONS.values())


def portrait(rng, concept: int, side: int = 112, size=(0.25, 0.95), distractors=0.0, fade=0.0) -> Portrait:
    """Paint one portrait; ``size`` is the range of the dominant thing's share of the side."""
    vocabulary = openmoji.vocabulary()
    law = mojiscenes.SceneLaw(fade=fade, covered=0.25)
    things, sizes, scene = [], [], None
    if concept < len(vocabulary) and vocabulary[concept].openmoji:
        things, sizes = [vocabulary[concept]], [rng.uniform(*size)]
        if rng.uniform() < 0.5:
            scene = rng.choice(list(backgrounds.SCENES))
        name = vocabulary[concept].name
    elif concept < len(vocabulary):
        name = scene = vocabulary[concept].name
    if rng.uniform() < distractors:
        others = [c for c in vocabulary if c.openmoji]
        largest = 0.6 * sizes[0] if sizes else 0.35
        for k in rng.choice(len(others), rng.integers(1, 3), replace=False):
            things.append(others[k])
            sizes.append(rng.uniform(0.12, max(0.16, min(0.4, largest))))
    if concept >= len(vocabulary):
        kind = list(TEXTURE_CAPTIONS)[concept - len(vocabulary)]
        canvas = backgrounds.texture(rng, side, kind) + rng.normal(0, rng.uniform(0, 8), (side, side, 1))
        return Portrait(np.clip(canvas, 0, 255).astype(np.uint8).transpose(2, 0, 1), concept, TEXTURE_CAPTIONS[kind])
    image = mojiscenes.compose(rng, things, sizes, scene, side, law=law).image
    return Portrait(image.transpose(2, 0, 1), concept, TEMPLATES[rng.integers(len(TEMPLATES))].format(name))
