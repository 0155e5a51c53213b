r"""What the mini VLP is trained and probed on: pictures with a caption that names a little of what they show.

A *portrait* is a picture of one dominant thing or kind of stuff, which its caption names; small things beside it are
never named. A *crowd* shows up to four things on stuff. Its caption names one label, and now and then one or two more;
the larger something is, the more often it is named, as in captions on the web. Half of the captions say more: how many
things there are, where, how large, or in which style.
"""

from dataclasses import dataclass

import numpy as np

from hrcf_lib.data.mojiscenes import scenes, stuff, vocabulary

NEUTRAL = (
    "a photo of a {}.",
    "a drawing of a {}.",
    "a picture of a {}.",
    "there is a {}.",
    "there is a {} in the scene",
    "A photo for multi-label classification, there is a {}.",
    "this is a {}.",
    "the {}",
    "{}",
)
TELLING = {  # what has to hold -> templates that say so
    "small": ("a small {}.",),
    "large": ("a large {}.",),
    "one": ("a {} alone.", "a photo of one thing, a {}."),
    "several": ("a {} among other things.", "a photo of several things, one is a {}."),
    "outdoors": ("a {} outdoors.",),
    "indoors": ("a {} indoors.",),
    "plain": ("a {} on a plain background.",),
    "pale": ("a pale drawing of a {}.",),
    "colourful": ("a colourful drawing of a {}.",),
}
TEMPLATES = (*NEUTRAL, *(template for own in TELLING.values() for template in own))
SMALL, LARGE = 0.28, 0.55  # shares of the side below and above which a thing is called small or large
PALE, COLOURFUL = 0.4, 0.15  # losses of opacity above and below which a drawing is called so
MORE = (0.7, 0.2, 0.1)  # chances of 0, 1 and 2 more labels in the caption of a crowd
WORD = 0.25  # chance of a further label to be named by a word above it


@dataclass(frozen=True)
class Captioned:
    """A picture (3, side, side) uint8, all labels that hold in it, the labels that its caption names, the caption."""

    image: np.ndarray
    labels: tuple[str, ...]
    named: tuple[str, ...]
    caption: str


def portrait(rng, name: str, side: int = 112, size=(0.25, 0.95), distractors=0.0, fade=0.0, plain=0.5) -> Captioned:
    r"""A picture of one label of the vocabulary; of a word, of something that makes it hold.

    ``size``: range of a thing's share of the side. ``distractors``: chance of one or two small things more. ``fade``:
    the most that drawings lose of their opacity. ``plain``: share of things on a plain texture, others stand on stuff.
    """
    drawn = _drawn(rng, name)
    largest = rng.uniform(*size) if drawn.kind == "thing" else 0.6
    more = int(rng.integers(1, 3)) if rng.uniform() < distractors else 0
    sizes = rng.uniform(0.12, max(0.16, min(0.4, 0.6 * largest)), more)
    return _captioned(rng, name, drawn, largest, _others(rng, drawn, more), sizes, side, fade, plain, (1, 0, 0))


def crowd(rng, name: str, side: int = 112, size=(0.14, 0.75), alone=0.3, most=4, fade=0.0, plain=0.3) -> Captioned:
    r"""A picture with ``name`` in it, which its caption names, and up to ``most`` things in all.

    The chance that a thing of a given size is the one that is named grows in proportion to its size. ``alone``: share
    of pictures without another thing (the named one may then be as large as in a portrait).
    """
    drawn = _drawn(rng, name)
    n = int(rng.integers(2, most + 1)) if rng.uniform() >= alone else 1
    sizes = rng.uniform(size[0], 0.95 if n == 1 else size[1], n)
    if drawn.kind == "thing":
        first = rng.choice(n, p=sizes / sizes.sum())
        sizes[[0, first]] = sizes[[first, 0]]
    others = _others(rng, drawn, n - 1)
    return _captioned(rng, name, drawn, sizes[0], others, sizes[1:], side, fade, plain, MORE)


def _drawn(rng, name: str) -> vocabulary.Concept:
    options = vocabulary.shown(name)
    return vocabulary.by_name()[options[rng.integers(len(options))]]


