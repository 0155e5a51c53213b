r"""Stuff of MojiScenes: what fills a region of a picture and has a name, sky, sea, sand, a brick wall, a wooden floor.

``STUFF`` names every kind and the layer that it can fill. A kind is a painter ``f(rng, side) -> (3, side, side)``,
floats in 0..255 or a little beyond (whoever paints on them clips). Scenes cut their regions out of *sheets*:
``SHEETS`` pictures of each kind that are painted once per process, larger than a scene, and are shifted, mirrored and
tinted for each scene, which is many times faster than painting. A sheet is a pure function of its kind and number.

Coordinates ``u`` (right) and ``v`` (down) run from 0 to 1. A painter draws from ``rng`` in a fixed order: same
generator, same bits. Changing what is drawn here changes pictures of MojiScenes, which tests pin.
"""

from functools import cache
from zlib import crc32

import numpy as np
from PIL import Image

SHEETS = 8  # of each kind
SHEET = 168  # pixels at which a sheet is painted, for scenes of 112
LAYERS = ("sky", "far", "ground", "wall", "floor", "pattern")


@cache
def _uv(side: int) -> tuple[np.ndarray, np.ndarray]:
    v, u = np.ascontiguousarray(np.mgrid[0:side, 0:side].astype(np.float32) / side)
    return u, v


def _colour(rng, low, high) -> np.ndarray:
    """A colour (3, 1, 1), each channel uniform between ``low`` and ``high``."""
    return rng.uniform(low, high).astype(np.float32)[:, None, None]


def _noise(rng, side: int, cells: int, octaves: int = 1, stretch: float = 1.0) -> np.ndarray:
    """Smooth noise (side, side) in 0..1: random grids, enlarged; ``stretch`` > 1 draws it out sidewards."""
    total, weight = np.zeros((side, side), np.float32), 0.0
    for k in range(octaves):
        n = cells * 2**k
        across = max(2, round(n / stretch))
        grid = Image.fromarray(rng.integers(0, 256, (n, across), dtype=np.uint8))
        total += np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC), np.float32) / (255 * 2**k)
        weight += 0.5**k
    return total / weight


def _mix(mask, a, b) -> np.ndarray:
    """``a`` where ``mask`` (side, side) is 1, ``b`` where it is 0: (3, side, side)."""
    return b + np.asarray(mask, np.float32) * (a - b)


def _dots(rng, image, count: int, size: int, colours) -> np.ndarray:
    """``count`` squares of ``size`` pixels at random places, each in one of ``colours`` (n, 3)."""
    side = image.shape[1]
    ys, xs = rng.integers(0, side - size + 1, (2, count))
    which = rng.integers(len(colours), size=count)
    for dy in range(size):
        for dx in range(size):
            image[:, ys + dy, xs + dx] = np.asarray(colours, np.float32)[which].T
    return image


def _sin(x) -> np.ndarray:
    """The sine as float32, computed in float64: numpy's float32 forms differ between machines in their last bits."""
    return np.sin(x, dtype=np.float64).astype(np.float32)


def _cos(x) -> np.ndarray:
    """The cosine, as ``_sin``."""
    return np.cos(x, dtype=np.float64).astype(np.float32)


def _exp(x) -> np.ndarray:
    """The exponential, as ``_sin``."""
    return np.exp(x, dtype=np.float64).astype(np.float32)


def _fraction(x):
    return x - np.floor(x)


def _grid(rng, side: int, rows: float, columns: float, gap: float, shift: float, colour, joint, vary: float = 0.12):
    """Bricks or tiles: ``rows`` by ``columns``, each with its own brightness, joints of width ``gap`` between them."""
    u, v = _uv(side)
    row = np.floor(v * rows)
    across = u * columns + shift * (row % 2)
    light = rng.uniform(1 - vary, 1 + vary, (int(rows) + 2, int(columns) + 3)).astype(np.float32)
    shade = light[row.astype(int), np.floor(across).astype(int)]
    edge = (_fraction(v * rows) < gap * rows / columns * 1.2) | (_fraction(across) < gap)
    return _mix(edge, joint, colour * shade)


