r"""Labels with bars, as HTML: one list in two sizes, small under each picture of a gallery, large in the explorer.

A row is a label, its number, a bar, a stroke at its threshold, a tick for yes, and its map, which lies over the picture
while the pointer is on the row, or while the row has the focus. There is no script, pictures are data URIs, names are
escaped, and colours follow the page, light or dark.
"""

import base64
import io
import math
from html import escape
from string import Template

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

SIDE = 336  # CSS pixels of the explorer's picture
MAP = 64  # pixels of a map's side: more than any map holds, which are 14 x 14 and coarser
COLOURS = {"yes": "#029e73", "no": "#949494", "": "#0173b2"}  # of bars; seaborn's colorblind palette
FOCUS = ' tabindex="0" data-lm-suppress-shortcuts="true"'  # or JupyterLab would take its keys as commands for cells
SIZES = {  # of rows, in pixels: space inside, corners, shade under the pointer; height, corners and stroke of a bar
    "small": {"pad": "1px 3px", "round": 3, "shade": 0.2, "high": 5, "ends": 2, "over": 2, "stroke": 9},
    "large": {"pad": "2px 8px 5px", "round": 5, "shade": 0.16, "high": 7, "ends": 3, "over": 3, "stroke": 13},
}
ROWS = """
$id figure {width: ${side}px; margin: 0; padding: 0}
$id img {display: block; width: ${side}px; height: ${side}px; max-width: none; margin: 0; padding: 0}
$id .bars {list-style: none; margin: 0; padding: 0}
$id li {margin: 0; padding: $pad; border-radius: ${round}px; outline: none}
$id li[tabindex] {cursor: pointer}
$id li[tabindex]:hover, $id li:focus {background: rgba(128, 128, 128, $shade)}
$id li:focus {box-shadow: inset 0 0 0 2px #0173b2}
$id .text {display: flex; justify-content: space-between; gap: 8px}
$id .name {overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
$id .number {font-variant-numeric: tabular-nums; white-space: nowrap}
$id .yes .name {font-weight: 600}
$id .track {position: relative; height: ${high}px; border-radius: ${ends}px; background: rgba(128, 128, 128, .25)}
$id .bar {height: ${high}px; border-radius: ${ends}px}
$id .limit {position: absolute; top: -${over}px; width: 2px; height: ${stroke}px; background: currentColor}
$id .map {position: absolute; top: 0; left: 0; opacity: 0; pointer-events: none; transition: opacity .12s}
$id li:focus .map {opacity: 1}
$id:has(li:hover) li:focus .map {opacity: 0}
$id li:hover .map, $id li:hover:focus .map {opacity: 1}
"""
EXPLORER = """
$id {position: relative; display: flex; gap: 20px; font: 13px/1.4 system-ui, sans-serif; line-height: 1.4}
$id {color: var(--jp-ui-font-color1, currentColor); min-height: ${side}px; margin: 6px 0 2px}
$id figure {flex: none}
$id img {border-radius: 6px}
$id figcaption {margin: 6px 0 0; padding: 0; opacity: .85; overflow-wrap: anywhere}
$id .labels {flex: 1; min-width: 0}
$id .map b {position: absolute; left: 8px; bottom: 8px; padding: 1px 8px; border-radius: 4px; max-width: 300px}
$id .map b {background: rgba(0, 0, 0, .7); color: #fff; font-weight: 600}
$id p {margin: 6px 8px 0; padding: 0; opacity: .85}
.hrcf-explorer .widget-hslider > label {text-align: left; padding: 0 8px}
"""


def style_sheet(name: str, size: str, side: int, rules: str) -> str:
    """The style sheet of what has the class ``name``: rules of rows of a ``size``, and further ``rules`` after them.

    ``side`` is that of the pictures in pixels. In the rules ``$id`` stands for the class, three times, so that
    JupyterLab's own rules for lists and pictures do not win.
    """
    text = Template(ROWS + rules.lstrip("\n")).substitute(SIZES[size], id=3 * f".{name}", side=side)
    return f"<style>{text}</style>"


def has(values: dict, column: str) -> bool:
    """Whether a row of a frame has a value in a column; frames of several calls may have been put together."""
    value = values.get(column)
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def kind_and_number(values: dict, digits: int = 1) -> tuple[str, str]:
    """What a row of a frame has, "probability" or else "score", and its text: 12.3% or 0.123."""
    if has(values, "probability"):
        return "probability", f"{values['probability']:.{digits}%}"
    return "score", f"{values['score']:.3f}"


