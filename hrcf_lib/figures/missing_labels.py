"""Figures of missing labels: mAP against the share that is known, and what pseudo-labels are worth."""

import matplotlib.pyplot as plt

from hrcf_lib.engine.messages import need
from hrcf_lib.figures.charts import COLOURS, PAGE, legend, printed

MARKERS, LINES = "osD^vPX", ("-", "--", "-.", ":")


def _look(i: int) -> dict:
    return {"color": COLOURS[i % 10], "marker": MARKERS[i % len(MARKERS)], "ls": LINES[i % len(LINES)]}


def over_known(ours, paper=None, ours_title: str = "measured: MojiScenes", width: float = PAGE):
    r"""mAP against p: our methods in the first panel, and each published data set in a panel of its own.

    Args:
        ours: rows of ``tables.over_known``: method, known, seed, mAP. A line is the mean over seeds, its band goes from
            the least seed to the greatest.
        paper: rows of ``tables.published``: dataset, method, known, mAP; None leaves its panels out.
        ours_title: of the first panel.

    A method has one look in all panels; each panel has its own scale, since its data are others. Returns the figure.
    Raises ``ValueError`` for a missing column or no rows.
    """
    need(ours, ["method", "known", "seed", "mAP"], "over_known")
    methods = list(dict.fromkeys(ours["method"]))
    panels = []
    if paper is not None:
        need(paper, ["dataset", "method", "known", "mAP"], "over_known")
        methods += [name for name in dict.fromkeys(paper["method"]) if name not in methods]
        panels = list(dict.fromkeys(paper["dataset"]))
    look = {name: _look(i) for i, name in enumerate(methods)}
    with printed():
        n = 1 + len(panels)
        ratios = [1.6, *[1] * len(panels)]
        figure, axes = plt.subplots(
            1, n, figsize=(width, 0.42 * width), layout="constrained", squeeze=False, width_ratios=ratios
        )
        for name, part in ours.groupby("method", sort=False):
            own = part.groupby("known")["mAP"].agg(["mean", "min", "max"])
            axes[0, 0].fill_between(own.index, own["min"], own["max"], color=look[name]["color"], alpha=0.2, lw=0)
            axes[0, 0].plot(own.index, own["mean"], **look[name], label=name)
        axes[0, 0].set(title=ours_title, ylabel="mAP (%)")
        for axis, panel in zip(axes[0, 1:], panels):
            for name, part in paper[paper["dataset"] == panel].groupby("method", sort=False):
                axis.plot(part["known"], part["mAP"], **look[name], mfc="white", label=name)
            axis.set(title=f"printed: {panel}")
        for axis in axes[0]:
            axis.set(xlabel="share of labels known, p", xticks=[0.1, 0.3, 0.5, 0.7, 0.9])
        legend(figure, methods)
    return figure


def pseudo_labels(frame, width: float = PAGE):
    r"""What pseudo-labels are worth, epoch by epoch: how many are right, and how much of the unknown they fill.

    ``frame``: rows of ``quality.over_epochs`` with a column ``known`` (p), and of several seeds if there are: epoch,
    kind, precision, share and chance in 0..1. Dotted: what filling at random would have right. Returns the figure.
    Raises ``ValueError`` for a missing column or no rows.
    """
    need(frame, ["known", "epoch", "kind", "precision", "share", "chance"], "pseudo_labels")
    panels = {"right, of those called present": ("present", "precision")}
    panels |= {"right, of those called absent": ("absent", "precision")}
    panels |= {"unknown labels called present": ("present", "share"), "... called absent": ("absent", "share")}
    with printed():
        figure, axes = plt.subplots(1, 4, figsize=(width, 0.3 * width), layout="constrained")
        for axis, (title, (kind, column)) in zip(axes, panels.items()):
            for i, (p, part) in enumerate(frame[frame["kind"] == kind].groupby("known")):
                own = 100 * part.groupby("epoch")[column].agg(["mean", "min", "max"])
                axis.fill_between(own.index, own["min"], own["max"], color=COLOURS[i % 10], alpha=0.2, lw=0)
                axis.plot(own.index, own["mean"], **_look(i), label=f"p = {p:g}")
                if column == "precision":
                    axis.axhline(100 * part["chance"].mean(), color=COLOURS[i % 10], ls=":", lw=0.8)
            axis.set(xlabel="epoch", title=title)
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylabel("%")
        legend(figure, [])
    return figure
