"""Differences along an axis: a panel each, a line each, names that do not overlap."""

import itertools

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from hrcf_lib.figures import conditions


def frame():
    rows = itertools.product(("against MKT", "without HCG"), ("ZSL", "GZSL"), (1, 2, 4))
    made = pd.DataFrame(rows, columns=["label", "panel", "x"])
    return made.assign(difference=made["x"] - 2.0, low=made["x"] - 3.0, high=made["x"] - 1.0)


def test_panels_lines_and_names():
    figure = conditions.differences(frame(), "x", {"systems": ["against MKT"], "parts": ["without HCG"]}, log=True)
    assert len(figure.axes) == 4 and [axis.get_title() for axis in figure.axes[:2]] == ["ZSL", "GZSL"]
    for axis in figure.axes:
        (line,) = [line for line in axis.lines if len(line.get_xdata()) == 3]
        assert line.get_ydata().tolist() == [-1, 0, 2] and axis.get_xscale() == "log"
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes] == [
        [],
        ["against MKT"],
        [],
        ["without HCG"],
    ]
    plt.close(figure)
    figure = conditions.differences(frame(), "x")
    names = figure.axes[-1].texts
    low, high = figure.axes[-1].get_ylim()
    assert len(figure.axes) == 2 and abs(names[0].xy[1] - names[1].xy[1]) == pytest.approx(
        conditions.GAP * (high - low)
    )
    plt.close(figure)


@pytest.mark.parametrize(
    "values, gap, there",
    [([], 1, []), ([0, 5], 1, [0, 5]), ([0, 0.5], 1, [-0.25, 0.75]), ([0, 0, 0, 2], 1, [-1, 0, 1, 2])],
)
def test_names_are_moved_as_little_as_need_be(values, gap, there):
    assert conditions.apart(values, gap) == pytest.approx(there)


def test_a_label_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no row of 'against BiAM': the frame has against MKT, without HCG"):
        conditions.differences(frame(), "x", {"": ["against BiAM"]})
    with pytest.raises(ValueError, match="no column 'low'"):
        conditions.differences(frame().drop(columns="low"), "x")
