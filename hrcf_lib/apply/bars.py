r"""Labels with bars, as HTML: one list in two sizes, small under each picture of a gallery, large in the explorer.

A row is a label, its number, a bar, a stroke at its threshold, a tick for yes, and its map, which lies over the picture
while the pointer is on the row, or while the row has the focus. No script; names are escaped.
"""

import html
from string import Template

COLOURS = {"yes": "#029e73", "no": "#949494", "": "#0173b2"}  # of bars; seaborn's colorblind palette
FOCUS = ' tabindex="0" data-lm-suppress-shortcuts="true"'  # or JupyterLab would take its keys as commands for cells
SIZES = {  # of rows, in pixels: space inside, corners, shade under the pointer; height, corners and stroke of a bar
    "small": {"pad": "1px 3px", "round": 3, "shade": 0.2, "high": 5, "ends": 2, "over": 2, "stroke": 9},
    "large": {"pad": "2px 8px 5px", "round": 5, "shade": 0.16, "high": 7, "ends": 3, "over": 3, "stroke": 13},
}
STYLE = """
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


def style(name: str, size: str, side: int, own: str = "") -> str:
    """The style sheet of what has the class ``name``: rules of rows of a ``size``, and ``own`` ones after them.

    ``side`` is that of the pictures in pixels. In the rules ``$id`` stands for the class, three times, so that
    JupyterLab's own rules for lists and pictures do not win.
    """
    text = Template(STYLE + own.lstrip("\n")).substitute(SIZES[size], id=3 * f".{name}", side=side)
    return f"<style>{text}</style>"


def row(
    label: str, number: str, share: float, answer: str = "", limit: float | None = None, told: str = "", seen: str = ""
) -> str:
    """One label of a list with the class ``bars``.

    ``share`` of the bar and the threshold ``limit`` are in 0..1; ``answer`` is yes, no or "" where there is none.
    ``told`` are further attributes of the row and ``seen`` its map, something of the class ``map``, both as HTML.
    """
    tick = '<span role="img" aria-label="yes">&#10003;</span> ' * (answer == "yes")
    stroke = "" if limit is None else f'<div class="limit" style="left: calc({limit:.2%} - 1px)"></div>'
    return (
        f'<li class="{answer}" {told}{FOCUS * bool(seen)}>'
        f'<div class="text"><span class="name">{tick}{html.escape(label)}</span> '
        f'<span class="number">{number}</span></div>'
        f'<div class="track"><div class="bar" style="width: {share:.1%}; background: {COLOURS[answer]}"></div>'
        f"{stroke}</div>{seen}</li>"
    )
