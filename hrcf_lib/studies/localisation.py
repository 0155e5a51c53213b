r"""Whether a map is bright where the thing is, measured on MojiScenes, which knows the box of everything it draws.

* *Pointing game* (Zhang et al., ECCV 2016): a hit if the brightest pixel lies in the box.
* *Energy inside* (Wang et al., Score-CAM, CVPR Workshops 2020): the share of the map's sum that lies in the box.

A box encloses the whole thing as it was drawn, also where a later thing hides a part of it: at most half, as a rule
(``SceneLaw.covered``). Stuff (sky, sand) and the words above what is drawn (animal) have no box worth the name: for
them the *mask* takes its place, the pixels that show what makes the label hold (``Scene.mask``). They are measured
apart (``kinds``), and "all" is all things. A map that knows nothing scores the area of box or mask by either measure,
so what is large is easy: compare within a row, and with the controls, a random map and one that is brightest at the
centre.

A *map maker* is a function (pictures (B, 3, side, side), B lists of names) -> B maps (k, side, side) in 0..1, such as
``grad_cam.maker(model, names)`` and ``region_maps.maker(model, names)``. n maps, R resamples.
"""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hrcf_lib.data.mojiscenes import vocabulary
from hrcf_lib.engine.messages import check_known
from hrcf_lib.studies import bootstrap
from hrcf_lib.studies.by_object_size import SIZES, check_scenes

METRICS = {"hit": "pointing game", "energy": "energy inside"}  # column of ``measure_maps`` -> its name
CONTROLS = ("random map", "centre map")
ALL = "all"  # the row of a summary that has things of every size
OTHERS = {"stuff": "stuff", "word": "words"}  # kind of what is no thing -> its row in place of a size
ROWS = (*SIZES, ALL, *OTHERS.values())


def pointing_game(maps: Tensor, places: Tensor) -> Tensor:
    r"""1 if the brightest pixel lies inside, else 0: (n, h, w), boxes (n, 4) or masks (n, h, w) bool -> (n,) float32.

    If several pixels are equally bright, the share of them that lies inside: a flat map scores the area of its place.
    Boxes are x0, y0, x1, y1 in pixels of the map, the last two exclusive; a pixel is inside if its middle is. Raises
    ``ValueError`` for shapes that do not fit, maps that are not finite or have negative values, boxes that are empty or
    reach out of the picture, and empty masks.

    >>> m = torch.tensor([[[0.0, 0.2], [0.9, 0.1]]])
    >>> pointing_game(m, torch.tensor([[0.0, 1.0, 2.0, 2.0]])), energy_inside(m, torch.tensor([[0.0, 1.0, 2.0, 2.0]]))
    (tensor([1.]), tensor([0.8333]))
    """
    inside = within(maps, places)
    best = maps == maps.amax((-2, -1), keepdim=True)  # (n, h, w)
    return (best & inside).sum((-2, -1)) / best.sum((-2, -1))


def energy_inside(maps: Tensor, places: Tensor) -> Tensor:
    r"""The share of the map's sum that lies inside, $\sum_{p \in box} M_p / \sum_p M_p$: -> (n,) in 0..1.

    A map that is 0 everywhere counts as a flat one: the area of its place. Arguments and errors as ``pointing_game``.
    """
    inside = within(maps, places)
    flat = maps.amax((-2, -1), keepdim=True) == 0
    light = torch.where(flat, 1.0, maps.double())  # (n, h, w)
    return ((light * inside).sum((-2, -1)) / light.sum((-2, -1))).float()


def within(maps: Tensor, places: Tensor) -> Tensor:
    """Pixels (n, h, w) bool whose middle lies in the box, or those of the mask. Checks both, as ``pointing_game``."""
    if maps.ndim != 3 or places.shape not in (maps.shape, (len(maps), 4)):
        raise ValueError(
            f"maps {tuple(maps.shape)} and places {tuple(places.shape)}: give (n, h, w), and boxes (n, 4) or masks "
            "(n, h, w)"
        )
    wrong = ~maps.isfinite().all(-1).all(-1) | (maps < 0).any(-1).any(-1)
    if wrong.any():
        raise ValueError(f"map {int(wrong.nonzero()[0])} has negative values or NaN: stretch maps to 0..1 first")
    if places.ndim == 3:
        if not (filled := places.any(-1).any(-1)).all():
            raise ValueError(f"mask {int((~filled).nonzero()[0])} is empty: leave out what cannot be seen")
        return places.to(maps.device, torch.bool)
    return _filled(places.to(maps.device), *maps.shape[1:])


