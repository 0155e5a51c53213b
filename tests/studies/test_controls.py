"""Controls that RSA and RSS are compared with are what they say."""

import pytest
import synthetic
import torch

from hrcf_lib import scores
from hrcf_lib.studies import controls
from hrcf_lib.studies.controls import random_selection, uniform_weights


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rss", [True, False])
def test_uniform_weights_is_eq_13_with_weights_of_one_over_k(normalize, rss):
    config = synthetic.config(rss=rss, normalize_fusion=normalize, lam=0.6)
    e_g, regions, t = draw(3, 8), draw(3, 140, 8, seed=1), draw(5, 8, seed=2)
    kept = scores.select_regions(regions, t, 108) if rss else regions
    s = scores.region_scores(kept, t)  # (B, J, K)
    expected = scores.fuse(scores.global_scores(e_g, t), (s / 5).sum(dim=1), 0.6, normalize)
    torch.testing.assert_close(uniform_weights(config)(e_g, regions, t), expected)
    assert not torch.allclose(expected, scores.score(e_g, regions, t, config, select=rss), atol=1e-3)


def test_random_selection_keeps_as_many_regions_at_random(monkeypatch):
    config = synthetic.config(lam=1.0)
    marks = torch.arange(140.0).expand(6, 140).unsqueeze(-1)  # a region is its number
    seen = []
    monkeypatch.setattr(
        scores, "score", lambda e_g, regions, t, config, select, at_test: seen.append((regions, select))
    )
    scorer = random_selection(config)
    scorer(None, marks, None)
    kept, select = seen[0]
    assert kept.shape == (6, 108, 1) and select is False, "RSS must not choose once more"
    rows = [row.flatten().tolist() for row in kept]
    assert all(row == sorted(set(row)) for row in rows), "no region twice, in their order"
    assert len(set(map(tuple, rows))) == 6, "drawn for each picture"
    scorer(None, marks, None)
    assert not torch.equal(seen[1][0], kept), "and each time"
    random_selection(config)(None, marks, None)
    assert torch.equal(seen[2][0], kept), "the same for the same seed"
    random_selection(config, seed=1)(None, marks, None)
    assert not torch.equal(seen[3][0], kept)


def test_random_selection_is_fair():
    config = synthetic.config(keep=35)
    marks = torch.eye(140).expand(400, 140, 140)
    counts = torch.zeros(140)

    def count(e_g, regions, t, config, select, at_test):
        counts.add_(regions.sum(dim=(0, 1)))

    real, scores.score = scores.score, count
    try:
        random_selection(config)(None, marks, None)
    finally:
        scores.score = real
    assert counts.sum() == 400 * 35
    assert (counts - 100).abs().max() < 5 * (400 * 0.25 * 0.75) ** 0.5


def test_controls_keep_as_many_regions_as_the_method_does_without_hcg():
    config = synthetic.config(hcg=False, lam=1.0, normalize_fusion=False)
    regions, t = draw(2, 196, 8), draw(3, 8, seed=2)
    keep = scores.regions_to_keep(config, 196)
    expected = scores.region_scores(scores.select_regions(regions, t, keep), t).sum(dim=1) / 3
    torch.testing.assert_close(uniform_weights(config)(draw(2, 8), regions, t), expected)


def test_controls_are_named():
    assert set(controls.CONTROLS) == {"RSA with uniform weights", "RSS with random selection"}
    assert all(callable(make(synthetic.config())) for make in controls.CONTROLS.values())


def test_rules_of_selection_keep_what_they_say():
    """One label; regions whose score, certainty and norm differ in a known way."""
    t = torch.eye(2)
    regions = torch.tensor([[[3.0, 0.0], [1.0, 1.0], [0.0, -4.0], [2.0, 2.1]]])
    best = {rule: values(regions, t).argmax().item() for rule, values in controls.RULES.items()}
    assert best == {"largest score": 0, "least entropy": 2, "norm": 2}
    config = synthetic.config(keep=70)  # half of them
    seen = []
    scorer = controls.select_by("largest score")(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "score", lambda e, kept, t, config, select, at_test: seen.append((kept, select)))
        scorer(None, regions, t)
    assert torch.equal(seen[0][0], regions[:, [0, 3]]) and seen[0][1] is False, "in order, and RSS chooses no further"
    with pytest.raises(ValueError, match="no rule of selection 'largest'; did you mean 'largest score'"):
        controls.select_by("largest")


def test_shuffled_labels_are_those_of_the_same_pictures_in_another_order():
    feats = {split: synthetic.features(8, seed) for split, seed in (("train", 0), ("test", 1))}
    mixed = controls.shuffled_labels(feats, 6)
    rows = lambda data: sorted(map(tuple, data.labels.tolist()))
    assert mixed["test"] is feats["test"] and rows(mixed["train"]) == rows(feats["train"].take(range(6)))
    assert not torch.equal(mixed["train"].labels, feats["train"].labels[:6])
    assert torch.equal(mixed["train"].teacher, feats["train"].teacher[:6])
    assert len(controls.shuffled_labels(feats, None)["train"]) == 8 == len(controls.shuffled_labels(feats, 99)["train"])