def _others(rng, drawn: vocabulary.Concept, n: int) -> list[vocabulary.Concept]:
    """``n`` other things, each as often as any."""
    things = [c for c in vocabulary.concepts() if c.kind == "thing" and c is not drawn]
    return [things[k] for k in rng.choice(len(things), n, replace=False)]


def _captioned(rng, name, drawn, size, others, sizes, side, fade, plain, more) -> Captioned:
    things, sizes = [*[drawn] * (drawn.kind == "thing"), *others], [*[size] * (drawn.kind == "thing"), *sizes]
    order = np.argsort(-np.array(sizes), kind="stable")  # the largest is painted first
    regions = _regions_with(rng, drawn.name) if drawn.kind == "stuff" else _any_regions(rng, plain)
    lost = rng.uniform(0, fade) if fade else 0.0
    law = scenes.SceneLaw(fade=lost, noise=0, covered=0.25)
    scene = scenes.compose(rng, [things[k] for k in order], [sizes[k] for k in order], regions, side, law=law)
    named = (name, *_further(rng, scene, drawn.name, name, more))
    template = _template(rng, _facts(drawn, size, len(things), regions, lost))
    caption = template.format(" and a ".join(named))
    return Captioned(scene.image.transpose(2, 0, 1), scene.names, named, caption)


def _further(rng, scene, drawn: str, name: str, chances) -> list[str]:
    """Up to two more labels of what can be seen, by its share of the picture, now and then by a word above it."""
    n = int(rng.choice(3, p=chances))
    shares = np.bincount(scene.owner.ravel(), minlength=256)[: len(scene.drawn)].astype(float)
    shares[scene.drawn.index(drawn)] = 0
    found: list[str] = []
    for _ in range(min(n, np.count_nonzero(shares))):
        k = rng.choice(len(shares), p=shares / shares.sum())
        shares[k] = 0
        label, words = scene.drawn[k], vocabulary.ancestors(scene.drawn[k])
        if words and rng.uniform() < WORD:
            label = words[rng.integers(len(words))]
        if label != name and label not in found:
            found.append(label)
    return found


def _facts(drawn, size: float, things: int, regions, lost: float) -> list[str]:
    """Keys of ``TELLING`` that hold."""
    layers = [layer for layer, _ in regions]
    holds = {
        "small": drawn.kind == "thing" and size < SMALL,
        "large": drawn.kind == "thing" and size > LARGE,
        "one": things == 1 and drawn.kind == "thing",
        "several": things > 1,
        "outdoors": "sky" in layers,
        "indoors": "floor" in layers,
        "plain": regions == [("whole", None)],
        "pale": things > 0 and lost > PALE,
        "colourful": things > 0 and lost < COLOURFUL,
    }
    return [fact for fact, true in holds.items() if true]


def _template(rng, facts: list[str]) -> str:
    if not facts or rng.uniform() < 0.5:
        return NEUTRAL[rng.integers(len(NEUTRAL))]
    own = TELLING[facts[rng.integers(len(facts))]]
    return own[rng.integers(len(own))]


def _any_regions(rng, plain: float) -> list[tuple[str, str | None]]:
    """A plain texture, or any stuff."""
    if rng.uniform() < plain:
        return [("whole", None)]
    return _regions_with(rng, list(stuff.STUFF)[rng.integers(len(stuff.STUFF))])


def _regions_with(rng, name: str) -> list[tuple[str, str | None]]:
    """Regions with a kind of stuff: it alone, or in its place among others."""
    layer = stuff.STUFF[name][1]
    if layer == "pattern" or rng.uniform() < 0.4:
        return [("whole", name)]
    kinds = ["wall", "floor"] if layer in ("wall", "floor") else ["sky", "far", "ground"]
    if layer in ("sky", "ground") and rng.uniform() < 0.5:
        kinds.remove("far")
    own = {kind: [n for n, (_, other) in stuff.STUFF.items() if other == kind] for kind in kinds}
    return [(kind, name if kind == layer else own[kind][rng.integers(len(own[kind]))]) for kind in kinds]
