"""Light and camera: a surface becomes a photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from examples.inspection.surface import GRID, Surface

AMBIENT = 0.32


@dataclass(frozen=True)
class Conditions:
    """Ranges that each photo draws from."""

    azimuth: tuple[float, float]  # of the lamp, degrees; 0 is right, 90 is below
    elevation: tuple[float, float]  # degrees above the table
    warmth: tuple[float, float]  # of the light: above 0 yellow, below blue
    exposure: tuple[float, float]
    blur: tuple[float, float]  # of the lens, in points of the surface's grid
    noise: tuple[float, float]  # of the sensor: deviation of a pixel of full brightness, of 1


TRAIN = Conditions((180, 300), (38, 62), (-0.06, 0.06), (0.9, 1.1), (0.6, 1.4), (0.010, 0.020))
TEST = Conditions((20, 140), (28, 70), (-0.16, 0.16), (0.75, 1.25), (0.8, 2.2), (0.025, 0.045))


def take_photo(
    surface: Surface, conditions: Conditions, size: int, drawn: np.random.Generator
) -> NDArray[np.uint8]:  # [size, size, 3]
    def draw(ends: tuple[float, float]) -> float:
        return float(drawn.uniform(*ends))

    azimuth, elevation = np.deg2rad(draw(conditions.azimuth)), np.deg2rad(draw(conditions.elevation))
    lamp = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    warmth = draw(conditions.warmth)
    light = np.array([1 + warmth, 1.0, 1 - warmth]) * draw(conditions.exposure)

    slope_y, slope_x = np.gradient(surface.height, 2 / GRID)
    normal = np.stack([-slope_x, -slope_y, np.ones_like(slope_x)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    diffuse = np.clip(normal @ lamp, 0, 1)[..., None]
    half = lamp + np.array([0, 0, 1])
    towards = np.clip(normal @ (half / np.linalg.norm(half)), 0, 1)
    shine = surface.shine * (0.5 * towards**18 + 0.35 * towards**60)

    part = surface.colour * (AMBIENT + 0.95 * diffuse) + 0.55 * shine[..., None]
    # The shadow on the table lies away from the lamp, a part's height long.
    shift = -lamp[:2] / np.tan(elevation) * 0.05 * GRID / 2
    shadow = ndimage.gaussian_filter(ndimage.shift(surface.there, (shift[1], shift[0]), order=1), 3)
    table = surface.table * (AMBIENT + 0.8 * lamp[2] * (1 - 0.7 * shadow[..., None]))
    there = surface.there[..., None]
    scene = (part * there + table * (1 - there)) * light * _falloff(azimuth)[..., None]

    scene = ndimage.gaussian_filter(scene, (draw(conditions.blur),) * 2 + (0,))
    pixels = _resize(scene, size)
    deviation = draw(conditions.noise)
    pixels += deviation * np.sqrt(pixels.clip(0.02, 1)) * drawn.standard_normal(pixels.shape)  # photons are counted
    pixels += 0.3 * deviation * drawn.standard_normal(pixels.shape)  # and read out
    return np.round(255 * pixels.clip(0, 1) ** (1 / 2.2)).astype(np.uint8)


def _falloff(azimuth: float) -> NDArray[np.float64]:  # [GRID, GRID]
    """Nearer to the lamp it is brighter; towards the corners the lens loses light."""
    y, x = np.mgrid[-1 : 1 : GRID * 1j, -1 : 1 : GRID * 1j]
    return (1 + 0.14 * (np.cos(azimuth) * x + np.sin(azimuth) * y)) * (1 - 0.07 * (x**2 + y**2))


def _resize(scene: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    channels = [
        np.asarray(Image.fromarray(scene[..., c].astype(np.float32)).resize((size, size), Image.Resampling.BOX))
        for c in range(3)
    ]
    return np.stack(channels, axis=-1).astype(np.float64)
