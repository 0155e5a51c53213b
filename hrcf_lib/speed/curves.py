"""How time grows with labels K, pictures B and regions J: each fast path, and its plain form where that can run."""

from collections.abc import Callable, Iterator

import pandas as pd
import torch
from torch.nn.functional import normalize

from hrcf_lib import config as configs
from hrcf_lib import losses, scores
from hrcf_lib.data.official.open_images import label_space
from hrcf_lib.speed import plain
from hrcf_lib.speed.compare import fastest
from hrcf_lib.speed.inputs import Sizes, label_names, random_labels, random_normal

LARGEST = 2**29  # entries of the largest tensor that a plain form may make: 2 GB in float32
AXES = {"K": (81, 256, 1006, 2688, 7586), "B": (1, 4, 16, 64, 128), "J": (35, 70, 140, 280, 560)}
START = {"K": 1006, "B": 16, "J": 140}  # the two values that stay fixed while the third grows


def scaling(sizes: Sizes, axes: dict | None = None, repeats: int = 3) -> pd.DataFrame:
    """One row per point and form: axis, value, stage, form (plain, ours), seconds (the fastest of ``repeats``)."""
    rows = []
    for axis, values in (axes or AXES).items():
        for value in values:
            for stage, form, run in _runs(sizes, axis, **START | {axis: value}):
                row = {"axis": axis, "value": value, "stage": stage, "form": form, "seconds": fastest(run, repeats)}
                rows.append(row)
    return pd.DataFrame(rows)


def _runs(sizes: Sizes, axis: str, K: int, B: int, J: int) -> Iterator[tuple[str, str, Callable]]:
    """Stage, form and call for every stage that this axis changes and every form that can run."""
    D, config = 512, configs.PRESETS["open_images"]()
    e_g, regions, t = random_normal(B, D), random_normal(B, J, D, seed=1), random_normal(K, D, scale=0.1, seed=2)
    for form, score in {"plain": plain.score, "ours": scores.score}.items():
        if form == "ours" or B * J * K <= LARGEST:
            yield "HSA with RSS", form, torch.no_grad()(lambda f=score: f(e_g, regions, t, config, True))
    if axis == "J":
        return
    s, y = normalize(random_normal(B, K)), random_labels(B, K)
    for form, loss in {"plain": plain.ranking_loss, "ours": losses.ranking_loss}.items():
        if form == "ours" or B * K * K <= LARGEST:
            yield "ranking loss, with backward", form, lambda f=loss: f(s.requires_grad_(), y).backward()
    if axis == "K":
        yield from _text(sizes, K)


def _text(sizes: Sizes, K: int) -> Iterator[tuple[str, str, Callable]]:
    model = sizes.model()
    names = label_names(K) if K <= 925 else list(label_space()[0].names)[:K]
    ours = lambda: model.label_embeddings(names)
    plain_form = lambda: plain.label_embeddings(model.prompt, model.vlp, names)
    yield "label embeddings", "ours", torch.no_grad()(ours)
    if K <= 81:  # time grows in proportion to K; more labels take minutes
        yield "label embeddings", "plain", torch.no_grad()(plain_form)
