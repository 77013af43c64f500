"""Pictures reach an encoder as timm's own transform would bring them there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from stablerep.config import UserError
from stablerep.models import InputTransform


def photo(height: int, width: int) -> Image.Image:
    """Smooth, with an edge, as a photo is."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * y / height, 127 + 120 * np.sin(x / 9), 255.0 * (x > width // 3)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("size", [(90, 90), (80, 131), (150, 77), (40, 30)])
@pytest.mark.parametrize(
    ("interpolation", "crop_pct", "crop_mode"),
    [("bicubic", 0.875, "center"), ("bilinear", 0.95, "center"), ("bicubic", 1.0, "squash"), ("bilinear", 1, "squash")],
)
def test_equals_timm(size: tuple[int, int], interpolation: str, crop_pct: float, crop_mode: str) -> None:
    about = {"input_size": (3, 56, 56), "interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": crop_mode}
    about |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    image = photo(*size)
    expected = create_transform(**about)(image)  # type: ignore[arg-type]
    transform = InputTransform.from_timm(about)
    ours = transform(torch.from_numpy(np.asarray(image).copy())[None])[0]
    assert ours.shape == (3, 56, 56)
    # PIL rounds to whole grey levels after each of its two passes.
    assert ((ours - expected).abs().amax() * 0.3 * 255).item() < 2.6
    assert (ours - expected).abs().mean().item() * 0.3 * 255 < 0.6


def test_our_own_exports_are_made_square_and_nothing_is_cut_off() -> None:
    image = torch.zeros(1, 20, 40, 3, dtype=torch.uint8)
    image[:, :, :5] = 255  # at the very left
    assert InputTransform(20)(image)[0, 0, 10, 0] > 2


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [("crop_mode", "border", "crop_mode is border"), ("input_size", (3, 56, 64), "3 x 56 x 64")],
)
def test_what_cannot_be_had_is_refused(field: str, value: object, match: str) -> None:
    about = {"input_size": (3, 56, 56), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
    with pytest.raises(UserError, match=match):
        InputTransform.from_timm(about | {"mean": (0.5,) * 3, "std": (0.5,) * 3} | {field: value})
