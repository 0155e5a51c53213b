r"""What the explorer shows, as HTML: a picture, a bar for each label, and where each label was seen.

One piece that needs nothing else: pictures are data URIs, there is no script, and names are escaped. A map lies over
the picture while the pointer is on its label, or while the label has the focus. Colours follow the page, light or dark.
"""

import html
import math

from hrcf_lib.gallery import COLOURS

SIDE = 336  # of the picture, in CSS pixels
FOCUS = ' tabindex="0" data-lm-suppress-shortcuts="true"'  # or JupyterLab would take its keys as commands for cells
STYLE = """
.ID {position: relative; display: flex; gap: 20px; font: 13px/1.4 system-ui, sans-serif; line-height: 1.4}
.ID {color: var(--jp-ui-font-color1, currentColor); min-height: SIDEpx; margin: 6px 0 2px}
.ID figure {flex: none; width: SIDEpx; margin: 0; padding: 0}
.ID img {display: block; width: SIDEpx; height: SIDEpx; max-width: none; margin: 0; padding: 0; border-radius: 6px}
.ID figcaption {margin: 6px 0 0; padding: 0; opacity: .85; overflow-wrap: anywhere}
.ID .labels {flex: 1; min-width: 0}
.ID ol {list-style: none; margin: 0; padding: 0}
.ID li {margin: 0; padding: 2px 8px 5px; border-radius: 5px; outline: none}
.ID li[tabindex] {cursor: pointer}
.ID li:hover {background: rgba(128, 128, 128, .16)}
.ID li:focus {background: rgba(128, 128, 128, .16); box-shadow: inset 0 0 0 2px #0173b2}
.ID .text {display: flex; justify-content: space-between; gap: 8px}
.ID .name {overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
.ID .number {font-variant-numeric: tabular-nums; white-space: nowrap}
.ID .yes .name {font-weight: 600}
.ID .track {position: relative; height: 7px; border-radius: 3px; background: rgba(128, 128, 128, .25)}
.ID .bar {height: 7px; border-radius: 3px}
.ID .limit {position: absolute; top: -3px; width: 2px; height: 13px; background: currentColor}
.ID .map {position: absolute; top: 0; left: 0; opacity: 0; pointer-events: none; transition: opacity .12s}
.ID .map b {position: absolute; left: 8px; bottom: 8px; padding: 1px 8px; border-radius: 4px; max-width: 300px}
.ID .map b {background: rgba(0, 0, 0, .7); color: #fff; font-weight: 600}
.ID li:focus .map {opacity: 1}
.ID:has(li:hover) li:focus .map {opacity: 0}
.ID li:hover .map, .ID li:hover:focus .map {opacity: 1}
.ID p {margin: 6px 8px 0; padding: 0; opacity: .85}
.hrcf-explorer .widget-hslider > label {text-align: left; padding: 0 8px}
"""  # ID stands for the class three times, so that JupyterLab's own rules for lists and pictures do not win


def span_of(scores) -> tuple[float, float]:
    """Ends of the bars: 0 and 1 for scores that fit, otherwise whole numbers around them and 0."""
    low, high = float(scores.min()), float(scores.max())
    return (0.0, 1.0) if -1 <= low and high <= 1 else (float(min(0, math.floor(low))), float(max(1, math.ceil(high))))


def page(found, kind: str, span: tuple[float, float], shown: tuple, maps: dict | None, count: int) -> str:
    """Picture and bars; ``count`` is the number of all labels."""
    title, uri, truth = shown
    rows = "".join(_row(row, kind, span, maps) for row in found.to_dict("records"))
    inside = f"<br>In it: {html.escape(', '.join(truth))}" if truth else ""
    alt = html.escape(f"{title}; its labels are beside it")
    figure = f'<figure><img src="{uri}" alt="{alt}"><figcaption>{html.escape(title)}{inside}</figcaption></figure>'
    rest = f"<p>and {count - len(found)} labels of lower score</p>" if count > len(found) else ""
    hint = "<p>Point at a label, or reach it by Tab, to see which regions voted for it.</p>" if maps else ""
    labels = f'<div class="labels"><ol aria-label="labels, the best first">{rows}</ol>{rest}{hint}</div>'
    style = STYLE.replace(".ID", 3 * ".hrcf-explored").replace("SIDE", str(SIDE))
    return f'<style>{style}</style><div class="hrcf-explored">{figure}{labels}</div>'


def _row(row: dict, kind: str, span: tuple[float, float], maps: dict | None) -> str:
    """One label: its name, number, bar, the stroke of its threshold, and its map."""
    low, high = span
    place = lambda value: min(max((value - low) / (high - low), 0.0), 1.0)
    answer, name = row["answer"], html.escape(str(row["label"]))
    number = f"{row[kind]:.1%}" if kind == "probability" else f"{row[kind]:.3f}"
    tick = '<span aria-hidden="true">&#10003;</span> ' * (answer == "yes")
    seen = ""
    if maps:
        seen = f'<span class="map"><img src="{maps[row["label"]]}" alt=""><b>{name}</b></span>'
    told = html.escape(f"{row['label']}: {kind} {number}, {answer}")
    return (
        f'<li class="{answer}" aria-label="{told}"{FOCUS * bool(maps)}>'
        f'<div class="text"><span class="name">{tick}{name}</span> <span class="number">{number}</span></div>'
        f'<div class="track"><div class="bar" style="width: {place(row[kind]):.1%}; background: {COLOURS[answer]}">'
        f'</div><div class="limit" style="left: calc({place(row["threshold"]):.2%} - 1px)"></div></div>{seen}</li>'
    )