# -- sky


def blue_sky(rng, side):
    _, v = _uv(side)
    return _mix(v, _colour(rng, (170, 205, 235), (205, 228, 250)), _colour(rng, (70, 130, 205), (120, 175, 235)))


def clouds(rng, side):
    cover = np.clip(2.2 * _noise(rng, side, 4, 3, stretch=0.6) - 0.6, 0, 1)
    return _mix(cover, _colour(rng, (225, 228, 232), (252, 252, 255)), blue_sky(rng, side))


def storm_clouds(rng, side):
    cover = _noise(rng, side, 4, 3, stretch=0.6)
    return _mix(cover, _colour(rng, (130, 135, 145), (165, 168, 178)), _colour(rng, (45, 50, 65), (75, 80, 95)))


def sunset(rng, side):
    u, v = _uv(side)
    image = _mix(v, _colour(rng, (250, 140, 50), (255, 190, 110)), _colour(rng, (95, 50, 110), (185, 80, 110)))
    x, y, r = rng.uniform(0.2, 0.8), rng.uniform(0.35, 0.6), rng.uniform(0.05, 0.1)
    return _mix((u - x) ** 2 + (v - y) ** 2 < r * r, _colour(rng, (255, 225, 130), (255, 245, 190)), image)


def night_sky(rng, side):
    _, v = _uv(side)
    image = _mix(v, _colour(rng, (25, 25, 65), (50, 45, 95)), _colour(rng, (4, 4, 20), (16, 16, 45)))
    return _dots(rng, image, 110, 1, [(250, 245, 210), (200, 210, 255)])


def aurora(rng, side):
    u, v = _uv(side)
    image = np.broadcast_to(_colour(rng, (8, 10, 35), (18, 22, 60)), (3, side, side)).copy()
    for hue in ((40, 230, 140), (120, 80, 220)):
        line = rng.uniform(0.25, 0.6) + 0.12 * _sin(2 * np.pi * (u * rng.uniform(1, 2.5) + rng.uniform()))
        glow = _exp(-np.clip(line - v, 0, 1) * rng.uniform(5, 9)) * (v < line)
        image = image + glow * np.float32(hue)[:, None, None] * 0.8
    return image


def fog(rng, side):
    return _mix(
        _noise(rng, side, 3, 2, 0.7),
        _colour(rng, (190, 195, 200), (215, 218, 222)),
        _colour(rng, (225, 228, 230), (242, 243, 245)),
    )


# -- far away


def mountain(rng, side):
    u, v = _uv(side)
    rock = _colour(rng, (85, 85, 105), (130, 125, 140)) * (0.75 + 0.5 * _noise(rng, side, 6, 3))
    ridge = 0.1 + 0.5 * abs(_fraction(u * rng.uniform(1.5, 3) + rng.uniform()) - 0.5)
    jagged = ridge + 0.08 * (_noise(rng, side, 12)[:1] - 0.5)
    return _mix(v < jagged + 0.12, _colour(rng, (225, 230, 240), (250, 252, 255)), rock)


def hill(rng, side):
    u, v = _uv(side)
    image = _colour(rng, (80, 130, 60), (125, 165, 95)) * (0.85 + 0.3 * _noise(rng, side, 5))
    for k in range(3):
        edge = 0.25 * (k + 1) + 0.07 * np.sin(2 * np.pi * (u * rng.uniform(0.8, 1.6) + rng.uniform()))
        image = _mix(v > edge, image * (0.93 - 0.02 * k), image)
    return image


def forest(rng, side):
    u, v = _uv(side)
    leaf = _colour(rng, (20, 70, 30), (55, 110, 55))
    crowns = _noise(rng, side, 16, 2)
    image = leaf * (0.5 + 0.9 * crowns)
    trunk = _colour(rng, (60, 40, 25), (95, 70, 45))
    for centre in rng.uniform(0, 1, int(rng.integers(8, 14))):
        image = _mix((abs(u - centre) < rng.uniform(0.006, 0.015)) & (v > rng.uniform(0.3, 0.6)), trunk, image)
    return image


