r"""Whether a map is bright where the thing is, measured on MojiScenes, which knows the box of everything it draws.

* *Pointing game* (Zhang et al., ECCV 2016): a hit if the brightest pixel lies in the box.
* *Energy inside* (Wang et al., Score-CAM, CVPR Workshops 2020): the share of the map's sum that lies in the box.

A box encloses the whole thing as it was drawn, also where a later thing hides a part of it: at most half, as a rule
(``SceneLaw.covered``). A map that knows nothing scores the area of the box by either measure, so large things are easy:
compare within a size, and with the controls, a random map and one that is brightest at the centre.

A *map maker* is a function (pictures (B, 3, side, side), B lists of names) -> B maps (k, side, side) in 0..1, such as
``grad_cam.maker(model, names)`` and ``region_maps.maker(model, names)``. n maps, R resamples.
"""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib.engine.messages import check_known
from hrcf_lib.studies import bootstrap
from hrcf_lib.studies.by_object_size import SIZES, check_scenes

METRICS = {"hit": "pointing game", "energy": "energy inside"}  # column of ``measure_maps`` -> its name
CONTROLS = ("random map", "centre map")
ALL = "all"  # the row of a summary that has things of every size


def pointing_game(maps: Tensor, boxes: Tensor) -> Tensor:
    r"""1 if the brightest pixel lies in the box, else 0: (n, h, w), (n, 4) -> (n,) float32.

    If several pixels are equally bright, the share of them that lies inside: a flat map scores the area of its box.
    Boxes are x0, y0, x1, y1 in pixels of the map, the last two exclusive; a pixel is inside if its middle is. Raises
    ``ValueError`` for shapes that do not fit, maps that are not finite or have negative values, and boxes that are
    empty or reach out of the picture.

    >>> m = torch.tensor([[[0.0, 0.2], [0.9, 0.1]]])
    >>> pointing_game(m, torch.tensor([[0.0, 1.0, 2.0, 2.0]])), energy_inside(m, torch.tensor([[0.0, 1.0, 2.0, 2.0]]))
    (tensor([1.]), tensor([0.8333]))
    """
    inside = within(maps, boxes)
    best = maps == maps.amax((-2, -1), keepdim=True)  # (n, h, w)
    return (best & inside).sum((-2, -1)) / best.sum((-2, -1))


def energy_inside(maps: Tensor, boxes: Tensor) -> Tensor:
    r"""The share of the map's sum that lies in the box, $\sum_{p \in box} M_p / \sum_p M_p$: -> (n,) in 0..1.

    A map that is 0 everywhere counts as a flat one: the area of its box. Arguments and errors as ``pointing_game``.
    """
    inside = within(maps, boxes)
    flat = maps.amax((-2, -1), keepdim=True) == 0
    light = torch.where(flat, 1.0, maps.double())  # (n, h, w)
    return ((light * inside).sum((-2, -1)) / light.sum((-2, -1))).float()


def within(maps: Tensor, boxes: Tensor) -> Tensor:
    """Pixels (n, h, w) bool whose middle lies in the box. Checks both, as ``pointing_game`` says."""
    if maps.ndim != 3 or boxes.shape != (len(maps), 4):
        raise ValueError(f"maps {tuple(maps.shape)} and boxes {tuple(boxes.shape)}: give (n, h, w) and (n, 4)")
    wrong = ~maps.isfinite().all(-1).all(-1) | (maps < 0).any(-1).any(-1)
    if wrong.any():
        raise ValueError(f"map {int(wrong.nonzero()[0])} has negative values or NaN: stretch maps to 0..1 first")
    h, w = maps.shape[1:]
    x0, y0, x1, y1 = boxes.to(maps.device).unbind(-1)
    wrong = (x0 < 0) | (y0 < 0) | (x1 > w) | (y1 > h) | ~(x1 > x0) | ~(y1 > y0)
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise ValueError(f"box {i} {boxes[i].tolist()} is empty or not within {w} x {h}: give x0, y0, x1, y1 in pixels")
    x, y = (torch.arange(length, device=maps.device) + 0.5 for length in (w, h))
    columns = (x >= x0[:, None]) & (x < x1[:, None])  # (n, w)
    rows = (y >= y0[:, None]) & (y < y1[:, None])  # (n, h)
    return rows[:, :, None] & columns[:, None, :]


