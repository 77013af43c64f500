"""The DALI pipeline: encoded pictures and drawn numbers in, augmented and normalised pictures out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.pipeline import Pipeline

from stablerep.data.augment import ASPECT

PREFETCH = 2  # batches DALI works on ahead of the one handed out

# Encoded pictures, then the fields of Augmentation in their order; each one list or array of B.
BatchInputs = tuple[Any, ...]


def augmenting_pipeline(
    source: Callable[[], BatchInputs],
    *,
    batch_size: int,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    num_threads: int,
    device_id: int | None,
) -> Pipeline:  # gives float32 [B, image_size, image_size, 3]
    """Random resized crop, colour jitter, grey, blur, flip and normalisation; on the GPU device_id, or on the CPU.

    Rows of a picture stay in memory order (HWC): seen as [B, 3, S, S] that is torch's channels_last.
    """

    @pipeline_def(
        batch_size=batch_size, num_threads=num_threads, device_id=device_id, prefetch_queue_depth=PREFETCH, seed=0
    )
    def build() -> Any:
        encoded, area, place, twist, hue, sigma, window, mirror = fn.external_source(source, num_outputs=8, batch=True)
        start, end = _crop(fn.peek_image_shape(encoded, dtype=types.FLOAT), area, place)
        images = fn.decoders.image(encoded, device="cpu" if device_id is None else "mixed")
        images = fn.resize(
            images, size=(image_size, image_size), roi_start=start, roi_end=end, interp_type=types.INTERP_LINEAR
        )
        # Grey is saturation 0, so jitter and grey are one affine map of the colours: one pass over the pixels.
        images = fn.color_twist(images, brightness=twist[0], contrast=twist[1], saturation=twist[2], hue=hue)
        images = fn.gaussian_blur(images, sigma=sigma, window_size=window)
        return fn.crop_mirror_normalize(
            images,
            mirror=mirror,
            mean=[255 * value for value in mean],
            std=[255 * value for value in std],
            output_layout="HWC",
            dtype=types.FLOAT,
        )

    return build()


def first_damaged(pictures: Sequence[NDArray[np.uint8]]) -> int | None:
    """Which picture DALI cannot decode; it does not say so itself."""
    at = -1

    def next_picture() -> list[NDArray[np.uint8]]:
        nonlocal at
        at += 1
        if at == len(pictures):
            raise StopIteration
        return [pictures[at]]

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def build() -> Any:
        return fn.decoders.image(fn.external_source(next_picture, batch=True))

    pipeline = build()
    try:
        while True:
            pipeline.run()
    except StopIteration:
        return None
    except RuntimeError:
        return at


def _crop(shape: Any, area: Any, place: Any) -> tuple[Any, Any]:
    """The corners (y, x) in pixels of a crop that keeps `area` of the picture.

    torchvision draws area and aspect ratio until both fit, up to ten times. Here the ratio is drawn (log-uniform) from
    those that fit the area, so the area is uniform and no draw is lost. A long picture may allow none: then the crop
    is cut to its sides.
    """
    height, width = shape[0], shape[1]
    lowest = math.max(ASPECT[0], area * width / height)
    highest = math.max(lowest, math.min(ASPECT[1], width / (area * height)))
    ratio = lowest * math.pow(highest / lowest, place[0])
    crop_height = math.min(height, math.sqrt(area * height * width / ratio))
    crop_width = math.min(width, math.sqrt(area * height * width * ratio))
    top, left = place[1] * (height - crop_height), place[2] * (width - crop_width)
    return fn.stack(top, left), fn.stack(top + crop_height, left + crop_width)
