r"""Backgrounds of MojiScenes: eight nameable scenes and a family of plain textures, each a function of a generator.

``SCENES[name](rng, side)`` and ``texture(rng, side)`` return ``(side, side, 3)``, floats in 0..255 or a little beyond
(whoever paints on them clips), red, green and blue last. In memory the three planes lie one after another, as they do
in a batch for the model: numpy then loops over pixels, not over three channels, which is several times faster.

Coordinates ``u`` (right) and ``v`` (down) run from 0 to 1, so a background looks the same at every side. A painter
draws from ``rng`` in a fixed order: same generator, same bits. Changing what is drawn here changes every picture of
MojiScenes (``tests/data/test_mojiscenes.py`` pins them).
"""

from functools import cache

import numpy as np
from PIL import Image


@cache
def _uv(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates to the right and down, two ``(side, side)`` float32 arrays in 0..1. Shared: do not write to them."""
    v, u = np.ascontiguousarray(np.mgrid[0:side, 0:side].astype(np.float32) / side)
    return u, v


def _colour(rng, low, high) -> np.ndarray:
    """A colour (3,) float32, each channel uniform between ``low`` and ``high``."""
    return rng.uniform(low, high).astype(np.float32)


def _fraction(x: np.ndarray) -> np.ndarray:
    """``x % 1``, to the last bit, several times faster."""
    return x - np.floor(x)


def _blank(side: int, dtype=np.float32) -> np.ndarray:
    """An unpainted picture (side, side, 3), its planes contiguous in memory."""
    return np.empty((3, side, side), dtype).transpose(1, 2, 0)


def _lit(colour: np.ndarray, light: np.ndarray | float, side: int) -> np.ndarray:
    """A picture (side, side, 3) in one colour (3,) under ``light`` (side, side, 1)."""
    return np.multiply(colour, light, out=_blank(side))


def _mix(mask: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a`` where ``mask`` (side, side) is 1 or True, ``b`` where it is 0; colours (3,) or pictures (side, side, 3)."""
    mask = mask.astype(np.float32) if mask.dtype == bool else mask
    difference = a - b
    out = _blank(len(mask), np.result_type(mask, difference))
    np.multiply(mask[..., None], difference, out=out)
    out += b
    return out


def _dab(image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Paint ``colour`` (3,) where ``mask`` is True, in place: ``_mix`` for masks of few pixels."""
    inside = image[mask]  # (n, 3)
    image[mask] = inside + (colour - inside)  # not just `colour`: rounded as in _mix
    return image


def _clouds(rng, side: int, cells: int) -> np.ndarray:
    """Smooth noise in 0..1, ``(side, side)``: a small random grid, enlarged."""
    small = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def _below(rng, side: int, base: float, height: float, waves: int) -> np.ndarray:
    """Mask (side, side) of what lies under a wavy horizon ``v = f(u)`` around ``base``."""
    u, v = _uv(side)
    u = u[0].astype(np.float64)  # the line depends on u alone: one row of it will do
    ridge = base + height * np.sin(2 * np.pi * (waves * u + rng.uniform())) * rng.uniform(0.5, 1)
    return v > ridge


def _sprinkle(rng, side: int, count: int, size: int) -> np.ndarray:
    """Mask (side, side) of ``count`` squares of ``size`` pixels (at side 112) at random places."""
    mask = np.zeros((side, side), bool)
    size = max(1, round(size * side / 112))
    ys, xs = rng.integers(0, side - size + 1, (2, count))
    for dy in range(size):
        for dx in range(size):
            mask[ys + dy, xs + dx] = True
    return mask


def beach(rng, side):
    _, v = _uv(side)
    horizon, shore = rng.uniform(0.25, 0.45), rng.uniform(0.55, 0.7)
    sky = _colour(rng, (150, 200, 235), (190, 225, 255))
    water = _colour(rng, (30, 120, 170), (70, 170, 215))
    sand = _colour(rng, (225, 195, 130), (250, 225, 170))
    image = _mix(v > horizon, water, sky)
    return _mix(_below(rng, side, shore, 0.03, 2), sand, image)


def city(rng, side):
    u, v = _uv(side)
    image = _lit(_colour(rng, (150, 160, 180), (215, 205, 215)), (0.8 + 0.2 * v)[..., None], side)
    columns = int(rng.integers(5, 9))
    tops = rng.uniform(0.15, 0.65, columns).astype(np.float32)
    shades = rng.uniform(60, 130, (columns, 1)).astype(np.float32) * _colour(rng, (0.85, 0.85, 0.95), (1.05, 1, 1.1))
    column = np.minimum((u[0] * columns).astype(int), columns - 1)  # (side,): which house stands at u
    image = _mix(v > tops[column], shades[column], image)
    windows = (v > tops[column] + 0.04) & (_fraction(u[0] * columns * 3) > 0.5) & (_fraction(v[:, :1] * 14) > 0.55)
    return _mix(windows.astype(np.float32) * 0.8, _colour(rng, (210, 190, 110), (250, 230, 160)), image)


def desert(rng, side):
    _, v = _uv(side)
    image = _mix(v, _colour(rng, (250, 205, 150), (255, 230, 185)), _colour(rng, (240, 150, 90), (255, 190, 140)))
    dune = _colour(rng, (205, 135, 65), (230, 165, 95))
    for k, base in enumerate((0.45, 0.62, 0.8)):
        image = _mix(_below(rng, side, base, 0.06, 1 + k), dune * (1 - 0.13 * k), image)
    return image


def forest(rng, side):
    u, v = _uv(side)
    leaf = _colour(rng, (25, 75, 30), (60, 120, 60))
    image = _lit(leaf, (0.6 + 0.7 * _clouds(rng, side, 14))[..., None], side)
    trunk = _colour(rng, (70, 45, 25), (105, 75, 50))
    for centre in rng.uniform(0, 1, int(rng.integers(5, 9))):
        columns = abs(u[0] - centre) < rng.uniform(0.012, 0.03)
        image[:, columns] += trunk - image[:, columns]
    return _mix(v > 0.88, leaf * 0.5, image)


def meadow(rng, side):
    sky, grass = _colour(rng, (160, 210, 240), (200, 235, 255)), _colour(rng, (105, 175, 60), (150, 215, 100))
    ground = _below(rng, side, rng.uniform(0.3, 0.5), 0.05, 1)
    image = _mix(ground, grass, sky)
    flowers = _sprinkle(rng, side, 40, 2) & ground
    return _dab(image, flowers, _colour(rng, (220, 80, 120), (255, 230, 255)))


def night(rng, side):
    _, v = _uv(side)
    image = _mix(v, _colour(rng, (30, 30, 75), (60, 50, 110)), _colour(rng, (5, 5, 25), (20, 20, 55)))
    return _dab(image, _sprinkle(rng, side, 60, 1), np.float32([250, 245, 210]))


def sea(rng, side):
    u, v = (w.astype(np.float64) for w in _uv(side))
    image = _mix(v, _colour(rng, (5, 50, 110), (20, 85, 150)), _colour(rng, (40, 140, 200), (90, 185, 225)))
    waves, ripples, phase = rng.uniform(7, 11), rng.uniform(2, 4), rng.uniform()
    bend = 0.25 * np.sin(2 * np.pi * (u[0] * ripples + phase))
    crest = np.sin(2 * np.pi * (v * waves + bend))
    image += 28.0 * (crest > 0.75)[..., None]
    return image


def snow(rng, side):
    sky, ground = _colour(rng, (165, 185, 205), (200, 215, 230)), _colour(rng, (235, 240, 245), (252, 253, 255))
    image = _mix(_below(rng, side, rng.uniform(0.5, 0.7), 0.05, 1), ground, sky)
    return _dab(image, _sprinkle(rng, side, 70, 2), np.float32([255, 255, 255]))


def plain(rng, a, b, side):
    return _lit(a, 1, side)


def gradient(rng, a, b, side):
    u, v = _uv(side)
    angle = rng.uniform(0, 2 * np.pi)
    x, y = (u - 0.5).astype(np.float64), (v - 0.5).astype(np.float64)  # named, since numpy 1 and 2 promote differently
    return _mix(np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1), a, b)


def stripes(rng, a, b, side):
    u, v = (w.astype(np.float64) for w in _uv(side))
    angle = rng.uniform(0, np.pi)
    return _mix(_fraction((u * np.cos(angle) + v * np.sin(angle)) * rng.uniform(3, 12)) > 0.5, a, b)


def checks(rng, a, b, side):
    u, v = _uv(side)
    n = rng.uniform(3, 10)
    return _mix(((u[0] * n).astype(int) + (v[:, :1] * n).astype(int)) % 2 > 0, a, b)


def dots(rng, a, b, side):
    u, v = _uv(side)
    n = rng.uniform(4, 12)
    squares = (_fraction(u[0] * n) - 0.5) ** 2 + (_fraction(v[:, :1] * n) - 0.5) ** 2
    return _mix(squares < rng.uniform(0.03, 0.12), a, b)


def cloudy(rng, a, b, side):
    return _mix(_clouds(rng, side, int(rng.integers(4, 12))), a, b)


SCENES = {f.__name__: f for f in (beach, city, desert, forest, meadow, night, sea, snow)}
TEXTURES = {f.__name__: f for f in (plain, gradient, stripes, checks, dots, cloudy)}


def texture(rng, side: int, kind: str | None = None) -> np.ndarray:
    """A plain texture ``(side, side, 3)`` in two colours; ``kind`` is a key of ``TEXTURES``, or None to draw one.

    Raises ``ValueError`` for an unknown kind.
    """
    if kind is not None and kind not in TEXTURES:
        raise ValueError(f"unknown texture {kind!r}: choose one of {', '.join(TEXTURES)}")
    painter = TEXTURES[kind] if kind else list(TEXTURES.values())[rng.integers(len(TEXTURES))]
    a = _colour(rng, (20, 20, 20), (255, 255, 255))
    b = np.clip(a + _colour(rng, (-90, -90, -90), (90, 90, 90)), 0, 255)
    return painter(rng, a, b, side)