def random_maps(n: int, side: int, generator: torch.Generator | None = None) -> Tensor:
    """(n, side, side): independent pixels, uniform in 0..1. On average both measures are the area of the box."""
    return torch.rand(n, side, side, generator=generator)


def centre_maps(n: int, side: int) -> Tensor:
    """(n, side, side): a cone, 1 at the centre of the picture and 0 in its corners."""
    offset = (torch.arange(side) + 0.5) - side / 2
    distance = torch.hypot(offset[:, None], offset[None])  # (side, side)
    return (1 - (distance - distance.min()) / (distance.max() - distance.min())).expand(n, side, side)


def controls(seed: int = 0) -> dict[str, Callable]:
    """The map makers of ``CONTROLS``. Random maps are drawn one after another: make new controls to repeat them."""
    drawn = torch.Generator().manual_seed(seed)
    makers = {
        "random map": lambda images, asked: [random_maps(len(own), images.shape[-1], drawn) for own in asked],
        "centre map": lambda images, asked: [centre_maps(len(own), images.shape[-1]) for own in asked],
    }
    return {name: makers[name] for name in CONTROLS}


def measure_maps(
    scenes, makers: dict[str, Callable], n: int | None = None, batch: int = 16, names=None
) -> pd.DataFrame:
    r"""One row per map maker and thing in the first ``n`` scenes that is a label of the split.

    Args:
        scenes: a split of MojiScenes; of its labels the things, not stuff or words.
        makers: title -> map maker, made for all labels of the split. Controls are measured only if they are among them.
        n: scenes, by default all.
        batch: scenes at a time.
        names: labels whose things are measured, by default all of the split (a method may know only some of them).

    Returns:
        title; image, the number of the scene; label; part, seen or unseen; size, small, medium or large as in
        ``by_object_size.SIZES``; area of the box as a share of the picture; hit and energy in 0..1; flat, whether all
        values of the map were equal.

    Raises:
        TypeError: data without scenes. ValueError: no maker, a number of scenes that the split does not have, names
            that are none of its labels, or maps of another number or size than asked for, naming the maker.
    """
    check_scenes(scenes)
    n = len(scenes) if n is None else n
    if not makers or not 1 <= n <= len(scenes):
        raise ValueError(f"{len(makers)} map makers, {n} of {len(scenes)} scenes: give at least one, and 1 to that")
    space = scenes.labels
    if names is not None:
        check_known(names, list(space.names), "no label of this split:")
    rows = []
    for first in tqdm(range(0, n, batch), "scenes", disable=None, leave=False):
        rows += _of_scenes([scenes.scene(i) for i in range(first, min(first + batch, n))], space, makers, names)
    return pd.concat([pd.DataFrame(part) for part in rows], ignore_index=True)


def things(scene, space, names=None, everywhere: bool = False) -> tuple[list[str], Tensor]:
    """Things that a scene shows and ``space`` has as a label, and their boxes (k, 4); or those of them that are among
    ``names``. ``everywhere``: with stuff and the words above all of it."""
    names = space.names if names is None else names
    own = [i for i, name in enumerate(scene.names) if name in names and (everywhere or i < scene.things)]
    return [scene.names[i] for i in own], torch.from_numpy(scene.boxes)[own]


def _of_scenes(scenes, space, makers, names) -> list[dict]:
    """The columns of the frame: one dict per maker and scene."""
    side = scenes[0].image.shape[0]
    images = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in scenes])  # (b, 3, side, side)
    asked, boxes = zip(*(things(scene, space, names) for scene in scenes))
    found, seen = [], set(space.seen)
    for title, make in makers.items():
        maps = make(images, list(asked))
        shapes, wanted = [tuple(m.shape) for m in maps], [(len(own), side, side) for own in asked]
        if shapes != wanted:
            raise ValueError(
                f"{title!r} gave maps {shapes[:3]} ..., asked were {wanted[:3]} ...: give one per label, in order"
            )
        for scene, names, box, m in zip(scenes, asked, boxes, maps):
            if names:
                m, spans = m.cpu(), box[:, 2:] - box[:, :2]  # (k, side, side), (k, 2)
                about = {"title": title, "image": scene.index, "label": names}
                about |= {"part": ["seen" if name in seen else "unseen" for name in names]}
                about |= {"size": [_class(s) for s in (spans.amax(dim=1) / side).tolist()]}
                about |= {"area": spans.prod(dim=1) / side**2}
                about |= {"hit": pointing_game(m, box), "energy": energy_inside(m, box)}
                found.append(about | {"flat": m.amax((-2, -1)) == m.amin((-2, -1))})
    return found


