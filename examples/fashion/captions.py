"""Captions for Fashion-MNIST, measured from the pixels: "a photo of a dark slim plain ankle boot"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from stablerep.data.labelled import LabelledSet

TONES = ("black", "dark", "grey", "light", "white")
WIDTHS = ("narrow", "slim", "regular", "wide", "broad")
TEXTURES = ("plain", "soft", "textured", "patterned", "busy")
GARMENT_ABOVE = 16  # grey level: the photos stand on black with a little noise


@dataclass(frozen=True)
class Caption:
    """One garment; None leaves the word out."""

    garment: str
    tone: int | None = None
    width: int | None = None
    texture: int | None = None

    def __str__(self) -> str:
        choices = ((TONES, self.tone), (WIDTHS, self.width), (TEXTURES, self.texture))
        words = [names[step] for names, step in choices if step is not None]
        return " ".join(["a photo of a", *words, self.garment])


def all_captions(garments: tuple[str, ...]) -> Iterator[Caption]:
    """Every garment in every tone, width and texture: 125 captions a garment."""
    for garment, tone, width, texture in product(garments, range(5), range(5), range(5)):
        yield Caption(garment, tone, width, texture)


def measure_steps(photos: LabelledSet) -> NDArray[np.int64]:
    """Tone, width and texture of each photo as a step 0..4, the quintile among photos of its class.

    Returns:
        [N, 3] int64.
    """
    grey = photos.images[..., 0].astype(np.float32)
    garment = grey > GARMENT_ABOVE
    area = garment.sum((1, 2)).clip(1)
    tone = (grey * garment).sum((1, 2)) / area
    width = area / garment.any(2).sum(1).clip(1)  # mean width over the rows the garment covers
    # Second differences inside the garment, relative to its tone: prints and fabric, not the outline.
    inside = garment[:, 1:-1, 1:-1] & garment[:, :-2, 1:-1] & garment[:, 2:, 1:-1]
    inside &= garment[:, 1:-1, :-2] & garment[:, 1:-1, 2:]
    neighbours = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    detail = np.abs(4 * grey[:, 1:-1, 1:-1] - neighbours)
    texture = (detail * inside).sum((1, 2)) / inside.sum((1, 2)).clip(1) / tone.clip(1)

    steps = np.empty((len(photos), 3), np.int64)
    for column, values in enumerate((tone, width, texture)):
        for label in range(len(photos.class_names)):
            of_class = photos.labels == label
            edges = np.quantile(values[of_class], (0.2, 0.4, 0.6, 0.8))
            steps[of_class, column] = np.searchsorted(edges, values[of_class], side="right")
    return steps
