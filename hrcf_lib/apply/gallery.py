r"""What ``classify`` found, as HTML to look at: pictures, bars of their labels, and where each was seen.

The result is one file that needs nothing else. Without style sheets, as on GitHub, a plain list remains. A map shows
while the pointer is on its label, or after a click (or the tab key), as long as that label has the focus.
"""

import os
import secrets
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import pandas as pd

from hrcf_lib.apply.html import bar_row, has, kind_and_number, map_uri, picture_uri, style_sheet
from hrcf_lib.data.images import find_images, name_of, read_image
from hrcf_lib.engine.files import write_text
from hrcf_lib.engine.messages import did_you_mean, list_some, need, printable, user_path, whole_number
from hrcf_lib.labels import one_or_more

LARGEST = 512  # pixels of a thumbnail's side
RULES = """
$id {display: flex; flex-wrap: wrap; gap: 16px; font: 13px/1.35 system-ui, sans-serif; margin: 4px 0}
$id figure {position: relative}
$id img {border-radius: 4px}
$id figcaption {margin: 4px 0 2px; opacity: .8; overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
$id .truth {margin: 0 0 2px; padding: 0 3px; opacity: .8}
$id [data-right] .name {color: #1a8f5f; font-weight: 600}
$id .none {font-style: italic; margin: 0; padding: 1px 3px}
"""


class Gallery:
    """HTML that a notebook shows by itself: ``html`` is the fragment, ``save(path)`` writes a page of its own."""

    def __init__(self, fragment: str, pictures: int):
        self.html, self.pictures = fragment, pictures

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<Gallery of {self.pictures} pictures: show it in a notebook, or .save('gallery.html')>"

    def save(self, path: str | Path) -> Path:
        """Write one HTML file that follows the light or dark theme of its reader; returns the path. Raises as
        ``user_path`` and ``files.replacing``."""
        path = user_path(path, "the page")
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        head += '<meta name="color-scheme" content="light dark"><title>Labels of pictures</title>'
        page = f'<!doctype html><html lang="en"><head>{head}</head><body>{self.html}</body></html>\n'
        write_text(path, page)
        return path


def gallery(
    found: pd.DataFrame,
    images=None,
    size: int = 200,
    limit: int = 60,
    truth: Mapping[str, Iterable[str] | str] | None = None,
    resize: str = "crop",
) -> Gallery:
    r"""The frame that ``classify`` returned, or rows of it, as pictures with bars.

    Args:
        found: columns image, label, score. Bars show the probability where there is one, with a stroke at the
            threshold and a tick for yes; otherwise the score, and the highest score of the gallery has the longest
            bar. A column map adds where each label was seen.
        images: what ``classify`` was given, if pictures without a file are among them; files are read again.
        size: of a thumbnail in pixels, at most 512. It shows what the model looks at.
        limit: the largest number of pictures to show; a line says how many more there are.
        truth: image as in ``found``, or its path -> names of what is in it, or one name, where that is known: it stands
            under the picture, and labels that are in it are green. An image that is left out is not known.
        resize: of the model's config (``read_image``), if it is another than the default, the centre square.

    Raises ``ValueError`` for a missing column, no row, a size or limit out of bounds, a picture that is not there, or
    an image of ``truth`` that is not in ``found`` while one of ``found`` has no truth, and ``TypeError`` for a truth of
    another kind.
    """
    need(found, ["image", "label", "score"], "gallery")
    size, limit = whole_number("size", size, 1, LARGEST), whole_number("limit", limit, 1, 1000)
    sources = {} if images is None else {name_of(item, i): item for i, item in enumerate(find_images(images))}
    names = list(dict.fromkeys(found["image"]))
    highest = max(float(found["score"].max()), 1e-12)
    groups = dict(list(found.drop_duplicates(["image", "label"]).groupby("image", sort=False)))  # one given twice: once
    truth = _truth(truth, names)
    cards = [
        _card(groups[name], sources.get(name, name), size, highest, truth.get(name), resize) for name in names[:limit]
    ]
    key = f"hrcf-{secrets.token_hex(4)}"
    rest = f"<p>{limit} of {len(names)} pictures; gallery(..., limit={len(names)}) shows more.</p>"
    rest = rest if len(names) > limit else ""
    style = style_sheet(key, "small", size, RULES)
    return Gallery(f'{style}<div class="{key}">{"".join(cards)}</div>{rest}', len(cards))


