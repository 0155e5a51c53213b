"""The bootstrap against the metrics themselves, on the images of each resample written out."""

import numpy as np
import pytest
import torch

from hrcf_lib import metrics
from hrcf_lib.engine import chunks
from hrcf_lib.studies import bootstrap


def draw(n=60, K=7, seed=0, unknown=True):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1 if unknown else 0, 2, (n, K), generator=rng)
    labels = labels if unknown else 2 * labels - 1
    return torch.randn(n, K, generator=rng), labels


def test_resamples_are_as_large_as_the_split_and_begin_with_the_split_itself():
    weights = bootstrap.draw(50, 20)
    assert weights.shape == (50, 21) and torch.equal(weights[:, 0], torch.ones(50))
    assert torch.equal(weights.sum(dim=0), torch.full((21,), 50.0))
    assert weights[:, 1:].max() > 1, "with replacement"
    assert torch.equal(weights, bootstrap.draw(50, 20)) and not torch.equal(weights, bootstrap.draw(50, 20, seed=1))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("part", [2**25, 100])
def test_map_is_that_of_the_images_repeated(ties, part, monkeypatch):
    monkeypatch.setattr(chunks, "COMPARISONS", part)
    scores, labels = draw()
    scores = scores.round() if ties else scores
    labels[:, 3] = torch.where(torch.arange(60) == 4, 1, -1)  # one positive, which many resamples lose
    weights = bootstrap.draw(60, 12)
    got = bootstrap.resampled_map(scores, labels, weights)
    assert (weights[4] == 0).any()
    for r, w in enumerate(weights.T):
        rows = torch.arange(60).repeat_interleave(w.long())
        assert got[r].item() == pytest.approx(metrics.mean_average_precision(scores[rows], labels[rows], "skip"))


def test_f1_is_that_of_the_images_repeated():
    scores, labels = draw(unknown=False)
    weights = bootstrap.draw(60, 12)
    got = bootstrap.resampled_f1(scores, labels, weights, 3)
    for r, w in enumerate(weights.T):
        rows = torch.arange(60).repeat_interleave(w.long())
        assert got[r].item() == pytest.approx(metrics.precision_recall_f1_at_k(scores[rows], labels[rows], 3)[2])


def test_weights_of_other_images_are_refused():
    scores, labels = draw()
    with pytest.raises(ValueError, match=r"weights \(59, 4\) .* of 60 images"):
        bootstrap.resampled_map(scores, labels, bootstrap.draw(59, 3))
    with pytest.raises(ValueError, match="k = 8"):
        bootstrap.resampled_f1(scores, labels, bootstrap.draw(60, 3), 8)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Differences of known mean between images: 95 % intervals hold it in most of 200 repetitions."""
    rng, hits = np.random.default_rng(0), 0
    weights = bootstrap.draw(200, 300)
    for _ in range(200):
        values = torch.from_numpy(rng.normal(0.3, 1, (3, 200))).float()  # three seeds, 200 images, mean 0.3
        runs = [v @ weights / 200 for v in values]
        at, low, high = bootstrap.paired_difference(runs, [torch.zeros(301)] * 3)
        assert at == pytest.approx(values.mean().item(), abs=1e-5) and low < at < high
        hits += low <= 0.3 <= high
    assert 0.85 <= hits / 200 <= 0.99


def test_a_bias_of_the_resamples_is_taken_out():
    ours = torch.cat([torch.tensor([0.2]), 0.5 + 0.01 * torch.randn(500, generator=torch.Generator().manual_seed(0))])
    at, low, high = bootstrap.paired_difference([ours], [torch.zeros(501)])
    assert at == pytest.approx(0.2) and (low + high) / 2 == pytest.approx(0.2, abs=0.003)


def test_seeds_that_disagree_widen_the_interval():
    weights = bootstrap.draw(100, 300)
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)) @ weights / 100
    zero = [torch.zeros(301)] * 3
    _, low, high = bootstrap.paired_difference([values] * 3, zero)
    _, lower, higher = bootstrap.paired_difference([values - 1, values, values + 1], zero)
    assert higher - lower > 2 * (high - low)
    with pytest.raises(ValueError, match="3 and 2 runs cannot be paired"):
        bootstrap.paired_difference(zero, zero[:2])


@pytest.mark.parametrize(
    "bounds, word", [((0.1, 2), "better"), ((-2, -0.1), "worse"), ((-1, 1), "open"), ((0, 1), "open")]
)
def test_verdict(bounds, word):
    assert bootstrap.verdict(*bounds) == word
