r"""Differences between methods along an axis, in small multiples: where one leads, and where the lead changes hands."""

import matplotlib.pyplot as plt

from hrcf_lib.engine.messages import need
from hrcf_lib.figures.charts import AT_EDGE, PAGE, line_look, literal, printed

HEIGHT = 2.1  # inches of a row of panels
GAP = 0.085  # least distance of two names at the end of lines, in parts of the axis


def differences(frame, xlabel: str, rows: dict | None = None, ticks=None, log: bool = False, width: float = PAGE):
    r"""One panel for each ``panel`` of the frame, a line with its band for each ``label``, around the line of 0.

    Args:
        frame: rows of ``studies.conditions.curves``: ``x``, ``label``, ``panel``, and ``difference``, ``low`` and
            ``high`` in percentage points.
        xlabel: of all panels.
        rows: title -> labels that share a row of panels; None: one row of all. A row has a scale of its own.
        ticks: place -> its text, by default every place.
        log: the axis is logarithmic.
        width: in inches; the height follows from the rows.

    Lines are named at their right end, beside the last panel. Returns the figure. Raises ``ValueError`` for a missing
    column, no row, or a label that the frame lacks.
    """
    need(frame, ["x", "label", "panel", "difference", "low", "high"], "figures.conditions.differences")
    rows = {"": list(dict.fromkeys(frame["label"]))} if rows is None else rows
    panels = list(dict.fromkeys(frame["panel"]))
    if lacking := [label for own in rows.values() for label in own if label not in set(frame["label"])]:
        raise ValueError(f"no row of {lacking[0]!r}: the frame has {', '.join(dict.fromkeys(frame['label']))}")
    ticks = {x: f"{x:g}" for x in sorted(set(frame["x"]))} if ticks is None else ticks
    with printed():
        about = {"figsize": (width, HEIGHT * len(rows)), "layout": "constrained", "squeeze": False}
        figure, axes = plt.subplots(len(rows), len(panels), **about, sharex=True, sharey="row")
        for line, (title, labels) in zip(axes, rows.items(), strict=True):
            for axis, panel in zip(line, panels, strict=True):
                _panel(axis, frame[frame["panel"] == panel], labels)
            line[0].set_ylabel(literal(f"{title}\npoints" if title else "points"))
            _name_lines(line[-1], frame[frame["panel"] == panels[-1]], labels)
        for axis, panel in zip(axes[0], panels, strict=True):
            axis.set_title(literal(panel))
        for axis in axes[-1]:
            if log:
                axis.set_xscale("log")
            axis.set_xticks(list(ticks), list(ticks.values()))
            axis.minorticks_off()
        figure.supxlabel(literal(xlabel), fontsize=8)
    return figure


def _panel(axis, frame, labels) -> None:
    axis.axhline(0, color="black", lw=0.8)
    for i, label in enumerate(labels):
        part = frame[frame["label"] == label].sort_values("x")
        look = line_look(i)
        axis.fill_between(part["x"], part["low"], part["high"], color=look["color"], alpha=0.18, lw=0)
        axis.plot(part["x"], part["difference"], **look, ms=3)


def _name_lines(axis, frame, labels) -> None:
    """The name of each line beside its end, as far apart as they have to be."""
    ends = {label: frame[frame["label"] == label].sort_values("x")["difference"].iloc[-1] for label in labels}
    low, high = axis.get_ylim()
    order = sorted(ends, key=ends.get)
    for label, y in zip(order, apart([ends[label] for label in order], GAP * (high - low))):
        colour = line_look(list(labels).index(label))["color"]
        axis.annotate(literal(label), (1, y), (4, 0), **AT_EDGE, fontsize=7, ha="left", color=colour)


def apart(values, gap: float) -> list[float]:
    """Ascending values moved as little as need be until neighbours are ``gap`` apart; their mean stays.

    >>> apart([0, 0, 5], 1)
    [-0.5, 0.5, 5.0]
    """
    blocks = []  # of values that stand gap after gap: (first, number)
    for value in values:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] + blocks[-2][1] * gap > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((n * a + m * (b - n * gap)) / (n + m), n + m)]
    return [float(first + i * gap) for first, number in blocks for i in range(number)]