def jungle(rng, side):
    u, v = _uv(side)
    leaf = _colour(rng, (10, 95, 45), (40, 150, 70))
    angle = 6 * _noise(rng, side, 5)
    blades = _sin(60 * (u * _cos(angle) + v * _sin(angle)))
    return leaf * (0.7 + 0.25 * blades + 0.3 * _noise(rng, side, 8))


def skyline(rng, side):
    u, v = _uv(side)
    columns = int(rng.integers(8, 13))
    tops = rng.uniform(0.02, 0.45, columns).astype(np.float32)
    shades = (rng.uniform(60, 135, columns).astype(np.float32)) * _colour(rng, (0.85, 0.85, 0.95), (1.05, 1, 1.1))[:, 0]
    column = np.minimum((u[0] * columns).astype(int), columns - 1)
    image = np.broadcast_to(shades[:, column][:, None, :], (3, side, side)).copy()
    windows = (_fraction(u * columns * 3) > 0.5) & (_fraction(v * 16) > 0.55) & (v > tops[column])
    image = _mix(windows * 0.8, _colour(rng, (205, 190, 120), (250, 235, 170)), image)
    return _mix(v < tops[column], _colour(rng, (165, 180, 200), (205, 215, 225)), image)


def village(rng, side):
    u, v = _uv(side)
    n = int(rng.integers(4, 7))
    house, across = np.minimum((u * n).astype(int), n - 1), _fraction(u * n)
    walls = rng.uniform(180, 245, (3, n)).astype(np.float32)[:, house]
    roofs = _colour(rng, (150, 55, 40), (205, 95, 70))
    peak = 0.15 + 0.5 * abs(across - 0.5)
    image = _mix(v < 0.45, roofs, walls)
    image = _mix(
        (abs(across - 0.5) < 0.12) & (abs(v - 0.65) < 0.1), _colour(rng, (60, 80, 110), (100, 120, 150)), image
    )
    return _mix(v < peak, _colour(rng, (165, 200, 225), (200, 225, 240)), image)


def cliff(rng, side):
    u, v = _uv(side)
    layers = _sin(2 * np.pi * (v * rng.uniform(7, 12) + 0.6 * _noise(rng, side, 4)))
    return _colour(rng, (150, 110, 80), (200, 160, 125)) * (0.85 + 0.15 * layers + 0.2 * (_noise(rng, side, 18) - 0.5))


def hedge(rng, side):
    return _colour(rng, (35, 90, 40), (60, 130, 60)) * (0.6 + 0.8 * _noise(rng, side, 36, 2))


# -- ground


def sea(rng, side):
    u, v = (w.astype(np.float64) for w in _uv(side))
    image = _mix(v, _colour(rng, (5, 55, 115), (25, 90, 155)), _colour(rng, (35, 125, 185), (80, 170, 215)))
    bend = 0.25 * np.sin(2 * np.pi * (u * rng.uniform(2, 4) + rng.uniform()))
    return image + 30.0 * (np.sin(2 * np.pi * (v * rng.uniform(9, 14) + bend)) > 0.75)


def lake(rng, side):
    calm = _noise(rng, side, 22, 1, stretch=6)
    return _colour(rng, (50, 105, 120), (95, 150, 160)) * (0.9 + 0.25 * calm)


def river(rng, side):
    u, v = _uv(side)
    bank = _colour(rng, (90, 130, 60), (130, 165, 90)) * (0.85 + 0.3 * _noise(rng, side, 16))
    middle = 0.5 + 0.25 * np.sin(2 * np.pi * (v * rng.uniform(0.6, 1.2) + rng.uniform()))
    width = 0.14 + 0.16 * v
    return _mix(abs(u - middle) < width, lake(rng, side) * 1.1, bank)


