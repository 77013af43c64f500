"""Pictures of more than 8 bits a channel: which of their values becomes black, and which white."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stablerep.config import UserError

if TYPE_CHECKING:  # 0.2 s: flags are read without it
    import numpy as np
    from numpy.typing import NDArray

PERCENTILES = (0.1, 99.9)  # a hot pixel, or a dead one, must not set the range
MEASURED_PICTURES = 256
MEASURED_PIXELS = 65_536  # of each


@dataclass(frozen=True)
class BitRange:
    """Values at or below low become 0, at or above high 255, linearly between."""

    low: float
    high: float

    def to_uint8(self, pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Round to the nearest of 256 levels; NaN becomes 0."""
        import numpy as np

        scaled = (pixels.astype(np.float64) - self.low) * (255 / (self.high - self.low))
        return np.rint(np.nan_to_num(scaled, nan=0.0).clip(0, 255)).astype(np.uint8)


FULL_16_BITS = BitRange(0.0, 65_535.0)


def parse_bit_range(text: str) -> BitRange | None:
    """LOW:HIGH, or None for `auto` and `full`, which need to see pictures.

    Raises:
        UserError: none of these.
    """
    if text in ("auto", "full"):
        return None
    low, colon, high = text.partition(":")
    try:
        found = BitRange(float(low), float(high))
    except ValueError:
        found = BitRange(math.nan, math.nan)
    if not colon or not -math.inf < found.low < found.high < math.inf:
        raise UserError(f"--bit-range {text}: give auto, full or LOW:HIGH, for instance 0:4095 for a camera of 12 bits")
    return found


def full_range(pixels: NDArray[np.generic]) -> BitRange:
    """Of unsigned integers all values, of floating point numbers 0 to 1.

    Raises:
        UserError: signed integers, which have no agreed white.
    """
    if pixels.dtype.kind == "f":
        return BitRange(0.0, 1.0)
    if pixels.dtype.kind == "u":
        return BitRange(0.0, float(2 ** (8 * pixels.dtype.itemsize) - 1))
    raise UserError(f"--bit-range full: pictures of {pixels.dtype} have no full range; give LOW:HIGH")


def measure_bit_range(pictures: Sequence[NDArray[np.generic]]) -> BitRange:
    """The range between the 0.1st and the 99.9th percentile of all their pixels together."""
    import numpy as np

    values = np.concatenate([_some(pixels) for pixels in pictures])
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, PERCENTILES) if len(finite) else (0.0, 1.0)
    return BitRange(float(low), float(high) if high > low else float(low) + 1.0)


def _some(pixels: NDArray[np.generic]) -> NDArray[np.float64]:
    import numpy as np

    flat = pixels.reshape(-1)
    return flat[:: -(-len(flat) // MEASURED_PIXELS)].astype(np.float64)
