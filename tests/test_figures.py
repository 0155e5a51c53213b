"""Figures for print: verdicts that need no colour, the same file for the same figure, one legend, nothing clipped."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hrcf_lib import figures, results


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    monkeypatch.chdir(tmp_path)
    yield results.out_folder("figures")
    figures.plt.close("all")


def measured() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "label": ["with RSA", "with RSS", "a prompt with a name that is rather long", "not yet"],
            "difference": [2.0, -1.0, 0.1, np.nan],
            "low": [1.0, -1.5, -0.4, np.nan],
            "high": [3.0, -0.5, 0.6, np.nan],
            "verdict": ["better", "worse", "open", ""],
            "paper": [1.2, 0.5, np.nan, 12.3],
            "group": ["Table II", "Table II", "Table III", "Table IV"],
        }
    )


def swept(x="lam", values=(0, 0.5, 1)) -> pd.DataFrame:
    tasks = {"ZSL": 30, "GZSL": 28}
    return pd.DataFrame(
        [
            {x: v, "seed": seed, "task": t, "mAP": m + v + seed}
            for v in values
            for seed in (0, 1)
            for t, m in tasks.items()
        ]
    )


def test_a_verdict_can_be_told_without_colour():
    looks = [(look["marker"], look["mfc"] == "white") for look in figures.VERDICTS.values()]
    assert len(set(looks)) == 3 and figures.PAPER["marker"] not in {marker for marker, _ in looks}


@pytest.mark.parametrize("width", [figures.COLUMN, figures.PAGE])
def test_effects_draw_every_row_once(width):
    axis = figures.effects(measured(), width=width).axes[0]
    drawn = {line.get_label(): line for line in axis.lines}
    assert drawn["better"].get_xdata() == [2.0] and drawn["worse"].get_marker() == "s"
    assert drawn["open"].get_markerfacecolor() == "white"
    assert [line.get_xdata()[0] for line in axis.lines if line.get_label() == figures.PAPER_NAME] == [1.2, 0.5, 12.3]
    intervals = [list(line.get_xdata()) for line in axis.lines[1:] if len(line.get_xdata()) == 2]
    assert intervals == [[1.0, 3.0], [-1.5, -0.5], [-0.4, 0.6]]
    texts = [text.get_text() for text in axis.texts]
    assert texts.count("not measured") == 1 and {"Table II", "Table III", "Table IV"} <= set(texts)
    assert ("+2.0 [+1.0, +3.0]" in texts) == (width > figures.COLUMN)


@pytest.mark.parametrize("width", [figures.COLUMN, figures.PAGE])
def test_nothing_is_clipped_and_nothing_overlaps(width):
    figure = figures.effects(measured(), width=width)
    figure.canvas.draw()
    axis, frame = figure.axes[0], figure.bbox
    words = [*axis.get_yticklabels(), *axis.texts, axis.xaxis.label, *figure.legends]
    boxes = [word.get_window_extent() for word in words]
    for box in boxes:
        assert box.x0 >= -1 and box.x1 <= frame.width + 1 and box.y0 >= -1 and box.y1 <= frame.height + 1
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.shrunk(0.9, 0.9).overlaps(b)]


def test_sweep_shows_means_bands_and_choices():
    axis = figures.sweep(swept(), "lam", columns={"GZSL": "all labels"}, paper=0.25, chosen=0.5, xlabel="λ").axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines) == ["the paper's choice", "all labels", "chosen on val"]
    assert list(lines["all labels"].get_ydata()) == [28.5, 29.0, 29.5] and lines["chosen on val"].get_xdata() == [0.5]
    assert axis.get_xlabel() == "λ" and len(axis.collections) == 1


def test_axes_of_one_figure_share_a_legend():
    figure, axes = figures.plt.subplots(1, 2)
    for axis in axes:
        figures.sweep(swept("M", (4, 8)), "M", paper=8, axis=axis)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ZSL", "GZSL", "the paper's choice"]
    assert axes[0].get_xticks().tolist() == [4, 8]


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="effects: the frame has no column 'low'"):
        figures.effects(measured().drop(columns="low"))
    with pytest.raises(ValueError, match="no rows"):
        figures.effects(measured()[:0])
    with pytest.raises(ValueError, match="unknown verdict 'good': choose one of better"):
        figures.effects(measured().assign(verdict="good"))
    with pytest.raises(ValueError, match="sweep: the frame has no column 'keep'"):
        figures.sweep(swept(), "keep")
    with pytest.raises(ValueError, match="no row of task 'seen': the frame has ZSL, GZSL"):
        figures.sweep(swept(), "lam", columns={"seen": "seen"})
    with pytest.raises(ValueError, match="unknown style 'poster': choose screen or print"):
        figures.style("poster")


def test_publish_writes_the_same_files_in_the_size_of_print(folder):
    png, svg = figures.publish(figures.effects(measured()), "effects")
    before = svg.read_bytes()
    assert [png, svg] == [folder / "effects.png", folder / "effects.svg"]
    with Image.open(png) as image:
        assert image.width == round(300 * figures.COLUMN)
    figures.publish(figures.effects(measured()), "effects")
    assert svg.read_bytes() == before
    text = before.decode()
    assert "<dc:date>" not in text and "<text" not in text, "text is drawn as outlines, without a date"
    assert float(re.search(r'width="([\d.]+)pt"', text)[1]) == pytest.approx(72 * figures.COLUMN)


def test_printing_leaves_the_notebook_in_its_own_style():
    figures.style()
    before = dict(figures.plt.rcParams)
    figures.effects(measured())
    assert dict(figures.plt.rcParams) == before