def _class(size: float) -> str:
    """Small, medium or large, of the longer side of a box as a share of the picture's."""
    return next(name for name, (low, high) in SIZES.items() if low <= size < high)


def resampled(frame: pd.DataFrame, metric: str, resamples: int = 1000) -> dict[tuple[str, str], list[Tensor]]:
    r"""(title, size) -> for each seed the mean over things, in percent, of all scenes and of R resamples: (1 + R,).

    Scenes are drawn with replacement, the same ones for every title, so that differences are paired
    (``bootstrap.draw``); each brings all its things of that size. ``seed`` is a column that the frame may have, for
    several trained models under one title. Raises ``ValueError`` for another column than those of ``METRICS``, or an
    empty frame.
    """
    check_known([metric], list(METRICS), "unknown metric")
    if not len(frame):
        raise ValueError("the frame has no rows: measure some scenes first")
    images = pd.Index(frame["image"].unique())
    weights = bootstrap.draw(len(images), resamples).double()  # (n, 1 + R)
    frame = frame if "seed" in frame else frame.assign(seed=0)
    found = {}
    for (title, size, _), part in pd.concat([frame, frame.assign(size=ALL)]).groupby(["title", "size", "seed"]):
        at, values = torch.from_numpy(images.get_indexer(part["image"])), torch.tensor(part[metric].to_numpy(float))
        total, number = (torch.zeros(len(images)).double().index_add(0, at, x) for x in (values, values * 0 + 1))
        means = 100 * (total @ weights) / (number @ weights)  # (1 + R,)
        means = torch.where(means.isnan(), means[0], means)  # a resample without such a thing: the mean of all scenes
        found.setdefault((title, size), []).append(means)
    return found


def summary(frame: pd.DataFrame, resamples: int = 1000) -> pd.DataFrame:
    r"""One row per title and size: means of ``measure_maps`` in percent, with 95 % intervals over scenes (and seeds).

    Columns: title, size (small, medium, large, all), things, area (the mean of their boxes, which a map that knows
    nothing scores), hit, hit_low, hit_high, energy, energy_low, energy_high, flat. Raises as ``resampled``.
    """
    rows = {}
    for metric in METRICS:
        for key, runs in resampled(frame, metric, resamples).items():
            at, low, high = bootstrap.paired_difference(runs, [torch.zeros_like(run) for run in runs])
            rows.setdefault(key, {}).update({metric: at, f"{metric}_low": low, f"{metric}_high": high})
    both = pd.concat([frame, frame.assign(size=ALL)]).groupby(["title", "size"])
    about = both[["area", "flat"]].mean() * 100
    about["things"] = both.size() // (frame["seed"].nunique() if "seed" in frame else 1)
    table = about.join(pd.DataFrame.from_dict(rows, orient="index").rename_axis(["title", "size"]))
    order = [(title, size) for title in frame["title"].unique() for size in (*SIZES, ALL)]
    columns = ["things", "area", *(metric + end for metric in METRICS for end in ("", "_low", "_high")), "flat"]
    return table.loc[[key for key in order if key in table.index], columns].reset_index()


def differences(frame: pd.DataFrame, pairs: Sequence[tuple[str, str]], resamples: int = 1000) -> pd.DataFrame:
    r"""Paired differences in percentage points, with 95 % intervals over scenes (and seeds), for each pair of titles.

    Columns: title, against, size, metric, difference, low, high, verdict (``better``, ``worse`` or ``open``). Raises as
    ``resampled``, and ``ValueError`` for a title that was not measured.
    """
    check_known([title for pair in pairs for title in pair], list(frame["title"].unique()), "not measured:")
    rows = []
    for metric in METRICS:
        found = resampled(frame, metric, resamples)
        for ours, other in pairs:
            for size in (*SIZES, ALL):
                if (ours, size) in found and (other, size) in found:
                    row = {"title": ours, "against": other, "size": size, "metric": metric}
                    rows.append(row | bootstrap.difference_row(found[ours, size], found[other, size]))
    return pd.DataFrame(rows)