def _filled(boxes: Tensor, h: int, w: int) -> Tensor:
    """Masks (n, h, w) bool of boxes (n, 4). Raises ``ValueError`` for one that is empty or reaches out of h x w."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    wrong = (x0 < 0) | (y0 < 0) | (x1 > w) | (y1 > h) | ~(x1 > x0) | ~(y1 > y0)
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise ValueError(f"box {i} {boxes[i].tolist()} is empty or not within {w} x {h}: give x0, y0, x1, y1 in pixels")
    x, y = (torch.arange(length, device=boxes.device) + 0.5 for length in (w, h))
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
    scenes, makers: dict[str, Callable], n: int | None = None, batch: int = 16, names=None, kinds=("thing",)
) -> pd.DataFrame:
    r"""One row per map maker and label that the first ``n`` scenes show, of these ``kinds``.

    Args:
        scenes: a split of MojiScenes.
        makers: title -> map maker, made for all labels of the split. Controls are measured only if they are among them.
        n: scenes, by default all.
        batch: scenes at a time.
        names: labels that are measured, by default all of the split (a method may know only some of them).
        kinds: of ``vocabulary.KINDS``: what is drawn as a thing, by its box; stuff and words, by their mask
            (``shown``).

    Returns:
        title; image, the number of the scene; label; part, seen or unseen; kind; size, small, medium or large as in
        ``by_object_size.SIZES``, and of what is no thing its row in ``ROWS``; area of box or mask as a share of the
        picture; hit and energy in 0..1; flat, whether all values of the map were equal.

    Raises:
        TypeError: data without scenes. ValueError: no maker, a number of scenes that the split does not have, names
            that are none of its labels, an unknown kind, or maps of another number or size than asked for, naming the
            maker.
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
        here = [scenes.scene(i) for i in range(first, min(first + batch, n))]
        rows += _of_scenes(here, space, makers, names, kinds)
    return pd.concat([pd.DataFrame(part) for part in rows], ignore_index=True)


def things(scene, space, names=None) -> tuple[list[str], Tensor]:
    """Things that a scene shows and ``space`` has as a label, and their boxes (k, 4); or those of them that are among
    ``names``."""
    own, _, boxes = shown(scene, space, names, ("thing",))
    return own, torch.stack(boxes) if boxes else torch.empty(0, 4)


def shown(scene, space, names=None, kinds=vocabulary.KINDS) -> tuple[list[str], list[str], list[Tensor]]:
    r"""Labels that a scene shows, of these ``kinds``: names, kinds, and where each is.

    Of a thing that is its box (4,), of the others their mask (side, side) bool; what others hide altogether is left
    out. A name counts as what it is in this scene: one that holds because of what is drawn below it is a word. The
    order is that of ``scene.names``. ``names`` are by default all of ``space``. Raises ``ValueError`` for an unknown
    kind.
    """
    check_known(kinds, vocabulary.KINDS, "unknown kind")
    names = set(space.names if names is None else names)
    of = ["thing"] * scene.things + ["stuff"] * scene.regions + ["word"] * (len(scene.names) - len(scene.drawn))
    found = []
    for name, kind, box in zip(scene.names, of, torch.from_numpy(scene.boxes), strict=True):
        if name in names and kind in kinds:
            place = box if kind == "thing" else torch.from_numpy(scene.mask(name))
            if place.any():
                found.append((name, kind, place))
    return tuple(map(list, zip(*found))) if found else ([], [], [])