def _truth(truth, images: list) -> dict[str, list[str]]:
    """``truth`` as image -> names; ``images`` are those of the frame.

    Where each of them has its truth, further images are taken for rows that were left out of the frame.
    """
    if truth is None:
        return {}
    if not isinstance(truth, Mapping):
        fix = "give a dict of image -> list of names, such as {found['image'][0]: ['owl']}"
        raise TypeError(f"truth is a {type(truth).__name__}: {fix}")
    known, shown = {}, set(images)
    for key, value in truth.items():
        names = one_or_more(value)
        if wrong := [name for name in names if not isinstance(name, str)]:
            what = f"truth of {str(key)!r} holds {wrong[0]!r:.80}, not a name"
            raise TypeError(f"{what}: give a list of names, an empty one where nothing is in it")
        known[printable(key) if isinstance(key, os.PathLike) and key not in shown else key] = names
    strange, without = [key for key in known if key not in shown], [str(name) for name in images if name not in known]
    if strange and without:
        same = [image for image in without if Path(image).name == Path(str(strange[0])).name]
        otherwise = "write images as found['image'] has them, or leave it out"
        hint = f"did you mean {same[0]!r}?" if same else did_you_mean(strange[0], without, otherwise)
        raise ValueError(f"truth names {list_some(map(repr, strange), most=3)}, not in found['image']: {hint}")
    return known


def _card(rows: pd.DataFrame, source, size: int, highest: float, truth: list[str] | None, resize: str) -> str:
    """One picture as HTML; ``truth`` are the names of what is in it, or None where that is not known."""
    name = str(rows["image"].iloc[0])
    if isinstance(source, str) and not Path(source).expanduser().is_file():
        raise ValueError(f"{name!r} is not a file: give gallery(found, images) the pictures that classify was given")
    short, labels = Path(name).name, rows.to_dict("records")
    alt = escape(f"{short}: {', '.join(_words(values) for values in labels[:3])}")
    image = f'<img src="{picture_uri(read_image(source, size, resize))}" alt="{alt}">'
    caption = f'<figcaption title="{escape(name)}">{escape(short)}</figcaption>'
    none = '<p class="none">none of these</p>' if "answer" in rows and (rows["answer"] == "no").all() else ""
    known = "" if truth is None else f'<p class="truth">in it: {escape(", ".join(truth) or "none of these")}</p>'
    bars = "".join(_row(values, short, highest, values["label"] in (truth or ())) for values in labels)
    return f'<figure>{image}{caption}{known}{none}<ul class="bars">{bars}</ul></figure>'


def _words(values: dict) -> str:
    """A label, its number and its answer, for those who do not see the picture."""
    answer = f" ({values['answer']})" if has(values, "answer") else ""
    return f"{values['label']} {kind_and_number(values, digits=0)[1]}{answer}"


def _row(values: dict, picture: str, highest: float, right: bool) -> str:
    """One label of a picture, which is ``right`` if the truth has it."""
    hint = f"{values['label']}: score {values['score']:.3f}"
    hint += f", {values['answer']}" if has(values, "answer") else ""
    overlay = ""
    if has(values, "map"):
        alt = escape(f"map of where {values['label']} was seen in {picture}")
        overlay = f'<img class="map" src="{map_uri(values["map"])}" alt="{alt}">'
    attributes = f'title="{escape(hint)}"' + " data-right" * right
    return bar_row(values, (0.0, highest), attributes, overlay)
