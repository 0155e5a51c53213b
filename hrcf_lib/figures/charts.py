r"""Plots in one style, and saving them under the paper's names. Colours are safe for colour-blind readers."""

import textwrap
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from scipy.stats import binomtest

from hrcf_lib.data.mojiscenes import MojiScenes
from hrcf_lib.engine.files import make_folder
from hrcf_lib.engine.messages import need
from hrcf_lib.studies.records import out_folder

COLOURS = sns.color_palette("colorblind")
RIGHT, WRONG = COLOURS[2], COLOURS[3]
COLUMN, PAGE = 3.5, 7.16  # inches: a column and the page of an IEEE journal
TITLE_WIDTH, MOST_LINES = 26, 5  # characters and lines of a title: a photograph of NUS-WIDE can have dozens of tags
TASKS = {"ZSL": (COLOURS[0], "o", "-"), "GZSL": (COLOURS[1], "s", "--"), "seen": (COLOURS[2], "^", "-.")}
SPINES = {"axes.spines.top": False, "axes.spines.right": False}
SCREEN = SPINES | {"figure.dpi": 90, "savefig.dpi": 150, "savefig.bbox": "tight"}
PRINT = SPINES | {  # at the size of COLUMN or PAGE, not scaled afterwards
    **{f"{part}.labelsize": 8 for part in ("axes", "xtick", "ytick")},
    **{"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "legend.title_fontsize": 7},
    **{"lines.linewidth": 1.2, "lines.markersize": 4, "grid.linewidth": 0.5, "axes.linewidth": 0.8},
    **{"xtick.major.pad": 2, "ytick.major.pad": 2, "axes.labelpad": 3},
    **{"figure.dpi": 150, "savefig.dpi": 300, "savefig.bbox": None},
}


def style(kind: str = "screen") -> None:
    """Call once at the top of a notebook: ``screen``, or ``print`` for figures of the width ``COLUMN`` or ``PAGE``."""
    if kind not in ("screen", "print"):
        raise ValueError(f"unknown style {kind!r}: choose screen or print")
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams.update(SCREEN if kind == "screen" else PRINT)


@contextmanager
def printed():
    """The style ``print`` for the figures made inside, whatever the notebook's own."""
    with plt.rc_context():
        style("print")
        yield


def save(figure, name: str) -> Path:
    """``figures/<name>.png`` (below ``runs/`` for a smoke run); returns the path."""
    path = out_folder("figures") / f"{name}.png"
    make_folder(path.parent)
    figure.savefig(path)
    return path


def publish(figure, name: str) -> list[Path]:
    """``<name>.png`` (300 dpi) and ``<name>.svg`` where ``save`` puts figures, in the figure's own size; returns both.

    The SVG holds its text as outlines and no date: the same figure gives the same file. The figure is closed, so that a
    notebook shows it once, where it says ``display(figure)``.
    """
    folder = make_folder(out_folder("figures"))
    if figure.get_layout_engine() is None:
        figure.set_layout_engine("constrained")
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with plt.rc_context({"svg.hashsalt": "hrcf", "svg.fonttype": "path", "savefig.bbox": None}):
        figure.savefig(paths[0], dpi=300)
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return paths


def literal(text) -> str:
    r"""A text that a figure shows as it is: matplotlib would read text between two dollar signs as mathematics.

    >>> literal("Ke$ha, A$AP")
    'Ke\\$ha, A\\$AP'
    """
    return str(text).replace("$", r"\$")


def wrapped(text, width: int, max_lines: int | None = None) -> str:
    """A text for a figure (``literal``), in lines of at most ``width`` characters."""
    return literal(textwrap.fill(str(text), width, max_lines=max_lines, placeholder=" ..."))


def gallery(images, titles, columns: int = 4, size: float = 2.3, colours=None):
    """A grid of pictures (H, W, 3), each with its title; returns the figure. Raises ``ValueError`` where there is none,
    or as many titles as pictures are not given."""
    if not len(images) or len(titles) != len(images):
        raise ValueError(f"{len(images)} pictures with {len(titles)} titles: give at least one, and a title for each")
    rows = int(np.ceil(len(images) / columns))
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.5) * rows), squeeze=False)
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(images):
            axis.imshow(images[i], interpolation="lanczos")
            colour = colours[i] if colours else "black"
            axis.set_title(wrapped(titles[i], TITLE_WIDTH, MOST_LINES), fontsize=8, color=colour)
    figure.tight_layout()
    return figure


