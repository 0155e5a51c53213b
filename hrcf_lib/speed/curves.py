"""How time grows with labels K, pictures B and regions J: each fast path beside its plain form where that can run."""

from collections.abc import Callable, Iterator

import pandas as pd
import torch
from torch.nn.functional import normalize

from hrcf_lib import config as configs
from hrcf_lib import losses, scores
from hrcf_lib.data.official.open_images import label_space
from hrcf_lib.speed import plain
from hrcf_lib.speed.measure import Sizes, annotate, draw, names_of, seconds

ROOM = 2**29  # entries of the largest tensor that a plain form may make: 2 GB in float32
AXES = {"K": (81, 256, 1006, 2688, 7586), "B": (1, 4, 16, 64, 128), "J": (35, 70, 140, 280, 560)}
START = {"K": 1006, "B": 16, "J": 140}  # what the other two are while one grows


def scaling(sizes: Sizes, axes: dict | None = None, repeats: int = 3) -> pd.DataFrame:
    """Tidy: axis, value, stage, form (plain, ours), seconds (the fastest of ``repeats``)."""
    rows = []
    for axis, values in (axes or AXES).items():
        for value in values:
            at = START | {axis: value}
            for stage, form, run in _runs(sizes, axis, **at):
                run()  # warm up
                fastest = min(seconds(run)[0] for _ in range(repeats))
                rows.append({"axis": axis, "value": value, "stage": stage, "form": form, "seconds": fastest})
    return pd.DataFrame(rows)


def _runs(sizes: Sizes, axis: str, K: int, B: int, J: int) -> Iterator[tuple[str, str, Callable]]:
    """Stage, form and call for every stage that this axis changes and whose form can run."""
    D, config = 512, configs.PRESETS["open_images"]()
    e_g, regions, t = draw(B, D), draw(B, J, D, seed=1), draw(K, D, scale=0.1, seed=2)
    for form, score in {"plain": plain.score, "ours": scores.score}.items():
        if form == "ours" or B * J * K <= ROOM:
            yield "HSA with RSS", form, torch.no_grad()(lambda s=score: s(e_g, regions, t, config, True))
    if axis == "J":
        return
    s, y = normalize(draw(B, K)), annotate(B, K)
    for form, loss in {"plain": plain.ranking_loss, "ours": losses.ranking_loss}.items():
        if form == "ours" or B * K * K <= ROOM:
            yield "ranking loss, with backward", form, lambda f=loss: f(s.requires_grad_(), y).backward()
    if axis == "K":
        yield from _text(sizes, K)


def _text(sizes: Sizes, K: int) -> Iterator[tuple[str, str, Callable]]:
    model = sizes.model()
    names = names_of(K) if K <= 925 else list(label_space()[0].names)[:K]
    yield "label embeddings", "ours", torch.no_grad()(lambda: model.label_embeddings(names))
    if K <= 81:  # more take minutes: it grows in proportion
        yield (
            "label embeddings",
            "plain",
            torch.no_grad()(lambda: plain.label_embeddings(model.prompt, model.vlp, names)),
        )
