"""Controls that should do worse: scorers that RSA and RSS are compared with, and labels of other pictures."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hrcf_lib import scores
from hrcf_lib.engine.messages import check_known


def aggregate_by(config, how: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """A scorer: HSA at test time with another aggregation, ``how`` of ``scores.score``; RSS as the config says."""
    return lambda e_g, regions, t: scores.score(e_g, regions, t, config, select=config.rss, at_test=True, how=how)


def uniform_weights(config):
    """Control for RSA: Eq. 13 with every weight 1/K, so that a region counts alike for all labels."""
    return aggregate_by(config, lambda regions, t: regions.sum(dim=1) @ t.T / len(t))  # (B, K) = sum_j s_jk / K


def random_selection(config, seed: int = 0):
    """Control for RSS: as many regions, drawn at random for each picture."""
    rng = torch.Generator().manual_seed(seed)

    def scorer(e_g, regions, t):
        values = torch.rand(regions.shape[:2], generator=rng).to(regions.device)
        return _score_best(e_g, regions, t, values, config)

    return scorer


def _score_best(e_g, regions, t, values, config) -> Tensor:
    """Scores from as many regions as RSS keeps, those of highest ``values`` (B, J)."""
    kept = scores.take_best(regions, values, scores.regions_to_keep(config, regions.shape[1]))
    return scores.score(e_g, kept, t, config, select=False, at_test=True)


def without_rss(config):
    """Control for RSS: all regions are scored, as in training."""
    return lambda e_g, regions, t: scores.score(e_g, regions, t, config, select=False, at_test=True)


RULES = {  # rule to select regions by in place of the sum of Eq. 17: (B, J, D), (K, D) -> (B, J), highest first
    "largest score": lambda e, t: scores.region_scores(e, t).amax(dim=-1),
    "least entropy": lambda e, t: torch.special.entr(scores.region_scores(e, t).softmax(dim=-1)).sum(dim=-1).neg(),
    "norm": lambda e, t: e.norm(dim=-1),
}


def select_by(rule: str):
    """RSS by a rule of ``RULES`` in place of the sum of Eq. 17: a function config -> scorer."""
    check_known([rule], list(RULES), "no rule of selection")

    return lambda config: lambda e_g, regions, t: _score_best(e_g, regions, t, RULES[rule](regions, t), config)


CONTROLS = {"RSA with uniform weights": uniform_weights, "RSS with random selection": random_selection}


def shuffled_labels(feats: dict, pictures: int | None, seed: int = 0) -> dict:
    """``sources`` whose first ``pictures`` of train (None: all) have each other's labels; the other splits stay."""
    data = feats["train"]
    n = min(pictures or len(data), len(data))
    return feats | {"train": data.take(range(n), labels_of=np.random.default_rng(seed).permutation(n))}
