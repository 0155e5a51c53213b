r"""What the explorer shows, as HTML: a picture, a bar for each label, and where each label was seen.

One piece that needs nothing else: pictures are data URIs, there is no script, and names are escaped. A map lies over
the picture while the pointer is on its label, or while the label has the focus. Colours follow the page, light or dark.
"""

import html
import math

from hrcf_lib.apply import bars

SIDE = 336  # of the picture, in CSS pixels
STYLE = """
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
"""  # beside that of ``bars``


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
    labels = f'<div class="labels"><ol class="bars" aria-label="labels, the best first">{rows}</ol>{rest}{hint}</div>'
    style = bars.style("hrcf-explored", "large", SIDE, STYLE)
    return f'{style}<div class="hrcf-explored">{figure}{labels}</div>'


def _row(row: dict, kind: str, span: tuple[float, float], maps: dict | None) -> str:
    """One label: its name, number, bar, the stroke of its threshold, and its map."""
    low, high = span
    place = lambda value: min(max((value - low) / (high - low), 0.0), 1.0)
    number = f"{row[kind]:.1%}" if kind == "probability" else f"{row[kind]:.3f}"
    seen = ""
    if maps:
        name = html.escape(str(row["label"]))
        seen = f'<span class="map"><img src="{maps[row["label"]]}" alt=""><b>{name}</b></span>'
    told = html.escape(f"{row['label']}: {kind} {number}, {row['answer']}")
    limit = place(row["threshold"])
    return bars.row(str(row["label"]), number, place(row[kind]), row["answer"], limit, f'aria-label="{told}"', seen)
