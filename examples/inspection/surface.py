"""Parts as surfaces: what is there, how high it stands, what colour it has and how it shines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

GRID = 192  # points a side, on which a part is drawn; photos are smaller
MATERIALS = ("metal", "fabric")
SHAPES = {"metal": ("plate", "ring", "gear", "angle"), "fabric": ("weave", "twill", "knit", "check")}
DEFECTS = ("dent", "hole", "scratch", "stain")

Map = NDArray[np.float64]  # [GRID, GRID]

Y, X = np.mgrid[-1 : 1 : GRID * 1j, -1 : 1 : GRID * 1j]
METAL_COLOURS = ((0.62, 0.64, 0.67), (0.50, 0.51, 0.53), (0.72, 0.60, 0.40), (0.66, 0.47, 0.37))
FABRIC_COLOURS = (
    (0.20, 0.27, 0.45), (0.50, 0.17, 0.18), (0.68, 0.62, 0.50), (0.24, 0.40, 0.32), (0.42, 0.42, 0.44),
)  # fmt: skip
TABLES = ((0.10, 0.11, 0.12), (0.16, 0.20, 0.25), (0.12, 0.17, 0.13))


@dataclass
class Surface:
    """A part on a table, seen from above."""

    height: Map  # in units of half the picture's side
    colour: NDArray[np.float64]  # [GRID, GRID, 3] linear, 0 to 1
    there: Map  # 0 to 1: the part, else the table
    table: NDArray[np.float64]  # [GRID, GRID, 3]
    shine: Map  # 0 to 1


def draw_part(material: str, shape: str, label: str, drawn: np.random.Generator) -> Surface:
    """A part of this kind; label is "good" or one of DEFECTS."""
    surface = (_metal if material == "metal" else _fabric)(shape, drawn)
    if label != "good":
        {"dent": _dent, "hole": _hole, "scratch": _scratch, "stain": _stain}[label](surface, material, drawn)
    return surface


def noise(drawn: np.random.Generator, *sigmas: float) -> Map:
    """Smooth noise of deviation 1; two sigmas: of rows and columns, in grid points."""
    sigma = sigmas if len(sigmas) == 2 else sigmas[0]
    smooth = ndimage.gaussian_filter(drawn.standard_normal((GRID, GRID)), sigma, mode="wrap")
    return (smooth - smooth.mean()) / smooth.std()


def _turned(drawn: np.random.Generator, most_turn: float, most_shift: float, scale: float) -> tuple[Map, Map]:
    """Coordinates of a part that lies a little askew, a little aside."""
    angle = drawn.uniform(-most_turn, most_turn)
    dx, dy = drawn.uniform(-most_shift, most_shift, 2)
    x, y = (X - dx) / scale, (Y - dy) / scale
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _inside(distance: Map, edge: float = 0.012) -> Map:
    """1 where a signed distance is negative, with a soft edge."""
    return np.clip(0.5 - distance / (2 * edge), 0, 1)


def _box(x: Map, y: Map, half_width: float, half_height: float, radius: float) -> Map:
    """Signed distance to a box with round corners."""
    across, along = np.abs(x) - half_width + radius, np.abs(y) - half_height + radius
    return np.hypot(across.clip(0), along.clip(0)) + np.maximum(across, along).clip(None, 0) - radius


def _metal(shape: str, drawn: np.random.Generator) -> Surface:
    x, y = _turned(drawn, np.pi, 0.08, drawn.uniform(0.92, 1.05))
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    if shape == "plate":
        width, length = 0.78, drawn.uniform(0.5, 0.6)
        distance = _box(x, y, width, length, 0.12)
        for side_x, side_y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            distance = np.maximum(distance, 0.085 - np.hypot(x - side_x * (width - 0.18), y - side_y * (length - 0.18)))
    elif shape == "ring":
        inner = drawn.uniform(0.27, 0.36)
        distance = np.maximum(radius - 0.74, inner - radius)
    elif shape == "gear":
        teeth = int(drawn.integers(11, 15))
        rim = 0.70 + 0.065 * np.tanh(4 * np.cos(teeth * angle))
        distance = np.maximum((radius - rim) * 0.8, 0.17 - radius)
    else:
        leg = np.minimum(_box(x + 0.42, y, 0.24, 0.74, 0.08), _box(x, y - 0.48, 0.66, 0.26, 0.08))
        holes = [np.hypot(x + 0.42, y + 0.45), np.hypot(x - 0.40, y - 0.48)]
        distance = np.maximum.reduce([leg, *(0.10 - hole for hole in holes)])
    bevel = np.clip(-distance / 0.055, 0, 1)
    height = 0.05 * np.sqrt(1 - (1 - bevel) ** 2)
    if shape == "gear":  # a hub stands out of it
        height += 0.03 * np.clip((0.36 - radius) / 0.05, 0, 1)
    colour = np.array(METAL_COLOURS[drawn.integers(len(METAL_COLOURS))]) * drawn.uniform(0.9, 1.05)
    strokes = ndimage.rotate(noise(drawn, 0.6, 22), drawn.uniform(0, 180), reshape=False, mode="wrap", order=1)
    height += 0.0011 * strokes  # brushed
    shade = 1 + 0.035 * strokes + 0.03 * noise(drawn, 14)
    return Surface(height, shade[..., None] * colour, _inside(distance), _table(drawn), np.full((GRID, GRID), 0.75))


def _fabric(shape: str, drawn: np.random.Generator) -> Surface:
    x, y = _turned(drawn, 0.35, 0.0, 1.0)
    x, y = x + 0.012 * noise(drawn, 16), y + 0.012 * noise(drawn, 16)
    threads = drawn.uniform(13, 16) * np.pi
    warp, weft = np.cos(threads * x), np.cos(threads * y)
    colour = np.array(FABRIC_COLOURS[drawn.integers(len(FABRIC_COLOURS))]) * drawn.uniform(0.65, 0.95)
    tint = np.ones((GRID, GRID, 1)) * colour
    if shape == "weave":
        relief = 0.5 * (warp * weft) + 0.25 * (np.abs(warp) + np.abs(weft))
    elif shape == "twill":
        relief = np.cos(0.8 * threads * (x + y)) + 0.25 * warp
    elif shape == "knit":
        relief = np.cos(0.62 * threads * x) + 0.9 * np.cos(threads * (y + 0.10 * np.abs(np.cos(0.31 * threads * x))))
    else:
        relief = 0.5 * (warp * weft) + 0.25 * (np.abs(warp) + np.abs(weft))
        other = np.array(FABRIC_COLOURS[drawn.integers(len(FABRIC_COLOURS))]) * 1.2
        stripes = (np.cos(7.5 * x) > 0.35) * 0.5 + (np.cos(7.5 * y) > 0.35) * 0.5
        tint = tint * (1 - stripes[..., None]) + other * stripes[..., None]
    height = 0.010 * relief + 0.020 * noise(drawn, 34)
    shade = 1 + 0.13 * relief + 0.05 * noise(drawn, 1.2)
    return Surface(height, shade[..., None] * tint, np.ones((GRID, GRID)), _table(drawn), np.full((GRID, GRID), 0.06))


def _table(drawn: np.random.Generator) -> NDArray[np.float64]:
    colour = np.array(TABLES[drawn.integers(len(TABLES))]) * drawn.uniform(0.8, 1.3)
    return (1 + 0.10 * noise(drawn, 1.0) + 0.06 * noise(drawn, 10))[..., None] * colour


def _place(surface: Surface, drawn: np.random.Generator, margin: float) -> tuple[float, float]:
    """A point on the part, away from its edges where it has such points."""
    deep = ndimage.distance_transform_edt(surface.there > 0.5) > margin * GRID / 2
    deep &= np.maximum(np.abs(X), np.abs(Y)) < 0.72
    rows, columns = np.nonzero(deep if deep.any() else surface.there > 0.9)
    pick = drawn.integers(len(rows))
    return X[0, columns[pick]], Y[rows[pick], 0]


def _blob(x0: float, y0: float, size: float, drawn: np.random.Generator, ragged: float) -> Map:
    """Signed distance to a patch of uneven outline."""
    angle, radius = np.arctan2(Y - y0, X - x0), np.hypot(X - x0, Y - y0)
    outline = np.ones_like(angle)
    for wave in range(2, 7):
        outline += ragged / wave * drawn.standard_normal() * np.cos(wave * angle + drawn.uniform(0, 2 * np.pi))
    return radius - size * outline.clip(0.4)


def _dent(surface: Surface, material: str, drawn: np.random.Generator) -> None:
    x0, y0 = _place(surface, drawn, 0.14)
    size = drawn.uniform(0.11, 0.17) * (1.5 if material == "fabric" else 1)
    wide, angle = drawn.uniform(1.0, 1.5), drawn.uniform(0, np.pi)
    along, across = (
        (X - x0) * np.cos(angle) + (Y - y0) * np.sin(angle),
        (Y - y0) * np.cos(angle) - (X - x0) * np.sin(angle),
    )
    hollow = np.exp(-(((along / (size * wide)) ** 2 + (across / size) ** 2) ** 1.5))
    surface.height -= drawn.uniform(0.05, 0.08) * (2.2 if material == "fabric" else 1) * hollow
    surface.colour *= (1 - 0.18 * hollow)[..., None]  # less of the sky is seen from down there


def _hole(surface: Surface, material: str, drawn: np.random.Generator) -> None:
    x0, y0 = _place(surface, drawn, 0.13)
    distance = _blob(x0, y0, drawn.uniform(0.08, 0.13) * (1.3 if material == "fabric" else 1), drawn, 0.28)
    if material == "fabric":  # threads stick into it
        distance += 0.03 * noise(drawn, 1.2)
    rim = np.exp(-(((distance - 0.02) / 0.03) ** 2))
    surface.there *= 1 - _inside(distance, 0.015)
    surface.table *= (1 - 0.75 * _inside(distance, 0.03))[..., None]  # it lies in the shadow
    surface.colour *= (1 + (0.35 if material == "fabric" else -0.35) * rim)[..., None]


def _scratch(surface: Surface, material: str, drawn: np.random.Generator) -> None:
    x0, y0 = _place(surface, drawn, 0.1)
    angle, bend = drawn.uniform(0, np.pi), drawn.uniform(-0.5, 0.5)
    length = drawn.uniform(0.35, 0.6)
    along = (X - x0) * np.cos(angle) + (Y - y0) * np.sin(angle)
    across = (Y - y0) * np.cos(angle) - (X - x0) * np.sin(angle) + bend * along**2 + 0.006 * noise(drawn, 8)
    width = drawn.uniform(0.013, 0.020) * (1.5 if material == "fabric" else 1)
    ends = np.clip((length - np.abs(along)) / 0.12, 0, 1)
    groove = np.exp(-((across / width) ** 2)) * ends
    lip = np.exp(-(((np.abs(across) - 1.8 * width) / width) ** 2)) * ends
    surface.height += 0.012 * lip - 0.016 * groove
    if material == "metal":  # fresh metal shines in it
        surface.colour = surface.colour * (1 - 0.3 * lip[..., None]) + 0.5 * groove[..., None]
    else:  # worn threads
        surface.colour = surface.colour * (1 - 0.3 * lip[..., None]) + 0.35 * groove[..., None]


def _stain(surface: Surface, material: str, drawn: np.random.Generator) -> None:
    x0, y0 = _place(surface, drawn, 0.08)
    colour = np.array([(0.34, 0.20, 0.09), (0.12, 0.11, 0.12), (0.45, 0.22, 0.08)][drawn.integers(3)])
    distance = _blob(x0, y0, drawn.uniform(0.16, 0.26), drawn, 0.4) + 0.02 * noise(drawn, 5)
    inside = _inside(distance, 0.05)
    rim = np.exp(-(((distance + 0.03) / 0.035) ** 2))  # drops dry darkest at their edge
    strength = (inside * drawn.uniform(0.5, 0.75) + 0.25 * rim * inside)[..., None]
    surface.colour = surface.colour * (1 - strength) + colour * (0.6 + 0.4 * surface.colour) * strength
    surface.shine *= 1 - 0.8 * inside