def waterfall(rng, side):
    u, v = _uv(side)
    rock = _colour(rng, (70, 65, 60), (110, 105, 95)) * (0.7 + 0.6 * _noise(rng, side, 8, 2))
    streaks = _noise(rng, side, 3, 2, stretch=0.05)
    fall = abs(u - rng.uniform(0.35, 0.65)) < rng.uniform(0.2, 0.3)
    return _mix(fall, 185 + 70 * np.broadcast_to(streaks, (3, side, side)), rock)


def swimming_pool(rng, side):
    u, v = _uv(side)
    image = _grid(
        rng,
        side,
        14,
        14,
        0.06,
        0,
        _colour(rng, (60, 185, 215), (110, 220, 240)),
        np.float32([225, 245, 250])[:, None, None],
        0.05,
    )
    return image + 25 * (np.sin(14 * _noise(rng, side, 6) * np.pi) > 0.8)


def ice(rng, side):
    image = _colour(rng, (195, 220, 235), (225, 240, 250)) * (0.93 + 0.12 * _noise(rng, side, 5))
    cracks = abs(_noise(rng, side, 6) - 0.5) < 0.008
    return _mix(cracks | (abs(_noise(rng, side, 9) - 0.5) < 0.006), np.float32([120, 165, 195])[:, None, None], image)


def swamp(rng, side):
    weed = np.clip(3 * _noise(rng, side, 9, 2) - 1.2, 0, 1)
    return _mix(weed, _colour(rng, (85, 105, 35), (120, 135, 60)), _colour(rng, (45, 55, 40), (70, 75, 55)))


def sand(rng, side):
    u, v = _uv(side)
    ripples = _sin(2 * np.pi * (v * rng.uniform(10, 16) + 0.5 * _noise(rng, side, 4)))
    return _colour(rng, (220, 190, 130), (248, 222, 168)) * (0.97 + 0.03 * ripples) + rng.normal(
        0, 5, (side, side)
    ).astype(np.float32)


def desert(rng, side):
    u, v = _uv(side)
    image = np.broadcast_to(_colour(rng, (215, 145, 75), (240, 180, 110)), (3, side, side))
    for k, base in enumerate((0.2, 0.45, 0.7)):
        edge = base + 0.08 * np.sin(2 * np.pi * (u * (1 + k) + rng.uniform()))
        image = _mix(v > edge, image * 0.88, image)
    return image


def grass(rng, side):
    blades = _noise(rng, side, 60, 1, stretch=0.35)
    return _colour(rng, (85, 150, 50), (135, 200, 90)) * (0.7 + 0.6 * blades)


def meadow(rng, side):
    image = grass(rng, side) * 1.05
    return _dots(rng, image, 130, 3, rng.uniform((200, 60, 60), (255, 235, 255), (3, 3)))


def wheat_field(rng, side):
    stalks = _noise(rng, side, 50, 1, stretch=0.15)
    return _colour(rng, (205, 165, 70), (235, 200, 110)) * (0.75 + 0.5 * stalks)


def farmland(rng, side):
    u, v = _uv(side)
    rows = np.sin(2 * np.pi * (u - 0.5) / (0.12 + 0.5 * v) * rng.uniform(3, 5)) > 0
    return _mix(rows, _colour(rng, (95, 140, 60), (130, 170, 80)), _colour(rng, (120, 85, 55), (150, 110, 75)))


def snow(rng, side):
    return _colour(rng, (232, 238, 246), (250, 252, 255)) * (0.94 + 0.08 * _noise(rng, side, 5, 2))


def soil(rng, side):
    image = _colour(rng, (95, 65, 40), (135, 95, 65)) * (0.7 + 0.6 * _noise(rng, side, 24, 2))
    return _dots(rng, image, 90, 2, [(70, 50, 35), (150, 115, 85)])


def mud(rng, side):
    wet = _noise(rng, side, 6, 2)
    return _mix(
        wet > 0.6,
        _colour(rng, (120, 105, 85), (150, 135, 115)),
        _colour(rng, (75, 55, 40), (100, 75, 55)) * (0.8 + 0.4 * wet),
    )


