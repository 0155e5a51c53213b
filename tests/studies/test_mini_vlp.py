"""How the mini VLP is measured, against plain loops and VLPs whose answers are known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hrcf_lib import metrics
from hrcf_lib.config import mini
from hrcf_lib.data import mojiscenes
from hrcf_lib.data.mojiscenes import vocabulary
from hrcf_lib.data.mojiscenes.captions import TEMPLATES
from hrcf_lib.model import HRCF
from hrcf_lib.studies import mini_vlp
from hrcf_lib.studies.mini_vlp import GATES, LIKENESS, PROMPTS, Wanted, pairs, softmax, table

NAMES = vocabulary.names()
COLUMN = {name: k for k, name in enumerate(NAMES)}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Knowing:
    """A VLP that knows what its pictures show: an embedding has ``weight(scene, name)`` for each name that holds.

    Its texts are one-hot, and less sure of themselves in the templates of ``worse``.
    """

    def __init__(self, weight=lambda scene, name: 1.0, worse=()):
        self.weight, self.worse, self.known = weight, worse, {}

    def learn(self, scenes):
        for scene in scenes:
            key = scene.image.transpose(2, 0, 1).tobytes()
            self.known[key] = {name: self.weight(scene, name) for name in scene.names}
        return self

    def encode_image(self, images):
        e = torch.zeros(len(images), len(NAMES) + 1)
        e[:, -1] = 1e-3
        for row, image in zip(e, images):
            for name, weight in self.known[image.contiguous().numpy().tobytes()].items():
                row[COLUMN[name]] = weight
        return e

    def encode_text(self, texts):
        t = torch.zeros(len(texts), len(NAMES) + 1)
        for row, text in zip(t, texts):
            prompt = max((p for p in (*PROMPTS, *TEMPLATES) if matches(p, text)), key=len)
            start, end = prompt.split("{}")
            name = text[len(start) : len(text) - len(end)]
            row[COLUMN[name]] = -1.0 if prompt in self.worse else 1.0
        return t


def matches(prompt, text):
    start, end = prompt.split("{}")
    return text.startswith(start) and text.endswith(end) and text[len(start) : len(text) - len(end)] in COLUMN


def test_pairs_are_what_a_plain_loop_finds():
    x = random(6, 4)
    cosines = [float(F.cosine_similarity(x[i], x[j], dim=0)) for i in range(6) for j in range(6) if i != j]
    assert pairs(x) == pytest.approx((np.mean(cosines), np.std(cosines, ddof=1)), abs=1e-6)
    assert pairs(torch.ones(3, 4)) == pytest.approx((1, 0), abs=1e-6)
    assert pairs(3 * x) == pytest.approx(pairs(x), abs=1e-6), "length does not matter"


def test_softmax_is_what_a_plain_loop_finds():
    e, t = random(2, 3, 4), random(5, 4, seed=1)
    entropies, best = [], []
    for row in e.reshape(-1, 4):
        scores = [math.exp(float(row @ label)) for label in t]
        p = [s / sum(scores) for s in scores]
        entropies.append(-sum(q * math.log(q) for q in p) / math.log(5))
        best.append(max(p))
    assert softmax(e, t) == pytest.approx((np.mean(entropies), np.mean(best)), abs=1e-5)
    assert softmax(torch.zeros(2, 4), t) == pytest.approx((1, 1 / 5))
    assert softmax(1000 * torch.eye(5), torch.eye(5)) == pytest.approx((0, 1), abs=1e-6)


def test_a_table_says_what_is_met():
    wanted = (Wanted("a", 1, 2, 1.5), Wanted("b", 0.0, math.inf, None), Wanted("c", -1, 1, 0.0))
    found = table(wanted, {"a": 2, "b": -0.1, "c": math.nan, "more": 3})
    assert found.index.tolist() == ["a", "b", "c"] and found["met"].tolist() == [True, False, False]
    assert found.loc["a", ["mini VLP", "CLIP", "from", "to"]].tolist() == [2, 1.5, 1, 2]
    with pytest.raises(KeyError, match="c"):
        table(wanted, {"a": 1, "b": 1})


def test_the_criteria_are_those_that_were_fixed():
    bounds = {w.what: (w.low, w.high) for w in (*LIKENESS, *GATES)}
    assert bounds["cosine between label texts"] == (0.6, 0.85) and bounds["its deviation"] == (0, 0.1)
    assert bounds["cosine between pictures"] == (0.3, 0.75)
    assert bounds["mean / deviation over labels of a picture's scores"] == (5, 15)
    for what in ("a picture", "a region before training"):
        assert bounds[f"entropy / log K of {what}, K = 81"] == (0.45, 0.7)
        assert bounds[f"largest probability of {what}, K = 81"] == (0.2, 0.45)
    assert bounds["top-1 of single things (%)"][0] == 70 and bounds["seen less unseen top-1 (points)"] == (-10, 10)
    assert bounds["plain VLP, ZSL mAP on val"] == (20, 40) and bounds["plain VLP, GZSL mAP on val"] == (8, 25)
    assert bounds["recall of the largest thing / of small ones"][0] == 4


# --- accuracy --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def test_scenes():
    return [mojiscenes.draw("test", i) for i in range(12)]


def test_words_above_a_thing_are_neither_hits_nor_misses():
    """Five pictures: two right with a word above them ahead, one second, one sixth, one of stuff that is wrong."""
    names = ["dog", "sea", "bus", "cat", "sand"]
    others = [n for n in NAMES if vocabulary.by_name()[n].kind == "thing" and n not in names]
    scores = torch.zeros(5, len(NAMES))
    for row, best in enumerate(
        [["animal", "pet", "mammal", "dog"], ["water", "sea"], [others[0], "bus"], [*others[:5], "cat"], ["sea"]]
    ):
        scores[row, [COLUMN[name] for name in best]] = torch.linspace(1, 0.5, len(best))
    scores[4] -= torch.arange(len(NAMES)) * 1e-3  # the rest in file order: sand is far down
    texts = Knowing().encode_text
    stub = SimpleNamespace(encode_image=lambda x: scores[x.long()], encode_text=lambda names: texts(names)[:, :-1])
    found = mini_vlp.single_object_accuracy(stub, torch.arange(5), names)
    assert found.loc["whole vocabulary"].tolist() == pytest.approx([40, 60, 5])
    assert found.loc["thing"].tolist() == pytest.approx([100 / 3, 200 / 3, 3])
    assert found.loc["stuff"].tolist() == pytest.approx([50, 50, 2]) and "word" not in found.index
    parts = [vocabulary.by_name()[n].part for n in names]
    assert parts.count("test-unseen") == 5 and found.loc["test-unseen", "pictures"] == 3, "parts are of things"


def test_portraits_are_of_everything_that_is_drawn_from_their_own_streams(monkeypatch):
    made = []

    def portrait(rng, name, side, plain):
        made.append((name, rng.integers(1 << 40), side, plain))
        return SimpleNamespace(image=np.full((3, side, side), len(made) % 256, np.uint8))

    monkeypatch.setattr(mini_vlp, "portrait", portrait)
    images, names = mini_vlp.portraits(2, seed=3, side=4)
    drawn = [c.name for c in vocabulary.concepts() if c.kind != "word"]
    assert names == [name for name in drawn for _ in range(2)] == [name for name, *_ in made]
    assert images.shape == (2 * len(drawn), 3, 4, 4) and images.dtype == torch.uint8
    assert made[0][1] == np.random.default_rng([2, 3, 0, 0]).integers(1 << 40) and made[0][2] == 4
    assert len({number for _, number, *_ in made}) == len(made)


# --- scenes ----------------------------------------------------------------------------------------------------------


def share(scene, name):
    """Size of what a name's box encloses."""
    x0, y0, x1, y1 = scene.boxes[scene.names.index(name)]
    return float(max(x1 - x0, y1 - y0)) / scene.image.shape[0]