def _of_scenes(scenes, space, makers, names, kinds) -> list[dict]:
    """The columns of the frame: one dict per maker and scene."""
    side = scenes[0].image.shape[0]
    images = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in scenes])  # (b, 3, side, side)
    there = [shown(scene, space, names, kinds) for scene in scenes]
    asked, found, seen = [own for own, _, _ in there], [], set(space.seen)
    for title, make in makers.items():
        maps = make(images, asked)
        shapes, wanted = [tuple(m.shape) for m in maps], [(len(own), side, side) for own in asked]
        if shapes != wanted:
            raise ValueError(
                f"{title!r} gave maps {shapes[:3]} ..., asked were {wanted[:3]} ...: give one per label, in order"
            )
        for scene, (own, of, places), m in zip(scenes, there, maps):
            if own:
                m = m.cpu()  # (k, side, side)
                masks = torch.cat([p[None] if p.ndim == 2 else _filled(p[None], side, side) for p in places])
                about = {"title": title, "image": scene.index, "label": own}
                about |= {"part": ["seen" if name in seen else "unseen" for name in own], "kind": of}
                about |= {"size": [OTHERS.get(kind) or _class(p, side) for kind, p in zip(of, places)]}
                about |= {"area": masks.float().mean((-2, -1))}
                about |= {"hit": pointing_game(m, masks), "energy": energy_inside(m, masks)}
                found.append(about | {"flat": m.amax((-2, -1)) == m.amin((-2, -1))})
    return found


def _class(box: Tensor, side: int) -> str:
    """Small, medium or large, of the longer side of a box as a share of the picture's."""
    size = float((box[2:] - box[:2]).amax()) / side
    return next(name for name, (low, high) in SIZES.items() if low <= size < high)


def _with_all(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows, and those of things again as one more size."""
    return pd.concat([frame, frame[frame["size"].isin(list(SIZES))].assign(size=ALL)])


def resampled(frame: pd.DataFrame, metric: str, resamples: int = 1000) -> dict[tuple[str, str], list[Tensor]]:
    r"""(title, size) -> for each seed the mean over rows, in percent, of all scenes and of R resamples: (1 + R,).

    Scenes are drawn with replacement, the same ones for every title, so that differences are paired
    (``bootstrap.draw``); each brings all that it has of that size. ``seed`` is a column that the frame may have, for
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
    for (title, size, _), part in _with_all(frame).groupby(["title", "size", "seed"]):
        at, values = torch.from_numpy(images.get_indexer(part["image"])), torch.tensor(part[metric].to_numpy(float))
        total, number = (torch.zeros(len(images)).double().index_add(0, at, x) for x in (values, values * 0 + 1))
        means = 100 * (total @ weights) / (number @ weights)  # (1 + R,)
        means = torch.where(means.isnan(), means[0], means)  # a resample without such a thing: the mean of all scenes
        found.setdefault((title, size), []).append(means)
    return found


def summary(frame: pd.DataFrame, resamples: int = 1000) -> pd.DataFrame:
    r"""One row per title and size: means of ``measure_maps`` in percent, with 95 % intervals over scenes (and seeds).

    Columns: title, size (of ``ROWS``), things (the number of rows of ``measure_maps``, for one seed), area (their mean,
    which a map that knows nothing scores), hit, hit_low, hit_high, energy, energy_low, energy_high, flat. Raises as
    ``resampled``.
    """
    rows = {}
    for metric in METRICS:
        for key, runs in resampled(frame, metric, resamples).items():
            at, low, high = bootstrap.paired_difference(runs, [torch.zeros_like(run) for run in runs])
            rows.setdefault(key, {}).update({metric: at, f"{metric}_low": low, f"{metric}_high": high})
    both = _with_all(frame).groupby(["title", "size"])
    about = both[["area", "flat"]].mean() * 100
    about["things"] = both.size() // (frame["seed"].nunique() if "seed" in frame else 1)
    table = about.join(pd.DataFrame.from_dict(rows, orient="index").rename_axis(["title", "size"]))
    order = [(title, size) for title in frame["title"].unique() for size in ROWS]
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
            for size in ROWS:
                if (ours, size) in found and (other, size) in found:
                    row = {"title": ours, "against": other, "size": size, "metric": metric}
                    rows.append(row | bootstrap.difference_row(found[ours, size], found[other, size]))
    return pd.DataFrame(rows)


def said(differences: pd.DataFrame, metric: str = "hit", rows: Sequence[str] = (ALL, *OTHERS.values())) -> str:
    """``differences`` of one metric as text, one line per pair and row of ``ROWS``, as it stands under a figure."""
    own = differences[differences["metric"].eq(metric) & differences["size"].isin(list(rows))]
    named = own.assign(size=own["size"].replace(ALL, "things"))
    lines = [
        f"{row['title']} against {row['against']}, {row['size']}: {bootstrap.in_words(row, METRICS[metric])}"
        for _, row in named.iterrows()
    ]
    return "\n".join(lines)