def bar_row(values: dict, span: tuple[float, float], attributes: str, overlay: str = "") -> str:
    """One label of a list with the class ``bars``.

    ``values`` is a row of a frame of ``classify``. The bar shows its probability, or else its score on the scale
    ``span``; the stroke and the tick need a threshold and an answer. ``attributes`` of the row and ``overlay``, an
    element of the class ``map``, are HTML.
    """
    kind, number = kind_and_number(values)
    low, high = (0.0, 1.0) if kind == "probability" else span
    share = lambda value: min(max((value - low) / (high - low), 0.0), 1.0)
    answer = values["answer"] if has(values, "answer") else ""
    tick = '<span role="img" aria-label="yes">&#10003;</span> ' * (answer == "yes")
    stroke = f'<div class="limit" style="left: calc({share(values["threshold"]):.2%} - 1px)"></div>' if answer else ""
    return (
        f'<li class="{answer}" {attributes}{FOCUS * bool(overlay)}>'
        f'<div class="text"><span class="name">{tick}{escape(str(values["label"]))}</span> '
        f'<span class="number">{number}</span></div>'
        f'<div class="track"><div class="bar" style="width: {share(values[kind]):.1%}; background: {COLOURS[answer]}">'
        f"</div>{stroke}</div>{overlay}</li>"
    )


def explorer_view(
    found: pd.DataFrame, limit: int, title: str, uri: str, truth, maps: dict | None, span: tuple[float, float]
) -> str:
    """What the explorer shows: a picture, and the first ``limit`` labels of a frame of ``Session.table``.

    ``uri`` is the picture, ``truth`` the names of what is in it, ``maps`` the data URI of each shown label's map, or
    None of a method without maps, and ``span`` the scale of scores.
    """
    rows = "".join(_explorer_row(values, maps, span) for values in found.head(limit).to_dict("records"))
    inside = f"<br>In it: {escape(', '.join(truth))}" if truth else ""
    alt = escape(f"{title}; its labels are beside it")
    figure = f'<figure><img src="{uri}" alt="{alt}"><figcaption>{escape(title)}{inside}</figcaption></figure>'
    rest = f"<p>and {len(found) - limit} labels of lower score</p>" if len(found) > limit else ""
    hint = "<p>Point at a label, or reach it by Tab, to see which regions voted for it.</p>" if maps else ""
    labels = f'<div class="labels"><ol class="bars" aria-label="labels, the best first">{rows}</ol>{rest}{hint}</div>'
    return f'{style_sheet("hrcf-explored", "large", SIDE, EXPLORER)}<div class="hrcf-explored">{figure}{labels}</div>'


def _explorer_row(values: dict, maps: dict | None, span: tuple[float, float]) -> str:
    label, overlay = str(values["label"]), ""
    if maps:
        overlay = f'<span class="map"><img src="{maps[label]}" alt=""><b>{escape(label)}</b></span>'
    words = f"{label}: {' '.join(kind_and_number(values))}, {values['answer']}"
    return bar_row(values, span, f'aria-label="{escape(words)}"', overlay)


def score_span(scores) -> tuple[float, float]:
    """Ends of the scale of scores: 0 and 1 for scores in -1..1, otherwise whole numbers around them and 0."""
    low, high = float(scores.min()), float(scores.max())
    return (0.0, 1.0) if -1 <= low and high <= 1 else (float(min(0, math.floor(low))), float(max(1, math.ceil(high))))


def map_uri(heat) -> str:
    """A map (h, w) in 0..1 as a data URI, in the colours of ``figures.where``; higher values are more opaque."""
    grey = Image.fromarray(np.uint8(255 * np.clip(np.asarray(heat, dtype=np.float32), 0, 1)))
    values = np.asarray(grey.resize((MAP, MAP), Image.Resampling.BILINEAR)) / 255
    coloured = matplotlib.colormaps["inferno"](values, bytes=True)
    coloured[..., 3] = 255 * (0.45 + 0.4 * values)
    return _data_uri(Image.fromarray(coloured), "PNG", optimize=True)


def picture_uri(pixels) -> str:
    """A picture, a uint8 tensor (3, h, w), as a data URI."""
    return _data_uri(Image.fromarray(pixels.permute(1, 2, 0).numpy()), "JPEG", quality=85)


def _data_uri(image: Image.Image, kind: str, **options) -> str:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