def scene_gallery(scenes, columns: int = 4, boxes: bool = True):
    """MojiScenes with what was drawn, without the words above it, and boxes of things; returns the figure."""
    figure = gallery([s.image for s in scenes], [", ".join(s.drawn) for s in scenes], columns)
    for axis, scene in zip(figure.axes, scenes, strict=False):
        for x0, y0, x1, y1 in scene.boxes[: scene.things] if boxes else ():
            axis.add_patch(plt.Rectangle((x0, y0), x1 - x0 - 1, y1 - y0 - 1, fill=False, color="white", lw=1))
    return figure


def examples(splits, number: int = 8, columns: int = 4):
    """The first pictures of each split with their labels, ``number`` in all; scenes of MojiScenes show their boxes.

    ``splits`` are data sets as ``data.open_split`` returns them. Returns the figure.
    """
    shown = [(split, i) for split in splits for i in range(min(number // len(splits), len(split)))]
    if all(isinstance(split, MojiScenes) for split in splits):
        return scene_gallery([split.scene(i) for split, i in shown], columns)
    images, titles = [], []
    for split, i in shown:
        image, labels = split[i]  # (3, side, side), (K,) of 1, -1 and 0
        images.append(image.permute(1, 2, 0).numpy())
        titles.append(", ".join(name for name, value in zip(split.labels.names, labels) if value == 1))
    return gallery(images, titles, columns)


def where(image: np.ndarray, names, scores, maps, truth=()):
    """A picture, the bars of its best labels (right ones green), and a heat map for each; returns the figure."""
    n = len(names)
    figure, axes = plt.subplots(1, n + 2, figsize=(2.1 * (n + 2), 2.4), width_ratios=[1, 1.1] + [1] * n)
    axes[0].imshow(image, interpolation="lanczos")
    title = "true: " + ", ".join(truth) if truth else "picture"
    axes[0].set_title(wrapped(title, TITLE_WIDTH, MOST_LINES), fontsize=8)
    colours = [RIGHT if name in truth or not truth else WRONG for name in names]
    axes[1].barh(range(n), scores, color=colours)
    axes[1].set_yticks(range(n), [literal(name) for name in names], fontsize=8)
    axes[1].invert_yaxis()
    axes[1].tick_params(axis="x", labelsize=7)
    axes[1].set_title("score", fontsize=8)
    for axis, name, heat in zip(axes[2:], names, maps, strict=True):
        axis.imshow(image, interpolation="lanczos")
        axis.imshow(heat, cmap="inferno", alpha=0.55)
        axis.set_title(literal(name), fontsize=8)
    for axis in (axes[0], *axes[2:]):
        axis.axis("off")
    figure.tight_layout()
    return figure


CURVES = {"ranking": "ranking loss", "distillation": "distillation loss", "lr": "learning rate"}


def curves(history, every: int = 50, scores=None, plain=None):
    r"""Losses and learning rate of a training run, averaged over ``every`` steps, and scores along it.

    Args:
        history: what ``train`` returns for an HRCF.
        scores: rows of ``studies.over_training``: mAP of each task against the step, in a panel of its own.
        plain: task -> mAP of the plain VLP on the same pictures: a dotted line.

    Phases of prompts are shaded. Returns the figure.
    """
    figure, axes = plt.subplots(*((1, 3) if scores is None else (2, 2)), figsize=(9.5, 2.6 if scores is None else 5))
    for axis, (column, title) in zip(axes.flat, CURVES.items(), strict=False):
        for side, name, colour in (("hcg", "image side", COLOURS[0]), ("prompts", "prompts", COLOURS[1])):
            part = history[history.side == side]
            if len(part) and not (column == "distillation" and side == "prompts"):
                values = part[column].rolling(min(every, len(part)), min_periods=1).mean()
                for _, piece in part.assign(value=values).groupby("phase"):
                    axis.plot(piece.step, piece.value, color=colour, label=name)
        axis.set(xlabel="step", title=title)
    if scores is not None:
        _scores_over_steps(axes.flat[-1], scores, plain or {})
    for axis in axes.flat:
        for _, phase in history[history.side == "prompts"].groupby("phase"):
            axis.axvspan(phase.step.min(), phase.step.max(), color=COLOURS[1], alpha=0.12, lw=0)
    handles = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=False))
    axes.flat[0].legend(handles.values(), handles.keys(), fontsize=8)
    figure.tight_layout()
    return figure


def _scores_over_steps(axis, scores, plain: dict) -> None:
    for task, part in scores.groupby("task", sort=False):
        colour, marker, line = TASKS.get(task, (COLOURS[4], "v", ":"))
        axis.plot(part["step"], part["mAP"], color=colour, marker=marker, ls=line, ms=4, label=task)
        if task in plain:
            axis.axhline(plain[task], color=colour, ls=":", lw=1)
    axis.set(xlabel="step", title="mAP (%) on val" + ("; dotted: the plain VLP" if plain else ""))
    axis.legend(fontsize=8)


MARKERS, LINES = "osD^vPX", ("-", "--", "-.", ":")


def line_look(i: int) -> dict:
    """Colour, marker and stroke of the line number ``i`` of a figure: each tells it from the others."""
    return {"color": COLOURS[i % 10], "marker": MARKERS[i % len(MARKERS)], "ls": LINES[i % len(LINES)]}


def _look(colour, marker: str, fill=None) -> dict:
    return {"color": colour, "marker": marker, "mfc": colour if fill is None else fill, "mec": colour, "ls": "none"}


VERDICTS = {  # colour, shape and fill each show a verdict by itself
    **dict.fromkeys(("better", "agrees"), _look(COLOURS[0], "o")),
    **dict.fromkeys(("worse", "opposite"), _look(COLOURS[3], "s")),
    "open": _look("0.35", "o", "white"),
}
PAPER_NAME = "paper (its data)"
PAPER = _look("black", "D", "none")
BESIDE = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
CLEAR = {"fc": "white", "ec": "none", "pad": 1}
AT_EDGE = BESIDE | {"xycoords": ("axes fraction", "data")}
ROW, EXTRA_LINE, BELOW = 0.17, 0.8, 0.95  # of ``effects``: inches a row, rows a further line, inches of axis and legend
NARROW, WIDE = 28, 60  # characters in a line of a label, in a figure of COLUMN and in a wider one


def effects(frame, label_column: str = "label", width: float = COLUMN, xlabel: str = "percentage points"):
    r"""Forest plot: one row per effect, its difference and interval; colour, shape and fill all show the verdict.

    Args:
        frame: rows in order, with ``difference``, ``low``, ``high`` (percentage points; NaN: not measured), ``verdict``
            (a key of ``VERDICTS``) and optionally ``paper`` (the paper's difference, a diamond) and ``group`` (a
            heading over rows that follow each other).
        width: of the figure, in inches; the height follows from the rows. Wider than ``COLUMN``, the numbers stand
            beside the rows.

    Returns the figure. Raises ``ValueError`` for a missing column, no row or an unknown verdict.
    """
    need(frame, [label_column, "difference", "low", "high", "verdict"], "figures.effects")
    unknown = set(frame["verdict"][frame["difference"].notna()]) - set(VERDICTS)
    if unknown:
        raise ValueError(f"unknown verdict {sorted(map(str, unknown))[0]!r}: choose one of {', '.join(VERDICTS)}")
    labels = [wrapped(text, NARROW if width <= COLUMN else WIDE) for text in frame[label_column]]
    groups = list(frame["group"]) if "group" in frame else [None] * len(frame)
    heads = [here != before for here, before in zip(groups, [None, *groups])]
    heights = np.array([1 + EXTRA_LINE * text.count("\n") for text in labels])
    places = np.cumsum(heights + heads) - heights / 2
    with printed():
        size = (width, BELOW + ROW * (heights.sum() + sum(heads)))
        figure, axis = plt.subplots(figsize=size, layout="constrained")
        axis.axvline(0, color="black", lw=0.8)
        for place, row in zip(places, frame.to_dict("records")):
            _effect(axis, place, row, numbers=width > COLUMN)
        axis.set_yticks(places, labels)
        axis.tick_params(axis="y", length=0, pad=3)
        for place, height, group, head in zip(places, heights, groups, heads):
            if head:
                axis.annotate(
                    literal(group), (0, place - height / 2 - 0.5), (-3, 0), **AT_EDGE, ha="right", weight="bold"
                )
        axis.set(ylim=(places[-1] + heights[-1] / 2 + 0.1, -0.1), xlabel=xlabel)
        axis.grid(visible=False, axis="y")
        axis.spines["left"].set_visible(False)
        legend(figure, [*VERDICTS, PAPER_NAME])
    return figure


def _effect(axis, place: float, row: dict, numbers: bool) -> None:
    paper, measured, text = row.get("paper", np.nan), not np.isnan(row["difference"]), "not measured"
    if measured:
        look = VERDICTS[row["verdict"]]
        axis.plot([row["low"], row["high"]], [place, place], color=look["color"], lw=1.4, zorder=2)
        axis.plot(row["difference"], place, **look, zorder=3, label=row["verdict"])
        text = f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]".replace("-", "−")
    if not np.isnan(paper):
        axis.plot(paper, place, **PAPER, ms=4.5, zorder=4, label=PAPER_NAME)
    if numbers:
        axis.annotate(text, (1, place), (5, 0), **AT_EDGE, fontsize=7)
    elif not measured:
        axis.annotate(text, (np.nan_to_num(paper), place), (6, 0), **BESIDE, fontsize=7, bbox=CLEAR)