def gravel(rng, side):
    image = _colour(rng, (125, 122, 118), (160, 156, 150)) * np.ones((1, side, side), np.float32)
    return _dots(rng, image, 900, 4, rng.uniform(85, 205, (6, 1)) * np.ones((1, 3)))


def rocks(rng, side):
    cells = _noise(rng, side, 9)
    edges = abs(_fraction(cells * 5) - 0.5) < 0.06
    return _mix(
        edges,
        np.float32([60, 58, 55])[:, None, None],
        _colour(rng, (120, 112, 102), (165, 155, 142)) * (0.75 + 0.5 * cells),
    )


def fallen_leaves(rng, side):
    image = _colour(rng, (110, 75, 40), (140, 95, 55)) * np.ones((1, side, side), np.float32)
    return _dots(rng, image, 480, 6, [(200, 110, 40), (170, 70, 35), (215, 160, 60), (130, 60, 35), (185, 135, 55)])


def road(rng, side):
    u, v = _uv(side)
    image = _colour(rng, (75, 75, 80), (105, 105, 112)) + rng.normal(0, 5, (side, side)).astype(np.float32)
    dashes = (abs(u - 0.5) < 0.012 + 0.02 * v) & (_fraction(v * rng.uniform(5, 8)) < 0.55)
    image = _mix(dashes, np.float32([240, 235, 215])[:, None, None], image)
    return _mix(abs(abs(u - 0.5) - 0.12 - 0.32 * v) < 0.012, np.float32([235, 200, 80])[:, None, None], image)


def railway_track(rng, side):
    u, v = _uv(side)
    image = gravel(rng, side)
    image = _mix(
        (_fraction(v * rng.uniform(9, 13)) < 0.4) & (abs(u - 0.5) < 0.38),
        _colour(rng, (75, 55, 40), (110, 85, 65)),
        image,
    )
    return _mix(abs(abs(u - 0.5) - 0.26) < 0.018, np.float32([190, 195, 205])[:, None, None], image)


def paving_stones(rng, side):
    return _grid(
        rng,
        side,
        rng.integers(9, 13),
        rng.integers(9, 13),
        0.07,
        0.5,
        _colour(rng, (150, 145, 138), (190, 185, 175)),
        _colour(rng, (95, 92, 88), (115, 110, 105)),
    )


def stairs(rng, side):
    _, v = _uv(side)
    step = _fraction(v * rng.uniform(7, 10))
    return _colour(rng, (165, 160, 150), (205, 198, 188)) * np.where(
        step < 0.45, 1.0, np.where(step < 0.5, 0.45, 0.72)
    ).astype(np.float32)


# -- walls


def brick_wall(rng, side):
    return _grid(
        rng,
        side,
        14,
        7,
        0.05,
        0.5,
        _colour(rng, (150, 65, 45), (190, 95, 70)),
        _colour(rng, (190, 180, 165), (215, 205, 190)),
    )


def stone_wall(rng, side):
    return _grid(
        rng,
        side,
        8,
        5,
        0.06,
        0.37,
        _colour(rng, (130, 125, 118), (170, 163, 152)),
        _colour(rng, (75, 72, 68), (95, 92, 86)),
        0.25,
    )


def wooden_wall(rng, side):
    u, v = _uv(side)
    n = int(rng.integers(7, 12))
    grain = _sin(2 * np.pi * (u * n * 4 + 2 * _noise(rng, side, 3, 1, stretch=0.2)))
    plank = rng.uniform(0.82, 1.12, n + 1).astype(np.float32)[np.floor(u * n).astype(int)]
    image = _colour(rng, (145, 95, 55), (190, 135, 85)) * plank * (0.95 + 0.06 * grain)
    return _mix(_fraction(u * n) < 0.05, image * 0.5, image)


def concrete(rng, side):
    return _colour(rng, (150, 150, 148), (182, 182, 178)) * (0.9 + 0.2 * _noise(rng, side, 5, 4))


