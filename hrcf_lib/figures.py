r"""Plots in one style, and saving them under the paper's names. Colours are safe for colour-blind readers."""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

from hrcf_lib.results import out_folder

COLOURS = sns.color_palette("colorblind")
RIGHT, WRONG = COLOURS[2], COLOURS[3]


def style() -> None:
    """Call once at the top of a notebook."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams.update(
        {
            "figure.dpi": 90,
            "savefig.dpi": 150,
            "savefig.bbox": "tight",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def save(figure, name: str) -> Path:
    """``figures/<name>.png`` (below ``runs/`` for a smoke run); returns the path."""
    path = out_folder("figures") / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _wrapped(text: str) -> str:
    """Five lines at most: a photograph of NUS-WIDE can have dozens of tags."""
    return textwrap.fill(text, 26, max_lines=5, placeholder=" ...")


def gallery(images, titles, columns: int = 4, size: float = 2.3, colours=None):
    """A grid of pictures (H, W, 3) with a title each; returns the figure."""
    rows = int(np.ceil(len(images) / columns))
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, (size + 0.5) * rows), squeeze=False)
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(images):
            axis.imshow(images[i], interpolation="lanczos")
            colour = colours[i] if colours else "black"
            axis.set_title(_wrapped(titles[i]), fontsize=8, color=colour)
    figure.tight_layout()
    return figure


def scene_gallery(scenes, columns: int = 4, boxes: bool = True):
    """MojiScenes with their labels and boxes; returns the figure."""
    figure = gallery([s.image for s in scenes], [", ".join(s.names) for s in scenes], columns)
    for axis, scene in zip(figure.axes, scenes, strict=False):
        for x0, y0, x1, y1 in scene.boxes if boxes else ():
            if x1 - x0 < scene.image.shape[1]:
                axis.add_patch(plt.Rectangle((x0, y0), x1 - x0 - 1, y1 - y0 - 1, fill=False, color="white", lw=1))
    return figure


def where(image: np.ndarray, names, scores, maps, truth=()):
    """A picture, the bars of its best labels (right ones green), and a heat map for each; returns the figure."""
    n = len(names)
    figure, axes = plt.subplots(1, n + 2, figsize=(2.1 * (n + 2), 2.4), width_ratios=[1, 1.1] + [1] * n)
    axes[0].imshow(image, interpolation="lanczos")
    axes[0].set_title(_wrapped("true: " + ", ".join(truth)) if truth else "picture", fontsize=8)
    colours = [RIGHT if name in truth or not truth else WRONG for name in names]
    axes[1].barh(range(n), scores, color=colours)
    axes[1].set_yticks(range(n), names, fontsize=8)
    axes[1].invert_yaxis()
    axes[1].tick_params(axis="x", labelsize=7)
    axes[1].set_title("score", fontsize=8)
    for axis, name, heat in zip(axes[2:], names, maps, strict=True):
        axis.imshow(image, interpolation="lanczos")
        axis.imshow(heat, cmap="inferno", alpha=0.55)
        axis.set_title(name, fontsize=8)
    for axis in (axes[0], *axes[2:]):
        axis.axis("off")
    figure.tight_layout()
    return figure


def curves(history, every: int = 50):
    """Losses and learning rate of a training run, averaged over ``every`` steps, phases shaded; returns the figure."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.8))
    for axis, column in zip(axes, ("ranking", "distillation", "lr"), strict=True):
        for side, colour in (("hcg", COLOURS[0]), ("prompts", COLOURS[1])):
            part = history[history.side == side]
            if len(part) and not (column == "distillation" and side == "prompts"):
                values = part[column].rolling(min(every, len(part)), min_periods=1).mean()
                for _, piece in part.assign(value=values).groupby("phase"):
                    axis.plot(piece.step, piece.value, color=colour, label=side)
        for _, phase in history[history.side == "prompts"].groupby("phase"):
            axis.axvspan(phase.step.min(), phase.step.max(), color=COLOURS[1], alpha=0.12, lw=0)
        axis.set(
            xlabel="step",
            title={"ranking": "ranking loss", "distillation": "distillation loss", "lr": "learning rate"}[column],
        )
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=False))
    axes[0].legend(handles.values(), handles.keys(), fontsize=8)
    figure.tight_layout()
    return figure