MOST_TICKS = 8  # values of a setting that each get a tick
SWEEP_HEIGHT = 2.52  # inches


def sweep(
    frame, x: str, columns=None, marks=None, paper=None, chosen=None, xlabel="", ylabel="", axis=None, metric="mAP"
):  # fmt: skip
    r"""A metric against a setting: for each task the mean over seeds, and a band from the lowest seed to the highest.

    Args:
        frame: a row for each (x, seed, task): columns ``x``, ``seed``, ``task`` and ``metric`` in percent.
        columns: task -> its name in the legend, in order; by default every task of the frame under its own name.
        marks: text -> value of x: further dotted lines.
        paper: the paper's choice of x (its curve is printed nowhere): a dotted line.
        chosen: the value chosen on val: a star on each line.
        axis: to draw into, in place of a new figure one ``COLUMN`` wide; the legend is one for all axes of its figure.
        metric: the column that is drawn.

    Returns the figure. Raises ``ValueError`` for a missing column or a task without rows.
    """
    need(frame, [x, "seed", "task", metric], "figures.sweep")
    columns = columns or {task: task for task in dict.fromkeys(frame["task"])}
    lines = ({} if paper is None else {"the paper's choice": paper}) | (marks or {})
    with printed():
        if axis is None:
            axis = plt.subplots(figsize=(COLUMN, SWEEP_HEIGHT), layout="constrained")[1]
        for text, place in lines.items():
            alpha = 1 if text == "the paper's choice" else 0.5
            axis.axvline(place, color="black", ls=":", lw=1.2, alpha=alpha, label=text)
        for task, name in columns.items():
            part = frame[frame["task"] == task]
            if not len(part):
                raise ValueError(f"no row of task {task!r}: the frame has {', '.join(dict.fromkeys(frame['task']))}")
            colour, marker, line = TASKS.get(task, (COLOURS[4], "v", ":"))
            over_seeds(axis, part, x, metric, color=colour, marker=marker, ls=line, label=name)
            if chosen in set(part[x]):
                axis.plot(chosen, part.loc[part[x] == chosen, metric].mean(), **STAR, label="chosen on val")
        values = sorted(set(frame[x]))
        if len(values) <= MOST_TICKS:
            axis.set_xticks(values, [f"{v:g}" for v in values])
        axis.set(xlabel=xlabel or x, ylabel=ylabel or f"{metric} (%)")
        legend(axis.figure, [*columns.values(), *lines])
    return axis.figure


