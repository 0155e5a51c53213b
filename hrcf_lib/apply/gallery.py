r"""What ``classify`` found, as HTML to look at: pictures, bars of their labels, and where each was seen.

One file that needs nothing else: thumbnails and maps are data URIs of bounded size, there is no script, and every name
is escaped. Colours follow the page (light or dark); without style sheets, as on GitHub, a plain list remains. A map
shows while the pointer is on its label, or after a click (or the tab key), as long as that label has the focus.
"""

import base64
import html
import io
import secrets
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

from hrcf_lib.apply import bars
from hrcf_lib.data.images import find_images, name_of, read_image
from hrcf_lib.engine.messages import need

LARGEST = 512  # pixels of a thumbnail's side
MAP = 64  # pixels of a map's side: more than any map holds, which are 14 x 14 and coarser
STYLE = """
$id {display: flex; flex-wrap: wrap; gap: 16px; font: 13px/1.35 system-ui, sans-serif; margin: 4px 0}
$id figure {position: relative}
$id img {border-radius: 4px}
$id figcaption {margin: 4px 0 2px; opacity: .8; overflow: hidden; text-overflow: ellipsis; white-space: nowrap}
$id .none {font-style: italic; margin: 0; padding: 1px 3px}
"""  # beside that of ``bars``


class Gallery:
    """HTML that a notebook shows by itself: ``html`` is the fragment, ``save(path)`` writes a page of its own."""

    def __init__(self, fragment: str, pictures: int):
        self.html, self.pictures = fragment, pictures

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<Gallery of {self.pictures} pictures: show it in a notebook, or .save('gallery.html')>"

    def save(self, path: str | Path) -> Path:
        """Write one HTML file that follows the light or dark theme of its reader; returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        head += '<meta name="color-scheme" content="light dark"><title>Labels of pictures</title>'
        page = f'<!doctype html><html lang="en"><head>{head}</head><body>{self.html}</body></html>\n'
        path.write_text(page, encoding="utf-8")
        return path


def gallery(found: pd.DataFrame, images=None, size: int = 200, limit: int = 60) -> Gallery:
    r"""The frame that ``classify`` returned, or rows of it, as pictures with bars.

    Args:
        found: columns image, label, score; the bars are of probability where there is one, with a stroke at the
            threshold and a tick at yes; otherwise of the score, the longest bar the highest score of the gallery. A
            column map adds where each label was seen.
        images: what ``classify`` was given, if pictures without a file are among them; files are read again.
        size: of a thumbnail in pixels, at most 512; the centre square, which is what the model looks at.
        limit: most pictures to show; a line says how many more there are.

    Raises ``ValueError`` for a missing column, no row, a size or limit out of bounds, or a picture that is not there.
    """
    need(found, ["image", "label", "score"], "gallery")
    for name, value, most in (("size", size, LARGEST), ("limit", limit, 1000)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{name} = {value!r}: give a whole number from 1 to {most}")
    sources = _sources(images)
    names = list(dict.fromkeys(found["image"]))
    scale = max(float(found["score"].max()), 1e-12)
    groups = dict(list(found.groupby("image", sort=False)))
    cards = [_card(groups[name], sources.get(name, name), size, scale) for name in names[:limit]]
    key = f"hrcf-{secrets.token_hex(4)}"
    rest = f"<p>{limit} of {len(names)} pictures; gallery(..., limit={len(names)}) shows more.</p>"
    rest = rest if len(names) > limit else ""
    style = bars.style(key, "small", size, STYLE)
    return Gallery(f'{style}<div class="{key}">{"".join(cards)}</div>{rest}', len(cards))


def _sources(images) -> dict:
    """Name in the frame -> PIL image or path."""
    return {} if images is None else {name_of(item, i): item for i, item in enumerate(find_images(images))}


def _card(rows: pd.DataFrame, source, size: int, scale: float) -> str:
    """One picture as HTML."""
    name = str(rows["image"].iloc[0])
    if isinstance(source, str) and not Path(source).expanduser().is_file():
        raise ValueError(f"{name!r} is no file: give gallery(found, images) the pictures that classify was given")
    thumbnail = Image.fromarray(read_image(source, size).permute(1, 2, 0).numpy())
    short = Path(name).name
    lines = "".join(_line(row, short, scale) for row in rows.to_dict("records"))
    none = "answer" in rows and (rows["answer"] == "no").all()
    said = '<p class="none">none of these</p>' if none else ""
    alt = html.escape(f"{short}: {', '.join(_told(row) for row in rows.to_dict('records')[:3])}")
    caption = f'<figcaption title="{html.escape(name)}">{html.escape(short)}</figcaption>'
    shown = f'<img src="{_uri(thumbnail, "JPEG")}" alt="{alt}">'
    return f'<figure>{shown}{caption}{said}<ul class="bars">{lines}</ul></figure>'


def _told(row: dict) -> str:
    """A label and its number, in words."""
    value = f"{row['probability']:.0%}" if _has(row, "probability") else f"{row['score']:.3f}"
    return f"{row['label']} {value}" + (f" ({row['answer']})" if _has(row, "answer") else "")


def _line(row: dict, picture: str, scale: float) -> str:
    """One label of a picture: name, number, bar, and its map."""
    answer = row["answer"] if _has(row, "answer") else ""
    sure = _has(row, "probability")
    share = float(np.clip(row["probability"] if sure else row["score"] / scale, 0, 1))
    number = f"{row['probability']:.1%}" if sure else f"{row['score']:.3f}"
    seen = ""
    if _has(row, "map"):
        alt = html.escape(f"map of where {row['label']} was seen in {picture}")
        seen = f'<img class="map" src="{_uri(_coloured(row["map"]), "PNG")}" alt="{alt}">'
    hint = html.escape(f"{row['label']}: score {row['score']:.3f}") + (f", {answer}" if answer else "")
    limit = row["threshold"] if answer else None
    return bars.row(str(row["label"]), number, share, answer, limit, f'title="{hint}"', seen)


def _has(row: dict, column: str) -> bool:
    """Whether a row has a value there: rows of several calls may have been put together."""
    value = row.get(column)
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def _coloured(heat) -> Image.Image:
    """A map (h, w) in 0..1 in the colours of ``figures.where``, the more opaque the higher."""
    grey = Image.fromarray(np.uint8(255 * np.clip(np.asarray(heat, dtype=np.float32), 0, 1)))
    values = np.asarray(grey.resize((MAP, MAP), Image.Resampling.BILINEAR)) / 255
    coloured = matplotlib.colormaps["inferno"](values, bytes=True)
    coloured[..., 3] = 255 * (0.45 + 0.4 * values)
    return Image.fromarray(coloured)


def _uri(image: Image.Image, kind: str) -> str:
    """A picture as a data URI."""
    with io.BytesIO() as file:
        image.save(file, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
        return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
