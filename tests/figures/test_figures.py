"""Figures for print: verdicts that need no colour, the same file for the same figure, one legend, nothing clipped."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hrcf_lib import figures
from hrcf_lib.data.mojiscenes import MojiScenes
from hrcf_lib.figures import charts, tables
from hrcf_lib.figures import maps as map_figures
from hrcf_lib.figures import methods as method_figures
from hrcf_lib.labels import LabelSpace
from hrcf_lib.studies import records


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    monkeypatch.chdir(tmp_path)
    yield records.out_folder("figures")
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
    looks = [(look["marker"], look["mfc"] == "white") for look in charts.VERDICTS.values()]
    assert len(set(looks)) == 3 and charts.PAPER["marker"] not in {marker for marker, _ in looks}


@pytest.mark.parametrize("width", [figures.COLUMN, figures.PAGE])
def test_effects_draw_every_row_once(width):
    axis = figures.effects(measured(), width=width).axes[0]
    drawn = {line.get_label(): line for line in axis.lines}
    assert drawn["better"].get_xdata() == [2.0] and drawn["worse"].get_marker() == "s"
    assert drawn["open"].get_markerfacecolor() == "white"
    assert [line.get_xdata()[0] for line in axis.lines if line.get_label() == charts.PAPER_NAME] == [1.2, 0.5, 12.3]
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
    assert axis.get_xlabel() == "λ" and axis.get_ylabel() == "mAP (%)" and len(axis.collections) == 1


def test_sweep_draws_another_metric():
    frame = swept().rename(columns={"mAP": "F1@3"})
    axis = figures.sweep(frame, "lam", columns={"GZSL": "all labels"}, chosen=0.5, metric="F1@3").axes[0]
    assert axis.get_ylabel() == "F1@3 (%)" and list(axis.lines[0].get_ydata()) == [28.5, 29.0, 29.5]
    with pytest.raises(ValueError, match="sweep: the frame has no column 'mAP'"):
        figures.sweep(frame, "lam")


def test_a_band_goes_from_the_least_seed_to_the_greatest():
    axis = figures.sweep(swept(), "lam", columns={"ZSL": "ZSL"}).axes[0]
    corners = axis.collections[0].get_paths()[0].vertices
    assert {(x, y) for x, y in corners.tolist()} == {(v, 30 + v + seed) for v in (0, 0.5, 1) for seed in (0, 1)}


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


class Photographs:
    """A split whose pictures have no scene."""

    labels = LabelSpace(("cat", "dog"), ("sea",))

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return torch.zeros(3, 8, 8, dtype=torch.uint8), torch.tensor([1.0, -1.0, 1.0 - i])


def test_examples_of_several_splits():
    titles = lambda figure: [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles(figures.examples([Photographs()])) == ["cat, sea", "cat", "cat"], "no more than there are"
    splits = [MojiScenes(split, 4) for split in ("test", "test-line")]
    figure = figures.examples(splits, number=4)
    names = [", ".join(split.scene(i).drawn) for split in splits for i in range(2)]
    assert [title.replace("\n", " ") for title in titles(figure)] == names
    assert [len(axis.patches) for axis in figure.axes] == [s.scene(i).things for s in splits for i in range(2)]


@pytest.mark.parametrize("name", ["Ke$ha, A$AP", "$a_$", "5 $"])
def test_dollar_signs_are_no_mathematics(name):
    image, score = np.zeros((8, 8, 3), np.uint8), np.array([0.5])
    for figure in (
        figures.gallery([image], [name]),
        figures.where(image, [name], score, np.zeros((1, 8, 8)), [name]),
        method_figures.label_differences(pd.DataFrame({"label": [name], "HRCF": 1.0, "MKT": 2.0})),
        method_figures.predictions([image], [[name]], {"HRCF": [[(name, 0.5)]]}),
        figures.effects(measured().assign(label=name)),
        figures.effects(measured().assign(group=name)),
        method_figures.label_differences(pd.DataFrame({"label": ["x"], name: 1.0, "MKT": 2.0}), name, "MKT"),
        map_figures.one_label([image], ["x"], {name: [np.zeros((8, 8))]}),
    ):
        figure.canvas.draw()  # raises where a text is read as mathematics that it is not
        texts = [text.get_text() for text in figure.findobj(figures.plt.Text)]
        assert any(name.replace("$", r"\$") in text for text in texts)
        figures.plt.close(figure)


def test_printing_leaves_the_notebook_in_its_own_style():
    figures.style()
    before = dict(figures.plt.rcParams)
    figures.effects(measured())
    assert dict(figures.plt.rcParams) == before


# -- methods side by side


def by_label(n: int) -> pd.DataFrame:
    """Labels 0 to n - 1 in a mixed order; label k gains 10 - k points."""
    ks = np.random.default_rng(0).permutation(n)
    return pd.DataFrame({"label": [f"label {k}" for k in ks], "HRCF": 60.0 - ks, "MKT": 50.0, "positives": 9})


def test_bars_of_labels_fall_and_their_title_counts():
    (axis,) = method_figures.label_differences(by_label(33)).axes
    assert axis.get_title() == "HRCF better on 10 of 33 labels", "an equal one, label 10, is not won"
    assert [bar.get_height() for bar in axis.patches] == [10 - k for k in range(33)]
    assert [text.get_text() for text in axis.get_xticklabels()] == [f"label {k}" for k in range(33)]
    colours = [bar.get_facecolor()[:3] for bar in axis.patches]
    assert set(colours[:10]) == {figures.COLOURS[0]} and set(colours[11:]) == {figures.COLOURS[3]}
    (turned,) = method_figures.label_differences(by_label(33), "MKT", "HRCF").axes
    assert turned.get_title() == "MKT better on 22 of 33 labels" and turned.get_ylabel() == "AP (%), MKT − HRCF"


@pytest.mark.parametrize(("n", "rows"), [(1, 1), (45, 1), (81, 2), (100, 3)])
def test_many_labels_stand_in_rows_of_one_scale_and_can_be_read(n, rows):
    figure = method_figures.label_differences(by_label(n))
    figure.canvas.draw()
    names = [text for axis in figure.axes for text in axis.get_xticklabels()]
    assert len(figure.axes) == rows and [t.get_text() for t in names] == [f"label {k}" for k in range(n)]
    assert len({axis.get_ylim() for axis in figure.axes}) == 1 and len({axis.get_xlim() for axis in figure.axes}) == 1
    assert min(text.get_fontsize() for text in names) >= 7
    assert_readable(figure, names + [axis.yaxis.label for axis in figure.axes])


def assert_readable(figure, texts) -> None:
    """Every text lies in the figure, and on no other."""
    boxes, frame = [text.get_window_extent() for text in texts], figure.bbox
    for text, box in zip(texts, boxes):
        inside = box.x0 >= -1 and box.x1 <= frame.width + 1 and box.y0 >= -1 and box.y1 <= frame.height + 1
        assert inside, text.get_text()
    over = [(a.get_text(), b.get_text()) for i, a in enumerate(texts) for j, b in enumerate(texts[:i])
            if boxes[i].shrunk(0.95, 0.8).overlaps(boxes[j].shrunk(0.95, 0.8))]  # fmt: skip
    assert not over


TRUTH = [["cat", "sea"], ["dog", "fire extinguisher", "palm tree"], ["cat"]]
LISTS = {
    "HRCF": [[("cat", 0.5), ("fire extinguisher", 0.25)], [("dog", 0.4), ("cat", 0.3)], [("dog", 0.9)]],
    "MKT": [[("dog", 25.125), ("cat", 20.0)], [("dog", 1.0), ("a label that is longer than its column", 0.5)], []],
    "BiAM": [[("sea", 0.7)], [("cat", 0.1)], [("cat", 0.1)]],
}


def pictures(n: int) -> list:
    return [np.full((60 + 30 * i, 112, 3), 50 * i, np.uint8) for i in range(n)]


def written(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_predictions_mark_right_and_wrong_twice_and_say_what_was_missed():
    both = {name: LISTS[name] for name in ("HRCF", "MKT")}
    figure = method_figures.predictions(pictures(3), TRUTH, both)
    first, second, third = figure.axes
    signs = lambda axis: [(t.get_text(), t.get_color()) for t in axis.texts if t.get_text() in "✓✗"]
    right, wrong = ("✓", figures.RIGHT), ("✗", figures.WRONG)
    assert signs(first) == [right, wrong, wrong, right] and signs(second) == [right, wrong, right, wrong]
    assert written(first)[-1] == "missed by both: sea", "each of the two lists one of the others"
    assert written(second)[-1] == "missed by both: fire extinguisher, palm tree"
    assert written(third)[-1] == "missed by both: cat"
    assert {"HRCF", "MKT", "cat", "0.50", "25.12"} <= set(written(first)) and len(written(first)) == 2 + 4 * 3 + 1
    assert written(method_figures.predictions(pictures(3), TRUTH, LISTS).axes[0])[-1] == "missed by all: none"
    alone = method_figures.predictions(pictures(3), TRUTH, {"HRCF": LISTS["HRCF"]})
    assert written(alone.axes[2])[-1] == "missed: cat"
    colours = {t.get_text(): t.get_color() for t in second.texts}
    assert colours["dog"] == figures.RIGHT and colours["cat"] == figures.WRONG


@pytest.mark.parametrize("methods", [1, 2, 3])
def test_predictions_fit_their_place(methods):
    rows = {name: LISTS[name] for name in list(LISTS)[:methods]}
    figure = method_figures.predictions(pictures(3), TRUTH, rows)
    figure.canvas.draw()
    assert figure.get_figwidth() == figures.PAGE
    assert_readable(figure, [text for axis in figure.axes for text in axis.texts])
    for axis, image in zip(figure.axes, pictures(3)):
        box, (picture,) = axis.bbox, axis.images
        assert all(box.x0 <= t.get_window_extent().x0 and t.get_window_extent().x1 <= box.x1 for t in axis.texts)
        x0, x1, y0, y1 = picture.get_extent()
        assert (x1 - x0) / (y0 - y1) == pytest.approx(image.shape[1] / image.shape[0]), "no picture is stretched"


def test_a_label_too_long_for_its_column_is_cut_and_no_other():
    both = {name: LISTS[name] for name in ("HRCF", "MKT")}
    names = written(method_figures.predictions(pictures(3), TRUTH, both).axes[1])
    (cut,) = (name for name in names if "…" in name)
    assert "a label that is longer than its column".startswith(cut.rstrip("…")) and len(cut) > 12


def test_predictions_keep_their_layout_when_published(folder):
    figure = method_figures.predictions(pictures(2), TRUTH[:2], {k: v[:2] for k, v in LISTS.items()})
    before = [axis.get_position().bounds for axis in figure.axes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png, _ = figures.publish(figure, "fig5")
    assert [axis.get_position().bounds for axis in figure.axes] == before and png.is_file()


def sizes() -> pd.DataFrame:
    """Method m, seed s, size z: 10 m + s + 100 z; no scene label in ZSL."""
    return pd.DataFrame(
        {"method": m, "seed": s, "task": t, "size": z,
         "mAP": np.nan if (t, z) == ("ZSL", "scene") else 10 * i + s + 100 * j}
        for t in ("ZSL", "GZSL") for i, m in enumerate(("MKT", "HRCF")) for s in (0, 1, 5)
        for j, z in enumerate(("small", "large", "scene"))
    )  # fmt: skip


def test_bars_of_sizes_are_means_with_the_seeds_spread():
    """In the order of the means, though the frame has the worse method last; only ours has a colour."""
    figure = method_figures.size_bars(sizes().sort_values("method", kind="stable"))
    zsl, gzsl = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["ZSL", "GZSL"]
    mkt, hrcf = gzsl.containers
    assert [bar.get_height() for bar in mkt] == [2, 102, 202] and [bar.get_height() for bar in hrcf] == [12, 112, 212]
    assert [text.get_text() for text in gzsl.get_xticklabels()] == ["small", "large", "scene"]
    spans = {tuple(line.get_ydata()): line.get_xdata()[0] for line in gzsl.lines}
    assert list(spans) == [(0, 5), (100, 105), (200, 205), (10, 15), (110, 115), (210, 215)]
    assert [bar.get_x() + bar.get_width() / 2 for bar in (*mkt, *hrcf)] == pytest.approx(list(spans.values()))
    assert all(a.get_x() + a.get_width() <= b.get_x() + 1e-9 for a, b in zip(mkt, hrcf)), "side by side"
    assert written(zsl) == ["none"] and not written(gzsl) and zsl.get_ylim() == gzsl.get_ylim()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["MKT", "HRCF"]
    assert len(set(mkt[0].get_facecolor()[:3])) == 1 and hrcf[0].get_facecolor()[:3] == figures.COLOURS[0]


def test_errors_of_methods_side_by_side():
    with pytest.raises(ValueError, match="label_differences: the frame has no column 'BiAM'"):
        method_figures.label_differences(by_label(3), other="BiAM")
    with pytest.raises(ValueError, match="label 'label 1' has no AP of both methods"):
        frame = by_label(3)
        method_figures.label_differences(frame.assign(MKT=frame["MKT"].where(frame["label"] != "label 1")))
    with pytest.raises(ValueError, match="'MKT' has 3 entries for 2 pictures"):
        method_figures.predictions(pictures(2), TRUTH[:2], {"MKT": LISTS["MKT"]})
    with pytest.raises(ValueError, match="'truth' has 3 entries for 2 pictures"):
        method_figures.predictions(pictures(2), TRUTH, {"MKT": LISTS["MKT"][:2]})
    with pytest.raises(ValueError, match="3 pictures and 0 methods"):
        method_figures.predictions(pictures(3), TRUTH, {})
    with pytest.raises(ValueError, match="size_bars: the frame has no column 'seed'"):
        method_figures.size_bars(sizes().drop(columns="seed"))
    with pytest.raises(ValueError, match="MKT, seed 0, ZSL, small has two rows"):
        method_figures.size_bars(pd.concat([sizes(), sizes()]))


def test_reliability_shows_each_share_and_the_diagonal():
    table = pd.DataFrame({"said": [0.01, 0.1, 0.6], "true": [0.0, 0.12, 0.5], "answers": [900, 400, 40]})
    axis = figures.reliability({"val": table, "test": table.assign(true=0.3)}).axes[0]
    drawn = {line.get_label(): line for line in axis.lines}
    assert list(drawn) == ["as promised", "val", "test"] and list(drawn["val"].get_xdata()) == [0.01, 0.1, 0.6]
    x, y = drawn["as promised"].get_data()
    assert list(x) == list(y) and drawn["val"].get_ydata()[0] == axis.get_ylim()[0] > 0, "0 has no logarithm"
    assert drawn["val"].get_marker() != drawn["test"].get_marker()
    bars = axis.collections[0].get_segments()  # of "val"
    assert bars[1][:, 1] == pytest.approx((0.0917, 0.1556), abs=5e-4), "Wilson's interval of 48 in 400"
    with pytest.raises(ValueError, match="no column 'true'"):
        figures.reliability({"val": table.drop(columns="true")})


def test_pictures_with_many_labels_keep_their_size():
    names = [f"label {k}" for k in range(60)]
    image = np.zeros((8, 8, 3), np.uint8)
    shown = figures.where(image, names[:2], [0.2, 0.1], np.zeros((2, 8, 8)), names)
    for axis in (shown.axes[0], figures.gallery([image], [", ".join(names)]).axes[0]):
        assert axis.get_title().count("\n") == 4 and axis.get_title().endswith("...")
    assert figures.gallery([image], ["cat, dog"]).axes[0].get_title() == "cat, dog"


def test_curves_of_a_run_with_scores_along_it():
    sides = ["hcg", "hcg", "prompts", "prompts", "hcg"]
    history = pd.DataFrame({"step": range(1, 6), "phase": [0, 0, 1, 1, 2], "side": sides, "lr": 0.1})
    history = history.assign(ranking=[5.0, 4, 3, 2, 1], distillation=0.5)
    assert [axis.get_title() for axis in figures.curves(history).axes] == list(charts.CURVES.values())
    scores = pd.DataFrame({"step": [0, 5, 0, 5], "task": ["ZSL", "ZSL", "GZSL", "GZSL"], "mAP": [1.0, 2, 3, 4]})
    figure = figures.curves(history, every=1, scores=scores, plain={"ZSL": 1.5})
    drawn = {line.get_label(): list(line.get_ydata()) for line in figure.axes[3].get_lines()}
    assert len(figure.axes) == 4 and drawn["ZSL"] == [1, 2] and drawn["GZSL"] == [3, 4]
    assert [1.5, 1.5] in drawn.values() and "plain VLP" in figure.axes[3].get_title()


def test_a_long_table_is_folded_whole():
    frame = pd.DataFrame({"x": range(100)})
    html = tables.folded(frame, "a < b").data
    assert html.startswith("<details><summary><b>a &lt; b</b> (100 rows)</summary>") and html.count("<tr") == 101
    assert "(100 rows)" in tables.folded(frame.style.format(precision=1), "styled").data