def reliability(tables: dict, width: float = COLUMN):
    r"""The share of labels that are in the picture against their probability, which lie on the diagonal if calibrated.

    ``tables`` maps a name to a table of ``calibration.reliability``, which is drawn as one line. Both axes are
    logarithmic, since most probabilities of labels are small. Bars are 95 % intervals of the share (Wilson's); a share
    of 0 is drawn at the lower edge. Returns the figure.
    Raises ``ValueError`` for a missing column or a table without rows.
    """
    for frame in tables.values():
        need(frame, ["said", "true", "answers"], "figures.reliability")
    low = 0.7 * min(min(frame["said"].min(), frame["true"][frame["true"] > 0].min()) for frame in tables.values())
    with printed():
        figure, axis = plt.subplots(figsize=(width, 1.05 * width), layout="constrained")
        axis.plot([low, 1], [low, 1], color="black", lw=0.8, label="as promised")
        for i, (name, frame) in enumerate(tables.items()):
            counts = zip(frame["true"] * frame["answers"], frame["answers"])
            ends = np.transpose([binomtest(round(k), int(n)).proportion_ci(method="wilson") for k, n in counts])
            look = {"color": COLOURS[i % 10], "marker": "osD^v"[i % 5], "ls": ("-", "--", "-.", ":")[i % 4]}
            axis.vlines(frame["said"], *np.clip(ends, low, 1), color=look["color"], lw=1)
            axis.plot(frame["said"], frame["true"].clip(lower=low), **look, label=name)
        axis.set(xscale="log", yscale="log", xlim=(low, 1.1), ylim=(low, 1.1))
        axis.set(xlabel="probability that was given", ylabel="share that is in the picture", aspect="equal")
        legend(figure, [*tables, "as promised"])
    return figure


