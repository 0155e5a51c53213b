"""The recipe of the mini VLP: its losses by hand, its batches and captions, its schedule, and a run that goes on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hrcf_lib import vlp
from hrcf_lib.data.mojiscenes import captions, vocabulary
from hrcf_lib.data.mojiscenes import scenes as scenes_module
from hrcf_lib.studies import pretrain_mini
from hrcf_lib.studies.pretrain_mini import (
    CaptionedBatches,
    PretrainConfig,
    cone_loss,
    contrastive_loss,
    global_logits,
    learning_rate,
    patch_logits,
    pretrain,
)

TINY = PretrainConfig(
    steps_small=2, steps_full=3, alone=1, final_steps=1, batch=4, workers=0, save_every=1, warmup=1, distractors=1.0
)


@pytest.fixture(scope="module")
def model():
    return vlp.create_mini().model


@pytest.mark.slow
def test_pretraining_learns_and_resumes(tmp_path):
    """Stopped after some steps and taken up again, pre-training ends with the same weights."""
    quiet = lambda message: None
    whole = pretrain(TINY, tmp_path / "whole", quiet)
    pretrain(TINY, tmp_path / "parts", quiet, budget=0.0)  # one step a call
    parts = pretrain(TINY, tmp_path / "parts", quiet)
    assert len(parts.history) == TINY.total == 5
    same = [torch.equal(a, b) for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True)]
    assert all(same)
    with pytest.raises(ValueError, match="another recipe"):
        pretrain(replace(TINY, batch=5), tmp_path / "parts", quiet)


def test_contrastive_loss_by_hand(model):
    x, t = torch.eye(3), torch.eye(3)
    scale = float(model.logit_scale.detach().exp())
    loss, correct = contrastive_loss(global_logits(model, x, t))
    assert correct == 1
    expected = -torch.log_softmax(torch.tensor([scale, 0.0, 0.0]), 0)[0]
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-6)
    assert float(contrastive_loss(global_logits(model, x, t.roll(1, 0)))[1]) == 0


def test_a_caption_that_is_true_of_another_picture_is_no_negative_of_it():
    logits = torch.tensor([[2.0, 5.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
    true = torch.tensor([[True, True, False], [False, True, False], [False, False, True]])  # picture 0 is of both
    loss, correct = contrastive_loss(logits, true)
    rows = [torch.tensor([2.0, 0.0]), torch.tensor([3.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])]
    columns = [torch.tensor([2.0, 1.0, 0.0]), torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])]
    by_hand = [-torch.log_softmax(own, 0)[0] for own in (*rows, *columns)]  # its own caption, or picture, first
    assert float(loss) == pytest.approx(float(sum(by_hand)) / 6, abs=1e-6)
    assert correct == 1 and contrastive_loss(logits)[1] == pytest.approx(2 / 3)


def test_patch_logits_are_a_smooth_maximum_over_patches(model):
    rng = torch.Generator().manual_seed(0)
    patches, t = torch.randn(3, 7, 5, generator=rng), torch.randn(3, 5, generator=rng)
    found = patch_logits(model, patches, t)
    each = torch.stack([global_logits(model, patches[:, j], t) for j in range(7)], dim=1)  # (3, 7, 3)
    assert torch.allclose(found, each.exp().mean(dim=1).log(), atol=1e-4)
    assert (found <= each.amax(dim=1)).all() and (found >= each.mean(dim=1)).all()


def test_the_cone_loss_by_hand():
    """Two pictures and two captions in the plane, all at known angles."""
    at = lambda degrees: torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])
    x, t = at([0, 60]), at([30, 50])
    pictures = (2 + 2 * math.cos(math.radians(60))) / 4  # mean over pairs, each with itself too
    texts = (2 + 2 * math.cos(math.radians(20))) / 4
    s = torch.cos(torch.deg2rad(torch.tensor([[30.0, 50.0], [30.0, 10.0]])))
    rho = (s.mean(1) / s.std(1)).mean()
    expected = (pictures - 0.52) ** 2 + (texts - 0.7) ** 2 + (float(rho) / 10 - 1) ** 2
    assert float(cone_loss(3 * x, 2 * t)) == pytest.approx(expected, abs=1e-5), "and lengths play no part"


def cone(B=4, pictures=0.52, texts=0.7, ratio=10.0):
    """Embeddings whose mean cosines, self included, and ratio of scores are as asked: pairs about two axes."""
    sign = torch.tensor([1.0, -1.0]).repeat(B // 2)[:, None]  # (B, 1)
    axis, e = torch.eye(3)[0], torch.eye(3)[1]
    mean = math.sqrt(pictures * texts)
    c = mean / (ratio * math.sqrt((1 - pictures) * (1 - texts)) * math.sqrt(B / (B - 1)))
    f = torch.tensor([0, c, math.sqrt(1 - c * c)])
    x = math.sqrt(pictures) * axis + math.sqrt(1 - pictures) * sign * e
    return x, math.sqrt(texts) * axis + math.sqrt(1 - texts) * sign * f


def test_the_cone_loss_is_zero_where_cosines_are_as_wanted():
    x, t = cone()
    assert cone_loss(x, t).item() == pytest.approx(0, abs=1e-8)
    assert cone_loss(7 * x, t / 3).item() == pytest.approx(0, abs=1e-8), "lengths do not matter"
    for changes, expected in [
        ({"pictures": 0.3}, 0.22**2),
        ({"texts": 0.9}, 0.2**2),
        ({"ratio": 5.0}, 0.5**2),
        ({"texts": 0.6, "ratio": 12.0}, 0.1**2 + 0.2**2),
    ]:
        assert cone_loss(*cone(**changes)).item() == pytest.approx(expected, rel=1e-4), changes


def test_a_batch_says_which_captions_hold_of_which_pictures():
    config = replace(TINY, batch=12, alone=0, crowds_full=1.0)
    images, texts, true = CaptionedBatches(config, first=2)[0]
    again = CaptionedBatches(config)[2]
    assert torch.equal(images, again[0]) and texts == again[1] and torch.equal(true, again[2]), "of the step alone"
    assert images.shape == (12, 3, 112, 112) and len(texts) == 12 and true.shape == (12, 12)
    assert true.diagonal().all(), "its own caption holds"
    assert CaptionedBatches(config)[0][0].shape == (12, 3, 56, 56) and len(CaptionedBatches(config, 2)) == 3


@pytest.fixture
def noted(monkeypatch):
    """Captioned pictures in the order in which they are made, with the kind of each."""
    made, painters = [], {"crowd": pretrain_mini.crowd, "portrait": pretrain_mini.portrait}
    for name in painters:

        def make(*given, name=name, **named):
            made.append((name, painters[name](*given, **named)))
            return made[-1][-1]

        monkeypatch.setattr(pretrain_mini, name, make)
    return made


@pytest.mark.parametrize("step", [0, 1])
def test_which_captions_are_true_is_what_a_plain_loop_finds(noted, step):
    config = replace(TINY, steps_small=1, alone=0, crowds_small=0.5, crowds_full=1.0, batch=24)
    images, texts, true = CaptionedBatches(config)[step]
    side = (56, 112)[step]
    assert images.shape == (24, 3, side, side) and images.dtype == torch.uint8 and len(texts) == 24
    assert true.shape == (24, 24) and true.dtype == torch.bool and true.diagonal().all()
    for i, (_, picture) in enumerate(noted):
        assert texts[i] == picture.caption and torch.equal(images[i], torch.from_numpy(picture.image))
        for j, (_, other) in enumerate(noted):
            assert true[i, j] == set(other.named).issubset(picture.labels)
    assert 24 < true.sum() < 24 * 24, "captions hold of other pictures too"
    assert len({picture.named[0] for _, picture in noted}) == 24, "each of another label"
    assert {name for name, _ in noted} == ({"crowd", "portrait"} if step == 0 else {"crowd"})


def test_a_crowd_names_what_it_shows_and_large_things_more_often(monkeypatch):
    rng, composed = np.random.default_rng(0), []
    real = scenes_module.compose
    monkeypatch.setattr(scenes_module, "compose", lambda *a, **k: (composed.append(a[1:3]), real(*a, **k))[1])
    above = {parent for c in vocabulary.concepts() for parent in c.parents}  # of a dog, a poodle may be drawn
    names = [c.name for c in vocabulary.concepts() if c.kind == "thing" and c.name not in above][:100]
    pictures = [captions.crowd(rng, names[k % 100], 56, alone=0.0, plain=1.0) for k in range(150)]
    place = []
    for k, ((things, sizes), picture) in enumerate(zip(composed, pictures, strict=True)):
        assert picture.named[0] == names[k % 100] and list(sizes) == sorted(sizes, reverse=True)
        assert all(name in picture.caption for name in picture.named) and set(picture.named) <= set(picture.labels)
        place.append(([t.name for t in things].index(names[k % 100]), len(things)))
    largest, smallest = sum(p == 0 for p, _ in place), sum(p == n - 1 for p, n in place)
    assert largest > 1.3 * smallest > 0


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth():
    recipe = PretrainConfig()
    rates = [learning_rate(s, recipe) for s in range(recipe.total)]
    assert max(rates) == pytest.approx(recipe.lr) == rates[recipe.warmup]
    assert rates[0] < rates[recipe.warmup // 2] < rates[recipe.warmup]
    assert rates[recipe.warmup :] == sorted(rates[recipe.warmup :], reverse=True)
    assert rates[-1] == pytest.approx(recipe.lr / 100, rel=0.01)
