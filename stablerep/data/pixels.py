"""What Pillow shows of a picture, with EXIF's orientation applied, and the values of those with more than 8 bits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stablerep.config import UserError
from stablerep.data.bit_range import BitRange, full_range
from stablerep.data.integrity import is_deep_png

GIVEN_UP: list[Any] = []  # pipelines of DALI: taking one down after an error may take the process with it
PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def pixels_of(data: NDArray[np.uint8]) -> NDArray[np.generic]:  # [H, W, 3] uint8, or [H, W] of a wider type
    """What Pillow shows, upright.

    Raises:
        one of PIL_ERRORS: it cannot.
    """
    if data[4:8].tobytes() == b"ftyp":
        _register_heif()
    with Image.open(io.BytesIO(data.data)) as photo:
        upright = ImageOps.exif_transpose(photo)
        return np.asarray(upright if upright.mode.startswith(("I", "F")) else upright.convert("RGB"))


def deep_pixels(data: NDArray[np.uint8]) -> NDArray[np.generic]:  # [H, W] or [H, W, 3]
    """The values of a picture of more than 8 bits.

    Raises:
        one of PIL_ERRORS: it is damaged.
    """
    pixels = pixels_of(data)
    # Of three colours of 16 bits Pillow shows 8. A whole file alone may go to DALI.
    return _sixteen_bits(data) if pixels.dtype == np.uint8 else pixels


def is_deep(data: NDArray[np.uint8] | None) -> bool:
    """Whether this is a PNG or TIFF of more than 8 bits a channel."""
    if data is None or is_deep_png(data):
        return data is not None
    if not _is_tiff(data):
        return False
    try:
        with Image.open(io.BytesIO(data.data)) as photo:
            return photo.mode.startswith(("I", "F")) or is_deep_tiff(data)
    except PIL_ERRORS:
        return False


def is_deep_tiff(data: NDArray[np.uint8]) -> bool:
    """Whether this is a TIFF of 16-bit integers, grey or colour, which DALI reads and Pillow does not of colours.

    Raises:
        one of PIL_ERRORS: it is damaged.
    """
    if not _is_tiff(data):
        return False
    with Image.open(io.BytesIO(data.data)) as photo:
        tags = getattr(photo, "tag_v2", {})
        bits, is_unsigned = tags.get(258, (1,)), tags.get(339, (1,))
        photometric = tags.get(262, 1)
    return set(bits) == {16} and set(is_unsigned) == {1} and photometric in (1, 2)


def as_ppm(pixels: NDArray[np.generic], bit_range: BitRange | None) -> NDArray[np.uint8]:
    """A picture as DALI only has to copy it."""
    colours = as_colours(pixels, bit_range or full_range(pixels))
    height, width, _ = colours.shape
    return np.concatenate([np.frombuffer(f"P6 {width} {height} 255\n".encode(), np.uint8), colours.reshape(-1)])


def as_colours(pixels: NDArray[np.generic], bit_range: BitRange) -> NDArray[np.uint8]:  # [H, W, 3]
    """Colours of 8 bits as they are; others by their range, grey as three equal channels."""
    shades = np.asarray(pixels, np.uint8) if pixels.dtype == np.uint8 else bit_range.to_uint8(pixels)
    return shades if shades.shape[2:] == (3,) else np.repeat(shades.reshape(*shades.shape[:2], 1), 3, axis=-1)


def _is_tiff(data: NDArray[np.uint8]) -> bool:
    return data[:4].tobytes().startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))


def _sixteen_bits(data: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The values of a whole PNG or TIFF of 16 bits a channel; of colours Pillow knows 8.

    Raises:
        UserError: DALI cannot decode it; what it is asked after that may end the process.
    """
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def build() -> Any:
        encoded = fn.external_source(lambda: [data], batch=True)
        return fn.decoders.image(encoded, dtype=types.UINT16, output_type=types.ANY_DATA)

    pipeline = build()
    try:
        (pictures,) = pipeline.run()
    except RuntimeError as error:
        GIVEN_UP.append(pipeline)
        raise UserError(
            "--data: DALI cannot decode a picture of 16 bits that looks whole; install nvidia-dali-cuda130 "
            "again, or convert such pictures to 8 bits"
        ) from error
    return np.array(pictures[0])


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return  # Pillow reads AVIF by itself; of HEIC the index has said what to install
    register_heif_opener()