def over_seeds(axis, frame, x: str, y: str, **look) -> None:
    """Draw the mean of a column over seeds as a line, and a band from the lowest seed to the highest."""
    edge = {"markeredgecolor": look["color"], "markeredgewidth": plt.rcParams["lines.markeredgewidth"]}
    sns.lineplot(frame, x=x, y=y, ax=axis, errorbar=("pi", 100), err_kws={"lw": 0}, legend=False, **edge, **look)


def check_lists(images, lists: dict, methods) -> None:
    """Raise ``ValueError`` for no picture, no method, or a list whose length is not the number of pictures."""
    if not len(images) or not len(methods):
        raise ValueError(f"{len(images)} pictures and {len(methods)} methods: give at least one of each")
    for name, own in lists.items():
        if len(own) != len(images):
            raise ValueError(f"{name!r} has {len(own)} entries for {len(images)} pictures: give one each")


LEGEND_MARK, LEGEND_LETTER = 0.45, 0.06  # inches at 7 pt: a mark with its space, and one letter
STAR = {"marker": "*", "ms": 9, "mfc": "white", "mec": "black", "ls": "none", "zorder": 4}


def legend(figure, order) -> None:
    """One legend below all axes, each name once: first those of ``order``."""
    for old in figure.legends:
        old.remove()
    pairs = [pair for axis in figure.axes for pair in zip(*reversed(axis.get_legend_handles_labels()))]
    handles = dict(reversed(pairs))
    names = [*(name for name in order if name in handles), *(name for name in handles if name not in order)]
    widest = LEGEND_MARK + LEGEND_LETTER * max(map(len, names), default=0)
    rows = -(-len(names) // max(1, int(figure.get_figwidth() / widest)))
    columns = max(1, -(-len(names) // max(1, rows)))
    figure.legend(
        [handles[n] for n in names],
        [literal(n) for n in names],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