def tiles(rng, side):
    return _grid(
        rng,
        side,
        10,
        10,
        0.06,
        0,
        _colour(rng, (195, 210, 215), (240, 245, 248)),
        _colour(rng, (140, 150, 155), (170, 178, 182)),
        0.05,
    )


def wallpaper(rng, side):
    u, v = _uv(side)
    n = rng.uniform(5, 8)
    x, y = _fraction(u * n) - 0.5, _fraction(v * n + 0.5 * (np.floor(u * n) % 2)) - 0.5
    radius = np.sqrt(x * x + y * y)
    petals = radius < 0.2 + 0.12 * np.cos(5 * np.arctan2(y, x))
    ground = _colour(rng, (190, 180, 150), (240, 230, 215))
    return _mix(petals, _colour(rng, (120, 50, 70), (200, 130, 150)), ground * np.ones((1, side, side), np.float32))


def curtain(rng, side):
    u, v = _uv(side)
    folds = _sin(2 * np.pi * (u * rng.uniform(8, 13) + 0.05 * _sin(6 * v)))
    return _colour(rng, (90, 30, 40), (200, 120, 140)) * (0.85 + 0.25 * folds)


def bookshelf(rng, side):
    u, v = _uv(side)
    rows, columns = 5, 26
    colours = rng.uniform(50, 220, (3, rows, columns + 1)).astype(np.float32)
    row, column = np.minimum((v * rows).astype(int), rows - 1), np.floor(u * columns).astype(int)
    height = rng.uniform(0.1, 0.35, (rows, columns + 1)).astype(np.float32)
    image = colours[:, row, column]
    inside = _fraction(v * rows)
    image = _mix(inside < height[row, column], np.float32([45, 30, 22])[:, None, None], image)
    return _mix(inside > 0.9, _colour(rng, (110, 70, 40), (150, 100, 65)), image)


def fence(rng, side):
    u, v = _uv(side)
    n = rng.uniform(9, 13)
    pale = (_fraction(u * n) < 0.62) & (v > 0.12 + 0.1 * abs(_fraction(u * n) - 0.31))
    behind = grass(rng, side) * 0.8
    image = _mix(pale, _colour(rng, (215, 210, 200), (250, 248, 245)), behind)
    return _mix((abs(v - 0.35) < 0.03) | (abs(v - 0.75) < 0.03), _colour(rng, (195, 190, 180), (225, 222, 216)), image)


# -- floors


def wooden_floor(rng, side):
    u, v = _uv(side)
    rows = int(rng.integers(8, 12))
    row = np.floor(v * rows).astype(int)
    offset = rng.uniform(0, 1, rows + 1).astype(np.float32)[row]
    board = np.floor(u * 3 + offset * 3).astype(int)
    light = rng.uniform(0.8, 1.12, (rows + 1, 8)).astype(np.float32)[row, board]
    image = _colour(rng, (165, 115, 70), (215, 165, 110)) * light
    return _mix((_fraction(v * rows) < 0.06) | (_fraction(u * 3 + offset * 3) < 0.015), image * 0.55, image)


def carpet(rng, side):
    u, v = _uv(side)
    weave = rng.normal(1, 0.09, (side, side)).astype(np.float32)
    image = _colour(rng, (120, 30, 40), (170, 80, 110)) * weave
    edge = np.maximum(abs(u - 0.5), abs(v - 0.5))
    return _mix(
        abs(_fraction(edge * rng.uniform(6, 9)) - 0.5) < 0.08, _colour(rng, (200, 170, 100), (235, 210, 150)), image
    )


def tiled_floor(rng, side):
    u, v = _uv(side)
    n = rng.uniform(7, 11)
    dark = (np.floor(u * n) + np.floor(v * n)) % 2 > 0
    return _mix(dark, _colour(rng, (50, 50, 55), (110, 75, 70)), _colour(rng, (215, 205, 190), (245, 240, 230)))


def tablecloth(rng, side):
    u, v = _uv(side)
    n = rng.uniform(9, 14)
    bands = 0.5 * (_fraction(u * n) < 0.5) + 0.5 * (_fraction(v * n) < 0.5)
    return _mix(bands, _colour(rng, (170, 30, 40), (215, 80, 90)), np.float32([250, 246, 242])[:, None, None])


