"""Pictures small enough to be mailed, as data URLs."""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 112  # pixels; shown at half of it on a screen of two pixels a point
QUALITY = 82
TINY = 64  # up to here a picture is kept as it is, and shown with hard pixels
READ_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for damaged files


@dataclass(frozen=True)
class Thumbnail:
    url: str
    width: int
    height: int

    @property
    def is_tiny(self) -> bool:
        return max(self.width, self.height) <= TINY


class Thumbnails:
    """Makes thumbnails, and counts the pictures that could not be read: the page says how many."""

    def __init__(self) -> None:
        self.unreadable = 0

    def of(self, data: bytes | None) -> Thumbnail | None:
        """A thumbnail of an encoded picture; None, counted, for what is none or is damaged."""
        if data is None:
            self.unreadable += 1
            return None
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.draft("RGB", (SIDE, SIDE))  # a JPEG is decoded at an eighth of its size where that suffices
                small = _as_rgb(image)
        except READ_ERRORS:
            self.unreadable += 1
            return None
        is_tiny = max(small.size) <= TINY
        if not is_tiny:
            small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "webp", lossless=is_tiny, quality=QUALITY, method=6)
        return Thumbnail(f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", *small.size)


def read_where(where: str, roots: Sequence[Path]) -> bytes | None:
    """The bytes of `FOLDER/000000.tar/000000042.0.jpg` or of a file's path, from the first root that has it."""
    for root in roots:
        path = root / where
        if path.is_file():
            return path.read_bytes()
        if path.parent.suffix == ".tar" and path.parent.is_file():
            with tarfile.open(path.parent) as tar:
                if path.name in tar.getnames() and (member := tar.extractfile(path.name)):
                    return member.read()
    return None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits: from its darkest to its brightest
        values = np.asarray(image, dtype=np.float64)
        low, high = values.min(), values.max()
        return Image.fromarray(((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands():
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.convert("RGBA").getchannel("A"))
        return flat
    return image.convert("RGB")
