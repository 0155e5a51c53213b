"""Captions of training pictures: what they name is there, what they say holds, and large things are named most."""

from collections import Counter

import numpy as np
import pytest

from hrcf_lib.data.mojiscenes import captions, scenes, stuff, vocabulary
from hrcf_lib.data.mojiscenes.captions import NEUTRAL, TELLING, TEMPLATES, crowd, portrait

SIDE = 32
NAMES = ("dog", "bus", "coffee", "sea", "mountain", "brick wall", "carpet", "stripes", "animal", "water", "food")
BY_NAME = vocabulary.by_name()


def drawn(make, n, **arguments):
    """``n`` pictures of ``NAMES`` in turn, each with its scene and the arguments that it was composed of."""
    compose, found, calls = scenes.compose, [], []

    def noted(*given, **named):
        calls.append((compose(*given, **named), given, named))
        return calls[-1][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "compose", noted)
        for i in range(n):
            picture = make(np.random.default_rng([i, 5]), NAMES[i % len(NAMES)], SIDE, **arguments)
            found.append((picture, *calls.pop()))
    return found


@pytest.fixture(scope="module")
def crowds():
    return drawn(crowd, 150, fade=0.9)


@pytest.fixture(scope="module")
def portraits():
    return drawn(portrait, 150, distractors=0.5, fade=0.9)


def template_of(picture):
    named = " and a ".join(picture.named)
    (template,) = (t for t in TEMPLATES if t.format(named) == picture.caption)
    return template


def test_what_a_caption_names_holds_in_the_picture(crowds, portraits):
    for i, (picture, scene, *_) in enumerate([*crowds, *portraits]):
        assert picture.named[0] == NAMES[i % 150 % len(NAMES)] and len(set(picture.named)) == len(picture.named)
        assert set(picture.named) <= set(picture.labels) == set(scene.names)
        assert picture.image.shape == (3, SIDE, SIDE) and picture.image.dtype == np.uint8
        assert np.array_equal(picture.image.transpose(1, 2, 0), scene.image)
        assert template_of(picture) in TEMPLATES
        assert all(scene.mask(name).any() for name in picture.named[1:]), "what else is named can be seen"


def test_what_a_caption_says_is_true(crowds, portraits):
    said, pixel = Counter(), 1 / SIDE
    for picture, scene, given, named in [*crowds, *portraits]:
        template = template_of(picture)
        facts = [fact for fact, own in TELLING.items() if template in own]
        layers = [layer for layer, _ in given[3]]
        shown = set(vocabulary.shown(picture.named[0])) & set(scene.drawn)
        sizes = [max(x1 - x0, y1 - y0) / SIDE for x0, y0, x1, y1 in scene.boxes.tolist()]
        own = [size for size, name in zip(sizes, scene.names[: scene.things]) if name in shown]
        holds = {
            "small": bool(own) and min(own) < captions.SMALL + pixel,
            "large": bool(own) and max(own) > captions.LARGE - pixel,
            "one": scene.things == 1 and bool(own),
            "several": scene.things > 1,
            "outdoors": any(stuff.STUFF[name][1] == "sky" for name in scene.drawn[scene.things :]),
            "indoors": any(stuff.STUFF[name][1] == "floor" for name in scene.drawn[scene.things :]) and len(layers) > 1,
            "plain": scene.regions == 0,
            "pale": named["law"].fade > captions.PALE,
            "colourful": named["law"].fade < captions.COLOURFUL,
        }
        assert all(holds[fact] for fact in facts), (picture.caption, scene.names)
        said.update(facts or ["neutral"])
    assert said.keys() >= {*TELLING, "neutral"} and 0.4 < said["neutral"] / 300 < 0.65


def test_a_portrait_is_of_one_label_and_the_largest(portraits):
    numbers = Counter()
    for picture, scene, *_ in portraits:
        assert len(picture.named) == 1
        name = next(n for n in scene.drawn if n in vocabulary.shown(picture.named[0]))
        numbers[scene.things - (BY_NAME[name].kind == "thing")] += 1
        if BY_NAME[name].kind == "thing":
            assert scene.names[0] == name, "it is painted first and is the largest"
        else:
            assert scene.mask(name).mean() > 0.02
    assert set(numbers) == {0, 1, 2} and 0.35 < numbers[0] / 150 < 0.65
    alone = drawn(portrait, 12)
    assert all(scene.things <= 1 for _, scene, *_ in alone)


def test_a_superordinate_word_is_captioned_of_something_below_it(portraits):
    shown = {}
    for picture, scene, *_ in portraits:
        shown.setdefault(picture.named[0], set()).add(scene.drawn[0])
    assert len(shown["animal"]) > 5 and all("animal" in vocabulary.ancestors(name) for name in shown["animal"])
    assert len(shown["food"]) > 5


def test_crowds_show_up_to_four_things_and_name_up_to_three_labels(crowds):
    assert {scene.things for _, scene, *_ in crowds} == {0, 1, 2, 3, 4}
    assert [max(len(p.named) for p, *_ in crowds), min(len(p.named) for p, *_ in crowds)] == [3, 1]
    further = [name for p, *_ in crowds for name in p.named[1:]]
    assert {BY_NAME[name].kind for name in further} == {"thing", "stuff", "word"}
    for picture, *_ in crowds:  # a word names what the caption has not named
        assert not set(picture.named[1:]) & {picture.named[0]}


def test_the_larger_of_a_crowd_is_named_more_often():
    """Of two things on nothing, the named one is the larger with the chance of its share of both sizes."""
    named, chances = [], []
    for i in range(150):
        one = lambda *_, i=i: crowd(np.random.default_rng(i), "dog", SIDE, alone=0, most=2)
        ((_, _, (_, things, sizes, *_), _),) = drawn(one, 1)
        assert len(things) == 2 and sizes[0] >= sizes[1], "the largest is painted first"
        named.append("dog" in (things[0].name, *vocabulary.ancestors(things[0].name)))
        chances.append(sizes[0] / sum(sizes))
    assert np.mean(named) == pytest.approx(np.mean(chances), abs=0.1) and np.mean(chances) > 0.6


def test_the_same_generator_gives_the_same_picture():
    for make in (portrait, crowd):
        one, again, other = (make(np.random.default_rng(seed), "dog", SIDE) for seed in (1, 1, 2))
        assert np.array_equal(one.image, again.image) and one.caption == again.caption and one.labels == again.labels
        assert not np.array_equal(one.image, other.image)


def test_templates_differ_and_neutral_ones_say_nothing_else():
    assert len(set(TEMPLATES)) == len(TEMPLATES) == len(NEUTRAL) + sum(map(len, TELLING.values()))
    assert all(template.count("{}") == 1 for template in TEMPLATES)