def test_recall_by_size_is_what_a_plain_loop_finds(test_scenes):
    """A VLP that finds one thing a picture, the largest: with k = 1 it misses all others."""
    n = len(test_scenes)
    first = Knowing(lambda scene, name: 1.0 if name == scene.names[0] else 0.1).learn(test_scenes)
    found = mini_vlp.recall_by_size(first, n, "test", k=1)
    sizes = [(share(s, name), i == 0) for s in test_scenes for i, name in enumerate(s.names[: s.things])]
    rows = {
        "small (under 25 %)": lambda size, _: size < 0.25,
        "medium (25-45 %)": lambda size, _: 0.25 <= size < 0.45,
        "large (over 45 %)": lambda size, _: size >= 0.45,
        "largest of its scene": lambda _, largest: largest,
        "all others": lambda _, largest: not largest,
    }
    assert found.index.tolist() == list(rows) and found.columns.tolist() == ["recall@1", "things"]
    for row, holds in rows.items():
        own = [largest for size, largest in sizes if holds(size, largest)]
        assert found.loc[row, "things"] == len(own) > 0
        assert found.loc[row, "recall@1"] == pytest.approx(100 * np.mean(own))
    assert mini_vlp.recall_by_size(first, n, "test", k=3)["recall@3"].tolist() == [100] * 5


