r"""Figures of maps: one label per picture (Fig. 6), all of a picture's (Fig. 7), level by level, and their measurement.

Maps are in 0..1 and as large as their picture. Where a label is, is a box x0, y0, x1, y1 in pixels, the last two
exclusive, or a mask (H, W), whose edge is drawn. K labels, L levels.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects

from hrcf_lib.engine.messages import need
from hrcf_lib.figures.charts import COLOURS, PAGE, check_lists, legend, literal, printed, wrapped
from hrcf_lib.studies.localisation import CONTROLS, METRICS, ROWS

HEAT = {"cmap": "inferno", "vmin": 0, "vmax": 1, "alpha": 0.6}
OUTLINE = [patheffects.Stroke(linewidth=1.8, foreground="black", alpha=0.6), patheffects.Normal()]
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HEAD, ROW_GAP = 0.3, 0.08  # inches: titles above the first row, space between rows
EDGE = 0.15  # room for the names of rows, in parts of a picture
LARGEST = 1.3  # inches of a picture in ``all_labels``
LETTERS = 16  # characters of a title that fit an inch
ROW_NAME = 14  # characters in a line beside a picture
BARS, LEVEL_NAMES = 1.2, 0.4  # width of the bars in ``levels`` and of their names, in parts of a picture
LEVELS_HEAD = 0.45  # inches
LOCALISATION, SPREAD = 2.1, 0.7  # inches of height of a panel; the share of a size's room that its points take
SCALE = 0.28  # width of a map's scale and its numbers, in parts of the map
KEPT_ALPHA = 0.5  # of the colour over a kept region: the picture stays visible
GREYS = {name: {"color": grey, "marker": mark} for name, grey, mark in zip(CONTROLS, ("0.45", "0.7"), ("_", "x"))}


def one_label(images, labels, maps: dict, boxes=None, width: float = PAGE):
    r"""Fig. 6: one column per picture, with one of its labels; below the picture the map of each method.

    Args:
        images: n pictures (H, W, 3).
        labels: the label of each, its title.
        maps: method -> n maps (H, W).
        boxes: where each label is, a box or a mask; or None.
        width: of the figure, in inches.

    Returns the figure. Raises ``ValueError`` for no picture or method, and lists of another length.
    """
    check_lists(images, {"labels": labels, **({} if boxes is None else {"boxes": boxes})} | maps, maps)
    rows, n = 1 + len(maps), len(images)
    with printed():
        side = width / (n + EDGE)
        size = (width, side * rows + HEAD)
        figure, axes = plt.subplots(rows, n, figsize=size, layout="constrained", squeeze=False)
        _close(figure)
        for i, image in enumerate(images):
            box = None if boxes is None else boxes[i]
            show(axes[0, i], image, None, box)
            axes[0, i].set_title(wrapped(labels[i], max(8, int(LETTERS * side))), fontsize=8)
            for row, heat in zip(axes[1:, i], maps.values()):
                show(row, image, heat[i], box)
        for axis, title in zip(axes[:, 0], ["picture", *maps]):
            axis.set_ylabel(literal(title))
    return figure


def all_labels(images, labels, maps: dict, boxes=None, width: float = PAGE):
    r"""Fig. 7: pictures, and beside each the maps of all its labels, one row per method.

    Args:
        images: n pictures (H, W, 3).
        labels: the labels of each.
        maps: method -> for each picture its maps (k, H, W).
        boxes: for each picture where each of its labels is, k boxes or masks; or None.
        width: of the figure, in inches.

    Returns the figure. Raises ``ValueError`` for no picture or method, lists of another length, or a picture with
    another number of maps or boxes than labels.
    """
    given = {"labels": labels, **({} if boxes is None else {"boxes": boxes})} | maps
    check_lists(images, given, maps)
    for name, lists in given.items():
        odd = [i for i, own in enumerate(lists) if len(own) != len(labels[i])]
        if odd:
            i = odd[0]
            raise ValueError(f"{name!r} has {len(lists[i])} entries for the {len(labels[i])} labels of picture {i}")
    rows, columns = len(maps), 1 + max(map(len, labels))
    with printed():
        side = min(LARGEST, width / (columns + EDGE))
        size = (side * (columns + EDGE), (side * rows + HEAD) * len(images))
        figure = plt.figure(figsize=size, layout="constrained")
        _close(figure)
        places = figure.add_gridspec(rows * len(images), columns)
        for i, image in enumerate(images):
            own = None if boxes is None else boxes[i]
            first = figure.add_subplot(places[i * rows, 0])
            show(first, image, None)
            first.set_title("picture", fontsize=8)
            for row, (title, of) in enumerate(maps.items()):
                for k, name in enumerate(labels[i]):
                    axis = figure.add_subplot(places[i * rows + row, 1 + k])
                    show(axis, image, of[i][k], None if own is None else own[k])
                    if not row:
                        axis.set_title(wrapped(name, max(8, int(LETTERS * side))), fontsize=8)
                    if not k:
                        axis.set_ylabel(literal(title))
    return figure


def levels(image, labels, clues, boxes=None, width: float = PAGE):
    r"""What each level of regions adds to the region score of each label: one map per level, and its sum as a bar.

    All levels of a row share one scale: what a region adds, divided by the largest amount. Regions that subtract are
    dark, and regions that RSS leaves out are crossed. The bars are sums over the kept regions, which may be negative,
    with each level's share of the amounts.

    Args:
        image: (H, W, 3).
        labels: K names, one row each.
        clues: of ``region_maps.clues`` for this one picture and these labels.
        boxes: where each label is, K boxes or masks; or None.
        width: of the figure, in inches.

    Returns the figure. Raises ``ValueError`` for clues of several pictures or of other labels.
    """
    found = tuple(clues.scores.shape)
    if found[:2] != (1, len(labels)) or not len(labels):
        raise ValueError(f"clues of {found[0]} pictures and {found[1]} labels, to be drawn: 1 and {len(labels)}")
    L = found[2]
    with printed():
        side = width / (L + 1 + BARS + LEVEL_NAMES)
        size = (width, side * len(labels) + LEVELS_HEAD)
        figure, axes = plt.subplots(
            len(labels), L + 2, figsize=size, layout="constrained", squeeze=False, width_ratios=[1] * (L + 1) + [BARS]
        )
        _close(figure)
        for k, (row, name) in enumerate(zip(axes, labels)):
            show(row[0], image, None, None if boxes is None else boxes[k])
            row[0].set_ylabel(wrapped(name, ROW_NAME))
            top = max(float(m[0, k].max()) for m in clues.added)
            for axis, added, kept in zip(row[1:], clues.added, clues.kept):
                _level(axis, image, added[0, k].numpy(), kept[0].numpy(), top)
            _sums(row[-1], clues.scores[0, k].numpy(), 100 * clues.shares[0, k].numpy())
        heads = [_level_title(l, m) for l, m in enumerate(clues.added, 1)]
        for axis, title in zip(axes[0], ["picture", *heads, "adds to the region score"]):
            axis.set_title(title)
    return figure


def level_maps(image, labels, levels, together, width: float = PAGE):
    r"""What each level of regions adds to each label's region score (Eq. 13): one row per label, one map per level.

    Each map has its own scale, which is drawn beside it: the levels have different numbers of regions, and their votes
    differ by orders of magnitude. The last column lays all levels over the picture.

    Args:
        image: (H, W, 3).
        labels: K names, one row each.
        levels: for each level a map (K, h, h) of any real numbers, as ``region_maps.level_maps`` gives for one picture.
        together: (K, H, W) in 0..1, as ``region_maps.region_map`` gives for one picture.
        width: of the figure, in inches.

    Returns the figure. Raises ``ValueError`` for no label, or maps of another number of labels.
    """
    for what, maps in {**{f"level {l}": m for l, m in enumerate(levels, 1)}, "together": together}.items():
        if len(maps) != len(labels) or not len(labels):
            raise ValueError(f"{what!r} has {len(maps)} maps for {len(labels)} labels: give one map per label")
    columns = len(levels) + 2
    with printed():
        side = width / (columns + SCALE * len(levels))
        size = (width, (side + ROW_GAP) * len(labels) + HEAD)
        figure, axes = plt.subplots(len(labels), columns, figsize=size, layout="constrained", squeeze=False)
        for k, (row, name) in enumerate(zip(axes, labels)):
            show(row[0], image)
            row[0].set_ylabel(wrapped(name, ROW_NAME))
            for axis, level in zip(row[1:-1], levels):
                _scaled(figure, axis, np.asarray(level[k], float))
            show(row[-1], image, together[k])
        for axis, title in zip(
            axes[0], ["picture", *(_level_title(l, m) for l, m in enumerate(levels, 1)), "together"]
        ):
            axis.set_title(title)
    return figure


def heads(image, labels, masks, width: float = PAGE):
    r"""Where each head of an attention looks for each label: one row per label, their mean, and one map per head.

    Each mask is divided by its largest value, so that heads of any sharpness can be read; a title gives no scale.

    Args:
        image: (H, W, 3).
        labels: K names, one row each.
        masks: (heads, K, N, N), not below 0, as ``attention.masks`` of OVML-VLP gives for one picture.
        width: of the figure, in inches.

    Returns the figure. Raises ``ValueError`` for no label, or masks of another shape or number of labels.
    """
    masks = np.asarray(masks, float)
    if masks.ndim != 4 or not len(labels) or masks.shape[1] != len(labels):
        raise ValueError(f"masks {masks.shape} for {len(labels)} labels: give (heads, labels, N, N)")
    shown = [masks.mean(axis=0), *masks]
    with printed():
        side = width / (1 + len(shown))
        size = (width, (side + ROW_GAP) * len(labels) + HEAD)
        figure, axes = plt.subplots(len(labels), 1 + len(shown), figsize=size, layout="constrained", squeeze=False)
        _close(figure)
        h, w = image.shape[:2]
        for k, (row, name) in enumerate(zip(axes, labels)):
            show(row[0], image)
            row[0].set_ylabel(wrapped(name, ROW_NAME))
            for axis, own in zip(row[1:], shown):
                axis.imshow(image, interpolation="lanczos", extent=(0, w, h, 0))
                axis.imshow(own[k] / max(own[k].max(), 1e-12), **HEAT, extent=(0, w, h, 0))
                bare(axis)
        for axis, title in zip(axes[0], ["picture", "mean", *(f"head {i}" for i in range(1, len(masks) + 1))]):
            axis.set_title(title)
    return figure


def selection(image, kept, width: float = PAGE):
    r"""RSS (Eqs. 16-17): the regions of each level that are kept, as coloured cells over the picture.

    Args:
        image: (H, W, 3).
        kept: for each level (h, h) bool, True where the region is kept.
        width: of the figure, in inches.

    The title of each panel counts its kept regions. Returns the figure.
    """
    columns = len(kept) + 1
    with printed():
        size = (width, width / columns + HEAD)
        figure, axes = plt.subplots(1, columns, figsize=size, layout="constrained")
        _close(figure)
        show(axes[0], image)
        axes[0].set_title("picture")
        for axis, cells in zip(axes[1:], (np.asarray(level, bool) for level in kept)):
            show(axis, image)
            h, w = image.shape[:2]
            colours = np.zeros((*cells.shape, 4))
            colours[cells] = (*COLOURS[1], KEPT_ALPHA)
            edges = np.linspace(0, 1, len(cells) + 1)
            axis.imshow(colours, interpolation="nearest", extent=(-0.5, w - 0.5, h - 0.5, -0.5))
            axis.vlines(edges * w - 0.5, -0.5, h - 0.5, color="white", lw=0.5)
            axis.hlines(edges * h - 0.5, -0.5, w - 0.5, color="white", lw=0.5)
            axis.set_title(f"{cells.sum()} of {cells.size} kept")
    return figure


def localisation(table, titles=None, width: float = PAGE):
    r"""What ``localisation.summary`` found: one panel per measure, its sizes side by side, one point per title.

    Args:
        table: of ``localisation.summary``.
        titles: those to draw, in order; by default all. The two controls are grey and have no interval.
        width: of the figure, in inches.

    Returns the figure. Raises ``ValueError`` for a missing column, no row, or a title that is not in the table.
    """
    need(table, ["title", "size", *(m + end for m in METRICS for end in ("", "_low", "_high"))], "localisation")
    there = list(dict.fromkeys(table["title"]))
    titles = there if titles is None else list(titles)
    if unknown := [title for title in titles if title not in there]:
        raise ValueError(f"no row of {unknown[0]!r}: the table has {', '.join(there)}")
    sizes = [size for size in ROWS if size in set(table["size"])]
    with printed():
        size = (width, LOCALISATION * len(METRICS))
        figure, axes = plt.subplots(len(METRICS), 1, figsize=size, layout="constrained", sharex=True)
        for axis, (metric, name) in zip(axes, METRICS.items()):
            for i, title in enumerate(titles):
                part = table[table["title"] == title].set_index("size").reindex(sizes)
                x = np.arange(len(sizes)) + SPREAD * ((i + 0.5) / len(titles) - 0.5)
                _points(axis, x, part, metric, title, i)
            axis.set_xticks(range(len(sizes)), sizes)
            axis.set(xlim=(-0.5, len(sizes) - 0.5), ylim=(0, None), ylabel="%", title=name)
            axis.tick_params(axis="x", length=0)
            axis.grid(visible=False, axis="x")
            for place in range(1, len(sizes)):
                axis.axvline(place - 0.5, color="0.85", lw=0.6)
        legend(figure, titles)
    return figure


def show(axis, image, heat=None, box=None) -> None:
    """Draw a picture, its map over it, and the box (4,) of an object or the edge of a mask (H, W)."""
    axis.imshow(image, interpolation="lanczos")
    if heat is not None:
        axis.imshow(np.asarray(heat), **HEAT)
    if box is not None and np.ndim(box) == 2:
        mask = np.pad(np.asarray(box, float), 1)  # so that an edge at the border of the picture is drawn too
        (h, w), limits = mask.shape, axis.axis()
        at = np.arange(w) - 1, np.arange(h) - 1
        axis.contour(*at, mask, levels=[0.5], colors="white", linewidths=0.8).set(path_effects=OUTLINE)
        axis.axis(limits)
    elif box is not None:
        x0, y0, x1, y1 = (float(v) for v in box)
        corner = (x0 - 0.5, y0 - 0.5)  # pixels are squares around whole numbers
        look = {"fill": False, "color": "white", "lw": 0.8, "path_effects": OUTLINE}
        axis.add_patch(plt.Rectangle(corner, x1 - x0, y1 - y0, **look))
    bare(axis)


def bare(axis) -> None:
    """An axis without ticks, grid and frame."""
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _scaled(figure, axis, values) -> None:
    """A map in its own range, with a scale that shows the least and the greatest value."""
    drawn = axis.imshow(values, cmap="inferno")
    bare(axis)
    bar = figure.colorbar(drawn, ax=axis, fraction=0.05, pad=0.03)
    ends = np.unique([values.min(), values.max()])
    bar.set_ticks(ends, labels=[f"{value:.2g}".replace("-", "−") for value in ends])
    bar.ax.tick_params(length=0, pad=1, labelsize=6)
    bar.outline.set_visible(False)


def _level_title(number: int, maps) -> str:
    return f"level {number}: {maps.shape[-1]} × {maps.shape[-1]}"


def _level(axis, image, added, kept, top: float) -> None:
    """One level: what its regions add, divided by ``top``, and a cross where RSS leaves one out."""
    h, w = image.shape[:2]
    heat = np.clip(added / top if top > 0 else 0 * added, 0, 1)
    axis.imshow(image, interpolation="lanczos", extent=(0, w, h, 0))
    axis.imshow(heat, **HEAT, interpolation="nearest", extent=(0, w, h, 0))
    cell = w / len(kept)
    y, x = ((~kept).nonzero()[i] * cell + cell / 2 for i in (0, 1))
    axis.plot(x, y, ls="none", marker="x", ms=min(4, 25 * cell / w), mew=0.6, color="white")
    axis.set(xlim=(0, w), ylim=(h, 0))
    bare(axis)


def _sums(axis, sums, shares) -> None:
    """One bar per level: what it adds (right, with a plus) or subtracts, and its share of the amounts in percent."""
    names = [f"level {l}" for l in range(1, len(sums) + 1)]
    axis.barh(names, sums, color=[COLOURS[0 if value >= 0 else 3] for value in sums], height=0.6)
    axis.axvline(0, color="black", lw=0.8)
    axis.invert_yaxis()
    span = max(float(np.abs(sums).max()), 1e-9)
    axis.set(xlim=(min(0, float(sums.min())) - 0.08 * span, max(0, float(sums.max())) + 1.5 * span), xticks=[])
    for place, (value, share) in enumerate(zip(sums, shares)):
        text = f"{value:+.2f} ({share:.0f} %)".replace("-", "−").replace("nan", "0")
        about = {"textcoords": "offset points", "va": "center", "fontsize": 7}
        axis.annotate(text, (max(value, 0), place), (3, 0), **about)
    axis.tick_params(axis="y", length=0)
    axis.grid(visible=False)
    axis.spines["bottom"].set_visible(False)


def _points(axis, x, part, metric: str, title: str, i: int) -> None:
    """The points of one title; a control is grey and has no interval."""
    look = {"ls": "none", "label": title, "ms": 4.5}
    if title in GREYS:
        axis.plot(x, part[metric], **look | {"ms": 6, "mew": 1.8} | GREYS[title])
        return
    colour = COLOURS[i % len(COLOURS)]
    axis.vlines(x, part[f"{metric}_low"], part[f"{metric}_high"], color=colour, lw=1)
    axis.plot(x, part[metric], color=colour, marker=MARKERS[i % len(MARKERS)], **look)


def _close(figure) -> None:
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
