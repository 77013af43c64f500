"""Does the adapted model paint its training photos again? Distances of thumbnails, beside those of photos held out."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stablerep import atomic

NEAR = 0.5  # of the median distance of a photo held out to its nearest training photo: nearer is a copy
SHOWN = 8


@dataclass(frozen=True)
class Memorised:
    """Distances from 0 (the same) to 2, of thumbnails of 16 x 16 pixels; brightness, tint and contrast do not count."""

    pictures: int  # painted for this
    training_distance: float  # median over them, to the nearest training photo
    held_out_distance: float  # median, of the photos held out to their nearest training photo
    threshold: float
    count: int  # painted pictures nearer than that

    @property
    def share(self) -> float:
        return self.count / self.pictures

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"share": self.share}

    def __str__(self) -> str:
        verdict = (
            f"{self.count} of {self.pictures} painted pictures are near copies of a training photo (memorised.png)"
            if self.count
            else f"none of {self.pictures} painted pictures is a copy of a training photo"
        )
        return (
            f"{verdict}; their nearest one is {self.training_distance:.3f} away, of photos held out "
            f"{self.held_out_distance:.3f}"
        )


def compare(painted: Tensor, training: Tensor, held_out: Tensor) -> tuple[Memorised, Tensor, Tensor]:
    """Of thumbnails [N, 3, h, w]: the finding, and for each painted one its distance and its nearest training photo."""
    near, where = nearest(painted, training)
    usual = nearest(held_out, training)[0].median().item()
    threshold = NEAR * usual
    found = Memorised(len(painted), near.median().item(), usual, threshold, int((near < threshold).sum()))
    return found, near, where


def nearest(these: Tensor, those: Tensor) -> tuple[Tensor, Tensor]:
    """For each of these the distance to the nearest of those, mirrored or not, and which it is."""
    first, second = _normalised(these), _normalised(those)
    mirrored = _normalised(these.flip(-1))
    distances = torch.minimum(torch.cdist(first, second), torch.cdist(mirrored, second))
    least = distances.min(1)
    return least.values, least.indices


def _normalised(thumbnails: Tensor) -> Tensor:  # [N, D]
    # A mean for each channel: else two plain cloths of one colour were copies of each other.
    centred = thumbnails.double() - thumbnails.double().mean((2, 3), keepdim=True)
    return torch.nn.functional.normalize(centred.flatten(1), dim=1)


def write_grid(path: Path, rows: list[list[np.ndarray]]) -> None:
    """Write pictures, uint8 [H, W, 3] of one size, as rows of one PNG; what a row lacks is black."""
    if not rows:
        return
    most, blank = max(map(len, rows)), np.zeros_like(rows[0][0])
    whole = np.concatenate([np.concatenate([*row, *[blank] * (most - len(row))], axis=1) for row in rows])
    file = io.BytesIO()
    Image.fromarray(whole).save(file, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, file.getvalue())
