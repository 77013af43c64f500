"""Pictures of what quality.json names, to be looked at: pairs side by side, and single ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from stablerep import atomic

SIDE = 192  # pixels of a thumbnail's long side
GAP = 8
GROUND = (255, 255, 255)


def thumbnail(picture: Image.Image) -> Image.Image:
    """The picture with a long side of SIDE; small ones in whole pixels, so that one sees what there is."""
    longest = max(picture.size)
    if longest * 2 <= SIDE:
        times = SIDE // longest
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    scale = SIDE / longest
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    left, right = thumbnail(left), thumbnail(right)
    sheet = Image.new("RGB", (left.width + GAP + right.width, max(left.height, right.height)), GROUND)
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + GAP, 0))
    return sheet


def write_pictures(folder: Path, pictures: Sequence[Image.Image]) -> None:
    """folder/000.png and so on; what an earlier run left there goes."""
    with atomic.new_folder(folder) as new:
        for number, picture in enumerate(pictures):
            data = io.BytesIO()
            picture.save(data, "PNG")
            (new / f"{number:03}.png").write_bytes(data.getvalue())
