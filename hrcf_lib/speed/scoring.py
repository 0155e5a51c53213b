"""Rows on losses, scores and metrics."""

import numpy as np
from torch import Tensor, no_grad
from torch.nn.functional import normalize

from hrcf_lib import config as configs
from hrcf_lib import losses, metrics, scores
from hrcf_lib.speed import plain
from hrcf_lib.speed.compare import REPEATS, compare_times, compare_values, max_difference, median_and_spread, seconds
from hrcf_lib.speed.inputs import Sizes, random_labels, random_normal


def ranking_loss(sizes: Sizes) -> dict:
    """The ranking loss by sorting, against all pairs."""
    return _ranking(sizes.B, sizes.K, some=sizes.B)


def ranking_loss_large(sizes: Sizes) -> dict:
    """The ranking loss at the batch and the labels of Open Images, where a tensor of all pairs does not fit."""
    return _ranking(sizes.B_large, sizes.K_large, some=min(4, sizes.B_large))


def _ranking(B: int, K: int, some: int) -> dict:
    """The plain form runs on ``some`` pictures, and its time is multiplied by B / some."""
    s, y = normalize(random_normal(B, K)), random_labels(B, K)  # scores as in training: all pairs violate the margin
    spread = random_normal(B, K)  # some pairs violate it
    step = lambda form, n: lambda: form(s[:n].detach().requires_grad_(), y[:n]).backward()
    forms = step(plain.ranking_loss, some), step(losses.ranking_loss, B)
    row, _ = compare_times(*forms, repeats=REPEATS if some < B else 9, share=some / B)
    same = {}
    for reduction in ("violations", "sum"):
        for name, x in {"all": s, "some": spread}.items():
            forms = [lambda s, f=f, r=reduction: f(s, y[:some], r) for f in (plain.ranking_loss, losses.ranking_loss)]
            same[reduction, name] = compare_values(*forms, {"s": x[:some]})
    row["max_abs_diff"] = max(same["violations", name]["max_abs_diff"] for name in ("all", "some"))
    row["grad_rel_diff"] = max(found["grad_rel_diff"] for found in same.values())
    sorting = lambda: losses.ranking_loss(spread.detach().requires_grad_(), y).backward()
    row["sorted_s"], _ = median_and_spread(seconds(sorting) for _ in range(REPEATS))
    row["ratio_sorted"] = row["plain_s"] / row["sorted_s"]
    note = f"{row['ratio_sorted']:,.0f} x where not all pairs violate; gradients of both reductions"
    if some < B:
        note += f"; plain form timed on {some} pictures, times {B / some:g}: {B} take {4e-9 * B * K**2:.0f} GB a tensor"
    return row | {"what": f"ranking loss, B = {B}, K = {K:,}, forward and backward", "note": note}


def hsa_memory(sizes: Sizes) -> dict:
    """Scores of a batch at test time (RSS, then RSA in chunks), against one (B, J, K) tensor of all region scores."""
    config, (e_g, regions, t) = configs.PRESETS["open_images"](), _embeddings(sizes)
    forms = [no_grad()(lambda f=f: f(e_g, regions, t, config, True)) for f in (plain.score, scores.score)]
    row, results = compare_times(*forms)
    what = f"HSA with RSS, B = {len(e_g)}, J = {regions.shape[1]}, K = {len(t):,}, no gradient"
    return row | {"max_abs_diff": max_difference(*results), "what": what}


def hsa_training(sizes: Sizes) -> dict:
    """The same in training: no RSS, forward and backward to the regions."""
    config, (e_g, regions, t) = configs.PRESETS["open_images"](), _embeddings(sizes)
    step = lambda form: lambda: form(e_g, regions.detach().requires_grad_(), t, config, False).sum().backward()
    row, _ = compare_times(step(plain.score), step(scores.score))
    forms = [lambda e_g, regions, t, f=f: f(e_g, regions, t, config, False) for f in (plain.score, scores.score)]
    row |= compare_values(*forms, {"e_g": e_g[:8], "regions": regions[:8], "t": t})
    return row | {"what": f"HSA, B = {len(e_g)}, J = {regions.shape[1]}, K = {len(t):,}, forward and backward"}


def _embeddings(sizes: Sizes, D: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """e_g, regions and label embeddings whose scores spread as CLIP's do, by a few units."""
    B, K = sizes.B_large, sizes.K_all
    return random_normal(B, D), random_normal(B, scores.REGIONS, D, seed=1), random_normal(K, D, scale=0.1, seed=2)


def map_metric(sizes: Sizes) -> dict:
    """AP of every label of a whole test set, against scikit-learn, label by label."""
    s, y = random_normal(sizes.N, sizes.K_test).cpu(), random_labels(sizes.N, sizes.K_test, positives=10).cpu()
    some = min(sizes.K_test, 64)  # one label takes scikit-learn as long as another
    forms = lambda: plain.average_precision(s[:, :some], y[:, :some]), lambda: metrics.average_precision(s, y)
    row, results = compare_times(*forms, share=some / sizes.K_test)
    expected, ours = np.asarray(results[0], np.float64), np.asarray(results[1], np.float64)[:some]
    row["max_abs_diff"] = float(np.nanmax(np.abs(ours - expected)))
    row |= {"what": f"AP of {sizes.N:,} x {sizes.K_test:,} scores against scikit-learn's loop"}
    return row | {"note": f"scikit-learn timed on {some} labels, times {sizes.K_test / some:.3g}"}