def test_templates_are_compared_by_the_metric_of_each_task():
    scenes = mojiscenes.MojiScenes("val", 8)
    drawn = [scenes.scene(i) for i in range(8)]
    y = torch.stack([scenes.labels_of(s) for s in drawn])
    sure, inverse = "a photo of a {}.", "a small {}."
    knowing = Knowing(share, worse=(inverse,)).learn(drawn)
    found = mini_vlp.by_template(knowing, 8, "val", (sure, inverse))
    assert found.index.tolist() == [sure, inverse] and found.loc[sure].tolist() == pytest.approx([100, 100])
    e = F.normalize(
        knowing.encode_image(torch.from_numpy(np.stack([s.image.transpose(2, 0, 1) for s in drawn]))), dim=-1
    )
    s = -e[:, [COLUMN[name] for name in scenes.labels.names]]
    for task in ("ZSL", "GZSL"):
        own = scenes.labels.columns(task)
        expected = 100 * metrics.mean_average_precision(s[:, own], y[:, own], "skip")
        assert found.loc[inverse, task] == pytest.approx(expected) and expected < 60


def test_likeness_and_gates_have_a_row_for_each_criterion(monkeypatch):
    drawn = [mojiscenes.draw("val", i) for i in range(10)]
    knowing = Knowing(share, worse=("a small {}.",)).learn(drawn)
    monkeypatch.setattr(mini_vlp, "untrained_regions", lambda vlp, images: vlp.encode_image(images)[:, None])
    found = mini_vlp.geometry(knowing, 10)
    texts = knowing.encode_text(list(NAMES))
    asked = knowing.encode_text(list(vocabulary.names("val-unseen")))
    assert found["cosine between label texts"] == pytest.approx(pairs(texts)[0])
    e = knowing.encode_image(torch.from_numpy(np.stack([s.image.transpose(2, 0, 1) for s in drawn])))
    assert found["entropy / log K of a picture, K = 81"] == pytest.approx(softmax(e, asked)[0])
    assert found["largest probability of a region before training, K = 81"] == pytest.approx(softmax(e[:2], asked)[1])
    s = F.normalize(e, dim=-1) @ texts.T
    ratio = found["mean / deviation over labels of a picture's scores"]
    assert ratio == pytest.approx(float(np.mean([float(row.mean() / row.std()) for row in s])), rel=1e-4)
    accuracy = {"thing": 80.0, "seen": 85.0, "val-unseen": 78.0, "test-unseen": 73.0}
    monkeypatch.setattr(mini_vlp, "portraits", lambda *_: (None, None))
    monkeypatch.setattr(mini_vlp, "single_object_accuracy", lambda *_: {"top-1": accuracy})
    frame = mini_vlp.likeness(knowing, 10)
    assert frame.index.tolist() == [w.what for w in LIKENESS]
    assert frame.loc["seen less unseen top-1 (points)", ["mini VLP", "met"]].tolist() == [12, False]
    assert frame.loc["top-1 of single things (%)", ["mini VLP", "met"]].tolist() == [80, True]
    gates = mini_vlp.gates(knowing, 10)
    assert gates.index.tolist() == [w.what for w in GATES]
    assert gates.loc["plain VLP, ZSL mAP on val", ["mini VLP", "met"]].tolist() == [pytest.approx(100), False]
    assert gates.loc["best less worst template, ZSL mAP on val", "mini VLP"] > 40


def test_regions_before_training_are_those_that_hcg_starts_from():
    """At its start HCG pools patch tokens: the same as the model's own regions."""
    model = HRCF(mini(), pretrained=False).eval()
    images = (random(3, 3, 112, 112).sigmoid() * 255).to(torch.uint8)
    with torch.no_grad():
        expected = model.image_embeddings(model.vlp.trunk(images))[1]
    found = mini_vlp.untrained_regions(model.vlp, images, batch=2)
    assert found.shape == (3, 140, 128)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
