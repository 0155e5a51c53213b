"""Figures of missing labels: mAP against the share that is known, and what pseudo-labels are worth."""

import matplotlib.pyplot as plt

from hrcf_lib.engine.messages import need
from hrcf_lib.figures.charts import COLOURS, PAGE, legend, line_look, literal, over_seeds, printed

OVER_KNOWN, PSEUDO = 0.42, 0.32  # height of a figure, in parts of its width
OURS = 1.6  # width of our panel, in parts of a published one's
RANDOM, AT_RANDOM = {"ls": ":", "lw": 0.8}, "right if filled at random"


def over_known(ours, paper=None, ours_title: str = "measured: MojiScenes", width: float = PAGE):
    r"""mAP against p: our methods in the first panel, each published data set in a panel of its own.

    Args:
        ours: rows of ``studies.missing_labels.over_known``: method, known, seed, mAP. A line is the mean over seeds,
            its band spans the lowest to the highest seed.
        paper: rows of ``studies.missing_labels.published``: dataset, method, known, mAP; None leaves its panels out.
        ours_title: of the first panel.

    A method has one look in all panels; each panel has its own scale, since its data differ. Returns the figure.
    Raises ``ValueError`` for a missing column or no rows.
    """
    need(ours, ["method", "known", "seed", "mAP"], "over_known")
    methods = list(dict.fromkeys(ours["method"]))
    panels = []
    if paper is not None:
        need(paper, ["dataset", "method", "known", "mAP"], "over_known")
        methods += [name for name in dict.fromkeys(paper["method"]) if name not in methods]
        panels = list(dict.fromkeys(paper["dataset"]))
    look = {name: line_look(i) for i, name in enumerate(methods)}
    with printed():
        about = {"figsize": (width, OVER_KNOWN * width), "layout": "constrained", "squeeze": False}
        figure, axes = plt.subplots(1, 1 + len(panels), **about, width_ratios=[OURS, *[1] * len(panels)])
        for name, part in ours.groupby("method", sort=False):
            over_seeds(axes[0, 0], part, "known", "mAP", **look[name], label=name)
        axes[0, 0].set(title=literal(ours_title), ylabel="mAP (%)")
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

    Args:
        frame: rows of ``studies.missing_labels.over_epochs`` with a column ``known`` (p), of one or several seeds:
            epoch, kind, precision, share and chance in 0..1.
        width: of the figure in inches.

    Each panel has its own scale, in percent. Dotted lines show what filling at random would have right. Returns the
    figure. Raises ``ValueError`` for a missing column or no rows.
    """
    need(frame, ["known", "epoch", "kind", "precision", "share", "chance"], "pseudo_labels")
    panels = {"right, of those\ncalled present": ("present", "precision")}
    panels |= {"right, of those\ncalled absent": ("absent", "precision")}
    panels |= {"unknown labels\ncalled present": ("present", "share")}
    panels |= {"unknown labels\ncalled absent": ("absent", "share")}
    shares = sorted(set(frame["known"]))
    with printed():
        figure, axes = plt.subplots(1, 4, figsize=(width, PSEUDO * width), layout="constrained")
        for axis, (title, (kind, column)) in zip(axes, panels.items()):
            for i, p in enumerate(shares):
                part = frame[(frame["kind"] == kind) & (frame["known"] == p)]
                over_seeds(
                    axis, part.assign(value=100 * part[column]), "epoch", "value", **line_look(i), label=f"p = {p:g}"
                )
                if column == "precision":
                    axis.axhline(100 * part["chance"].mean(), color=COLOURS[i % 10], **RANDOM)
            axis.set(xlabel="epoch", ylabel="", title=title)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        axes[0].plot([], [], color="0.3", **RANDOM, label=AT_RANDOM)
        legend(figure, [*(f"p = {p:g}" for p in shares), AT_RANDOM])
    return figure
