r"""Figures that set methods side by side: label by label (Fig. 3), picture by picture (Fig. 5), and by size."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

from hrcf_lib.engine.messages import need
from hrcf_lib.figures.charts import COLOURS, PAGE, RIGHT, WRONG, check_lists, legend, literal, printed

BARS = 45  # labels in a row of bars that can still be read on a page
SIGNS = {True: ("✓", RIGHT), False: ("✗", WRONG)}
SIGN_FONT = "DejaVu Sans"  # comes with matplotlib and has both signs, which not every font does
BAR_ROW, TITLE = 2.3, 0.45  # inches: one row of bars with its labels, the title
GREYS = (0.85, 0.4)  # of the other methods, lightest first
SIZES_HEIGHT = 2.6  # inches
SMALLEST = 5  # points: a text that is still too long is cut
LETTER = 0.052  # inches of the notes below a picture, at 7 points
PICTURE, LIST, GAP, LINE = 0.98, 1.22, 0.12, 0.16  # inches: a picture, a list of labels beside it, between them, a line


def label_differences(frame, ours: str = "HRCF", other: str = "MKT", width: float = PAGE):
    r"""Fig. 3: one bar per label, the AP of ``ours`` minus that of ``other``, from the largest gain down.

    Args:
        frame: one row per label, as of ``by_object_size.per_label``: ``label`` and an AP in percent of both methods.
        width: of the figure in inches. More than 45 labels are drawn in several rows of bars with one scale.

    Returns the figure, whose title counts the labels won; equal ones are not. Raises ``ValueError`` for a missing
    column, no row, or a label without AP.
    """
    need(frame, ["label", ours, other], "label_differences")
    values = (frame[ours] - frame[other]).to_numpy(float)
    if np.isnan(values).any():
        raise ValueError(f"label {frame['label'].iloc[np.isnan(values).argmax()]!r} has no AP of both methods: drop it")
    order = np.argsort(-values, kind="stable")
    parts = np.array_split(order, -(-len(order) // BARS))
    with printed():
        size = (width, TITLE + BAR_ROW * len(parts))
        figure, axes = plt.subplots(len(parts), 1, figsize=size, layout="constrained", sharey=True, squeeze=False)
        for axis, part in zip(axes[:, 0], parts):
            axis.bar(range(len(part)), values[part], 0.75, color=[COLOURS[0 if values[k] >= 0 else 3] for k in part])
            axis.axhline(0, color="black", lw=0.8)
            axis.set_xticks(range(len(part)), [literal(frame["label"].iloc[k]) for k in part], rotation=90, fontsize=7)
            axis.set(xlim=(-0.6, len(parts[0]) - 0.4), ylabel=literal(f"AP (%), {ours} − {other}"))
            axis.locator_params(axis="y", nbins=8)
            axis.tick_params(axis="x", length=0)
            axis.grid(visible=False, axis="x")
        axes[0, 0].set_title(literal(f"{ours} better on {int((values > 0).sum())} of {len(values)} labels"))
    return figure


def predictions(images, truth, rows: dict[str, list[list[tuple[str, float]]]], width: float = PAGE):
    r"""Fig. 5: pictures, and beside each the best labels of several methods, right (✓, green) or wrong (✗, red).

    Args:
        images: n pictures (H, W, 3).
        truth: the true labels of each.
        rows: method -> for each picture its (label, score), best first.
        width: of the figure in inches; each row holds as many pictures as fit.

    True labels that no method lists are written below each picture. Returns the figure. Raises ``ValueError`` for no
    picture, no method, or lists of another number of pictures.
    """
    check_lists(images, {"truth": truth, **rows}, rows)
    most = max(len(best) for lists in rows.values() for best in lists)
    columns = max(1, int(width // (PICTURE + (LIST + GAP / 2) * len(rows))))
    panel = width / columns
    notes = [_missed(labels, [lists[i] for lists in rows.values()], panel) for i, labels in enumerate(truth)]
    heights = [
        max(PICTURE, LINE * (most + 1))
        + LINE * max(note.count("\n") + 1 for note in notes[i : i + columns])
        + 1.8 * GAP
        for i in range(0, len(images), columns)
    ]
    with printed():
        total = sum(heights)
        figure = plt.figure(figsize=(width, total), layout="constrained")
        figure.set_layout_engine("none")  # in its place: everything has its own, which no layout may move
        for i, image in enumerate(images):
            row, column = divmod(i, columns)
            bottom = total - sum(heights[: row + 1])
            place = (column / columns, bottom / total, 1 / columns, heights[row] / total)
            axis = figure.add_axes(place, xlim=(0, panel), ylim=(heights[row], 0), autoscale_on=False)
            axis.axis("off")
            _panel(axis, image, set(truth[i]), {method: lists[i] for method, lists in rows.items()}, notes[i], most)
    return figure


def _missed(labels, lists, panel: float) -> str:
    """The true labels that are in no list, as lines that fit the panel."""
    found = {name for best in lists for name, _ in best}
    missed = ", ".join(name for name in labels if name not in found) or "none"
    by = {1: "", 2: " by both"}.get(len(lists), " by all")
    return textwrap.fill(f"missed{by}: {missed}", int(panel / LETTER))


def _panel(axis, image, truth: set, lists: dict, note: str, most: int) -> None:
    """A picture, a column for each method, and what all of them missed; units of the axis are inches."""
    scale, panel = PICTURE / max(image.shape[:2]), axis.get_xlim()[1]
    h, w = (scale * side for side in image.shape[:2])
    axis.imshow(image, extent=(GAP / 2, GAP / 2 + w, GAP + h, GAP), aspect="auto", interpolation="lanczos")
    left = PICTURE + 1.5 * GAP
    step = min((panel - left) / len(lists), 1.4 * LIST)
    for i, (method, best) in enumerate(lists.items()):
        x = left + i * step
        _write(axis, x, GAP + LINE / 2, method, step - GAP, weight="bold")
        for line, (name, score) in enumerate(best, 1):
            y, (sign, colour) = GAP + LINE * (line + 0.5), SIGNS[name in truth]
            _write(axis, x, y, sign, 0.12, color=colour, family=SIGN_FONT)
            number = _write(axis, x + step - GAP, y, f"{score:.2f}", 0.3, fontsize=6, color="0.4", ha="right")
            _write(axis, x + 0.13, y, name, step - GAP - 0.19 - number, color=colour)
    _write(axis, GAP / 2, GAP * 1.4 + max(PICTURE, LINE * (most + 1)), note, panel - GAP, va="top")
    axis.set(xlim=(0, panel), ylim=axis.get_ylim())


def _write(axis, x: float, y: float, words: str, room: float, fontsize: float = 7, va="center", **look) -> float:
    """Text that is at most ``room`` inches wide: smaller if need be, then cut. Returns its width in inches."""
    text = axis.text(x, y, literal(words), fontsize=fontsize, va=va, **look)
    measured = lambda: text.get_window_extent().width / axis.figure.dpi
    while measured() > room and text.get_fontsize() > SMALLEST:
        text.set_fontsize(text.get_fontsize() - 0.5)
    while measured() > room and len(words) > 1:
        words = words[:-1]
        text.set_text(literal(words.rstrip()) + "…")
    return measured()


def size_bars(frame, ours: str = "HRCF", width: float = PAGE):
    r"""mAP of each method for things of each size, one panel per task.

    A bar is the mean over seeds, its line spans the lowest to the highest seed. Methods keep the order of their
    mean over everything that is drawn; ``ours`` alone has a colour.

    Args:
        frame: one row for each (method, seed, task, size), with ``mAP`` in percent; NaN where no label has a positive.
            Tasks and sizes keep the order in which they occur.
        ours: the method in colour.
        width: of the figure in inches.

    Returns the figure. Raises ``ValueError`` for a missing column, no row, or two rows of one method, seed, task and
    size.
    """
    need(frame, ["method", "seed", "task", "size", "mAP"], "size_bars")
    twice = frame.duplicated(["method", "seed", "task", "size"])
    if twice.any():
        row = frame[twice].iloc[0]
        raise ValueError(f"{row['method']}, seed {row['seed']}, {row['task']}, {row['size']} has two rows: give one")
    tasks, sizes = (list(dict.fromkeys(frame[name])) for name in ("task", "size"))
    methods = list(frame.groupby("method", sort=False)["mAP"].mean().sort_values(kind="stable").index)
    greys = iter(np.linspace(*GREYS, max(1, len(methods) - 1)))
    colours = [COLOURS[0] if method == ours else (grey := float(next(greys)), grey, grey) for method in methods]
    with printed():
        size = (width, SIZES_HEIGHT)
        figure, axes = plt.subplots(1, len(tasks), figsize=size, layout="constrained", sharey=True, squeeze=False)
        for axis, task in zip(axes[0], tasks):
            _bars(axis, frame[frame["task"] == task], methods, sizes, colours)
            axis.set(title=task, xlabel="")
        axes[0, 0].set_ylabel("mAP (%)")
        legend(figure, methods)
    return figure


def _bars(axis, part, methods, sizes, colours) -> None:
    """The bars of one task; a size that no label has is marked."""
    about = {"errorbar": ("pi", 100), "err_kws": {"color": "black", "lw": 0.8}, "edgecolor": "white", "lw": 0.5}
    order = {"order": sizes, "hue": "method", "hue_order": methods, "palette": colours, "saturation": 1}
    sns.barplot(part, x="size", y="mAP", ax=axis, **order, **about)
    axis.get_legend().remove()
    for place, size in enumerate(sizes):
        if part.loc[part["size"] == size, "mAP"].isna().all():
            axis.annotate("none", (place, 0), (0, 2), textcoords="offset points", ha="center", fontsize=7, color="0.4")
    axis.tick_params(axis="x", length=0)
    axis.grid(visible=False, axis="x")
