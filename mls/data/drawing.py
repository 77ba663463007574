"""Drawing tools for generated scenes: silhouettes, object textures, value noise, palettes.

    outline, hole = silhouette("ring")                       # polygons in the unit square [-1, 1]^2
    mix_HW = texture("dots", u_HW, v_HW, period=0.4, rng=rng)  # 0 = first colour, 1 = second

Everything is procedural; no image, font or other file is read. Shape legend: P points, H height, W width.
"""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

TEXTURES = ("plain", "stripes", "dots", "checks", "gradient", "noise")


def _arc(start: float, stop: float, points: int = 30) -> NDArray[np.float64]:
    angles = np.linspace(start, stop, points)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _regular(points: int) -> NDArray[np.float64]:
    return _arc(-np.pi / 2, 1.5 * np.pi, points + 1)[:-1]


def _crescent() -> NDArray[np.float64]:
    """Return the unit disc minus a disc of radius 0.8 around (0.45, 0); their edges meet at x = 0.625."""
    outer, inner = np.arccos(0.625), np.arctan2(np.sqrt(1 - 0.625**2), 0.625 - 0.45)
    bite = 0.8 * _arc(2 * np.pi - inner, inner) + [0.45, 0]
    return np.concatenate([_arc(outer, 2 * np.pi - outer), bite[1:-1]])


def _cross() -> NDArray[np.float64]:
    """Return one arm's corner in its four quarter turns."""
    corner = [(0.36, -1), (0.36, -0.36), (1, -0.36)]
    quarters = [corner]
    for _ in range(3):
        quarters.append([(-y, x) for x, y in quarters[-1]])
    return np.concatenate(quarters)


def _heart() -> NDArray[np.float64]:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1)


_ARROW = [(1, 0), (0.1, -0.75), (0.1, -0.28), (-1, -0.28), (-1, 0.28), (0.1, 0.28), (0.1, 0.75)]
_OUTLINES = {
    "arrow": np.array(_ARROW),
    "crescent": _crescent(),
    "cross": _cross(),
    "disc": _regular(40),
    "heart": _heart(),
    "hexagon": _regular(6),
    "ring": _regular(40),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "star": _regular(10) * np.tile([1.0, 0.42], 5)[:, None],
    "triangle": _regular(3),
}
_HOLES = {"ring": 0.52 * _regular(40)}
SHAPES = tuple(_OUTLINES)


def silhouette(shape: str) -> tuple[Floats, Floats | None]:
    """Return the outline of one of `SHAPES` and its hole (None if it has none): float32 (P, 2) polygons.

    The outline is centred and spans [-1, 1] along its longer side.
    """
    outline, hole = _OUTLINES[shape], _HOLES.get(shape)
    low, high = outline.min(axis=0), outline.max(axis=0)
    scale = 2 / (high - low).max()
    outline = (outline - (low + high) / 2) * scale
    return outline.astype(np.float32), None if hole is None else (hole * scale).astype(np.float32)


def polygon_area(points_P2: NDArray[np.floating]) -> float:
    """Return the area of a polygon (P, 2), by the shoelace formula."""
    x, y = points_P2[:, 0].astype(np.float64), points_P2[:, 1].astype(np.float64)
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def value_noise(rng: np.random.Generator, height: int, width: int, cells: tuple[int, int], octaves: int) -> Floats:
    """Return smooth random noise: float32 (H, W), about in [0, 1].

    It is a sum of interpolated random grids, each twice as fine and half as strong as the one before. Bicubic
    interpolation overshoots, so values may lie slightly outside.

    Args:
        rng: source of the grids.
        height: of the result, pixels.
        width: of the result, pixels.
        cells: rows and columns of the coarsest grid.
        octaves: number of grids.
    """
    total = np.zeros((height, width), dtype=np.float32)
    strength = 1.0
    for octave in range(octaves):
        rows, columns = (count * 2**octave + 1 for count in cells)
        grid = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
        total += strength * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        strength /= 2
    return total / np.float32(2 * (1 - 2.0**-octaves))


def texture(kind: str, u_HW: Floats, v_HW: Floats, period: float, rng: np.random.Generator) -> Floats:
    """Return how much of an object's second colour shows at each pixel: float32 (H, W) in [0, 1].

    Args:
        kind: one of `TEXTURES`.
        u_HW: first coordinate on the object, in its radii.
        v_HW: second coordinate, likewise.
        period: of repeated marks, in radii.
        rng: places the marks.
    """
    phase_u, phase_v = rng.random(2, dtype=np.float32)
    a, b = u_HW / np.float32(period) + phase_u, v_HW / np.float32(period) + phase_v
    if kind == "plain":
        return np.zeros_like(u_HW)
    if kind == "gradient":
        return np.clip(u_HW * np.float32(0.5) + np.float32(0.5), 0, 1)
    if kind == "noise":
        return np.clip(value_noise(rng, len(u_HW), u_HW.shape[1], (4, 4), 2) * 2.4 - 0.7, 0, 1)
    marks = {
        "stripes": lambda: a - np.floor(a) < 0.5,
        "checks": lambda: (np.floor(2 * a) + np.floor(2 * b)) % 2,
        "dots": lambda: (a - np.floor(a) - 0.5) ** 2 + (b - np.floor(b) - 0.5) ** 2 < 0.085,
    }
    mix_HW: Floats = marks[kind]().astype(np.float32)
    return mix_HW


def ramp(colours: Floats, position_HW: Floats) -> Floats:
    """Interpolate between evenly spaced colours: float32 (H, W, 3).

    Args:
        colours: float32 (stops, 3).
        position_HW: place along the stops, clipped to [0, 1].
    """
    steps = len(colours) - 1
    place = np.clip(position_HW, 0, 1) * steps
    below = np.minimum(place.astype(np.intp), steps - 1)
    share = (place - below)[..., None]
    mixed: Floats = colours[below] * (1 - share) + colours[below + 1] * share
    return mixed


def hsv(hue: float, saturation: float, value: float) -> Floats:
    """Convert HSV to RGB: float32 (3,) in [0, 255]. The hue wraps around; the others are clipped to [0, 1]."""
    rgb = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return np.array(rgb, dtype=np.float32) * 255
