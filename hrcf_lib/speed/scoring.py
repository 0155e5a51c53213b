"""Rows on losses, scores and metrics."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hrcf_lib import config as configs
from hrcf_lib import losses, metrics, scores
from hrcf_lib.speed import plain
from hrcf_lib.speed.measure import Sizes, annotate, differ, draw, duel, far, peak_mb, seconds


def ranking_loss(sizes: Sizes) -> dict:
    """The ranking loss against the one over all pairs."""
    return _ranking(sizes.B, sizes.K, some=sizes.B)


def ranking_loss_large(sizes: Sizes) -> dict:
    """The same at the batch and the labels of Open Images, where a tensor of all pairs cannot be held."""
    return _ranking(sizes.B_large, sizes.K_large, some=min(4, sizes.B_large))


def _ranking(B: int, K: int, some: int) -> dict:
    """``some``: pictures that the plain form is given; its time is multiplied by B / some."""
    s, y = normalize(draw(B, K)), annotate(B, K)  # as training sees scores: divided by their norm, so all pairs violate
    spread = draw(B, K)  # some pairs violate
    step = lambda form, n: lambda: form(s[:n].detach().requires_grad_(), y[:n]).backward()
    row = duel(step(plain.ranking_loss, some), step(losses.ranking_loss, B), repeats=3 if some < B else 9)
    found = [_same(s[:some], y[:some], "violations"), _same(spread[:some], y[:some], "violations")]
    row["max_abs_diff"] = max(f["max_abs_diff"] for f in found)
    found += [_same(x[:some], y[:some], "sum") for x in (s, spread)]
    row["grad_rel_diff"] = max(f["grad_rel_diff"] for f in found)
    row |= {key: row[key] * B / some for key in ("ratio", "plain_s")}
    step_sorted = lambda: losses.ranking_loss(spread.detach().requires_grad_(), y).backward()
    row["sorted_s"] = min(seconds(step_sorted)[0] for _ in range(5))
    row["ratio_sorted"] = row["plain_s"] / row["sorted_s"]
    note = f"{row['ratio_sorted']:,.0f} x where not all pairs violate; gradients of both reductions"
    if some < B:
        note += f"; plain form timed on {some} pictures, times {B / some:g}: {B} take {4e-9 * B * K**2:.0f} GB a tensor"
    return row | {"what": f"ranking loss, B = {B}, K = {K:,}, forward and backward", "note": note}


def _same(s: Tensor, y: Tensor, reduction: str) -> dict:
    return differ(
        lambda s: plain.ranking_loss(s, y, reduction), lambda s: losses.ranking_loss(s, y, reduction), {"s": s}
    )


def hsa_memory(sizes: Sizes) -> dict:
    """Scores of a batch at test time (RSS, then RSA in chunks), against one (B, J, K) tensor of all of them."""
    config, (e_g, regions, t) = configs.PRESETS["open_images"](), _embeddings(sizes)
    forms = [lambda score=score: score(e_g, regions, t, config, True) for score in (plain.score, scores.score)]
    with torch.no_grad():
        row = duel(*forms, repeats=3) | {"max_abs_diff": far(*(form() for form in forms))}
    return row | {"what": f"HSA with RSS, B = {len(e_g)}, J = {regions.shape[1]}, K = {len(t):,}, no gradient"}


def hsa_training(sizes: Sizes) -> dict:
    """The same in training: no RSS, forward and backward to the regions."""
    config, (e_g, regions, t) = configs.PRESETS["open_images"](), _embeddings(sizes)
    step = lambda score: lambda: score(e_g, regions.detach().requires_grad_(), t, config, False).sum().backward()
    row = duel(step(plain.score), step(scores.score), repeats=2)
    forms = [
        lambda e_g, regions, t, score=score: score(e_g, regions, t, config, False)
        for score in (plain.score, scores.score)
    ]
    row |= differ(*forms, {"e_g": e_g[:8], "regions": regions[:8], "t": t})
    return row | {"what": f"HSA, B = {len(e_g)}, J = {regions.shape[1]}, K = {len(t):,}, forward and backward"}


def _embeddings(sizes: Sizes, D: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """e_g, regions and label embeddings whose scores spread as CLIP's do, by a few units."""
    B = sizes.B_large
    return draw(B, D), draw(B, scores.REGIONS, D, seed=1), draw(sizes.K_all, D, scale=0.1, seed=2)


def map_metric(sizes: Sizes) -> dict:
    """AP of every label of a whole test set, against scikit-learn, label by label."""
    s, y = draw(sizes.N, sizes.K_test).cpu(), annotate(sizes.N, sizes.K_test, positives=10).cpu()
    few = s[:, :8], y[:, :8]
    plain.average_precision(*few), metrics.average_precision(*few)  # warm up
    peak = peak_mb(lambda: metrics.average_precision(s, y), on_gpu=False)
    plain_s, expected = seconds(lambda: plain.average_precision(s, y))
    ours_s, ours = seconds(lambda: metrics.average_precision(s, y))
    row = {"ratio": plain_s / ours_s, "max_abs_diff": float(np.nanmax(np.abs(ours.double().numpy() - expected)))}
    row |= {"peak_mb": peak, "plain_s": plain_s, "ours_s": ours_s}
    return row | {"what": f"AP of {sizes.N:,} x {sizes.K_test:,} scores against scikit-learn's loop"}