# -- patterns


def stripes(rng, side):
    u, v = _uv(side)
    angle = rng.uniform(0, np.pi)
    return _mix(_fraction((u * np.cos(angle) + v * np.sin(angle)) * rng.uniform(6, 14)) > 0.5, *_pair(rng))


def polka_dots(rng, side):
    u, v = _uv(side)
    n = rng.uniform(6, 12)
    x, y = _fraction(u * n + 0.5 * (np.floor(v * n) % 2)) - 0.5, _fraction(v * n) - 0.5
    return _mix(x * x + y * y < rng.uniform(0.05, 0.1), *_pair(rng))


def zigzag(rng, side):
    u, v = _uv(side)
    n = rng.uniform(5, 9)
    return _mix(_fraction(v * n + abs(_fraction(u * n) - 0.5)) > 0.5, *_pair(rng))


def marble(rng, side):
    veins = abs(_sin(np.pi * (3 * _noise(rng, side, 3, 4) + _uv(side)[0] * 2)))
    return _mix(
        np.clip(1 - 3 * veins, 0, 1),
        _colour(rng, (110, 110, 120), (150, 150, 160)),
        _colour(rng, (225, 222, 218), (248, 246, 243)),
    )


def _pair(rng) -> tuple[np.ndarray, np.ndarray]:
    """Two colours that differ clearly."""
    a = rng.uniform(20, 255, 3)
    b = np.where(a > 135, a - rng.uniform(60, 120, 3), a + rng.uniform(60, 120, 3))
    return a.astype(np.float32)[:, None, None], b.astype(np.float32)[:, None, None]


_LAYER = {
    "sky": (blue_sky, clouds, storm_clouds, sunset, night_sky, aurora, fog),
    "far": (mountain, hill, forest, jungle, skyline, village, cliff, hedge),
    "ground": (
        sea,
        lake,
        river,
        waterfall,
        swimming_pool,
        ice,
        swamp,
        sand,
        desert,
        grass,
        meadow,
        wheat_field,
        farmland,
        snow,
        soil,
        mud,
        gravel,
        rocks,
        fallen_leaves,
        road,
        railway_track,
        paving_stones,
        stairs,
    ),
    "wall": (brick_wall, stone_wall, wooden_wall, concrete, tiles, wallpaper, curtain, bookshelf, fence),
    "floor": (wooden_floor, carpet, tiled_floor, tablecloth),
    "pattern": (stripes, polka_dots, zigzag, marble),
}
STUFF = {f.__name__.replace("_", " "): (f, layer) for layer, painters in _LAYER.items() for f in painters}


@cache
def sheet(name: str, number: int) -> np.ndarray:
    """Sheet ``number`` of a kind of stuff: (3, SHEET, SHEET) float32 in 0..255. Shared: do not write to it."""
    rng = np.random.default_rng([crc32(name.encode()), number])
    image = np.asarray(STUFF[name][0](rng, SHEET), np.float32)
    return np.clip(np.broadcast_to(image, (3, SHEET, SHEET)), 0, 255).astype(np.float32)


def texture(rng, side: int) -> np.ndarray:
    """What no label names, (3, side, side) float32: one colour, a gradient, or clouds of two near colours."""
    a = _colour(rng, (20, 20, 20), (255, 255, 255))
    b = np.clip(a + _colour(rng, (-90, -90, -90), (90, 90, 90)), 0, 255)
    kind = rng.integers(3)
    if kind == 0:
        return np.broadcast_to(a, (3, side, side)).copy()
    if kind == 1:
        u, v = _uv(side)
        angle = rng.uniform(0, 2 * np.pi)
        return _mix(np.clip(0.5 + (u - 0.5) * np.cos(angle) + (v - 0.5) * np.sin(angle), 0, 1), a, b)
    return _mix(_noise(rng, side, int(rng.integers(4, 12))), a, b)
