"""From encoded bytes to the pixels that Pillow would show, EXIF applied: by DALI, whose pixels are Pillow's to the bit.

(tests/data/test_decode.py, for JPEG, PNG and WebP on the CPU.) What cannot be decoded comes as None.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stablerep.data.bit_range import FULL_16_BITS
from stablerep.data.encoded import Encoded
from stablerep.data.pixels import GIVEN_UP, PIL_ERRORS, as_colours, deep_pixels, is_deep, pixels_of

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

PREFETCH = 2  # batches DALI works on ahead of the one handed out
FEW_THREADS = 4  # below, nvJPEG decodes where there is a GPU
BLACK = np.frombuffer(b"P6 1 1 255\n\0\0\0", np.uint8)  # in the place of what is damaged

log = logging.getLogger("stablerep.data")


def decoded(
    batches: Iterable[Sequence[Encoded | None]], *, batch_size: int, num_threads: int, device: torch.device, deep: bool
) -> Iterator[list[Tensor | None]]:  # of each batch uint8 [H_i, W_i, 3]
    """Decode batches of at most batch_size pictures; one that is None, or cannot be decoded, is None.

    The tensors of a batch are good until the next one is asked for, as DALI uses its buffers again: on a GPU finish
    with them first.

    Args:
        deep: whether there may be pictures of 16 bits.
    """
    fed: deque[Sequence[Encoded | None]] = deque()
    source = iter(batches)
    pipeline = _pipeline(source, fed, batch_size, num_threads, device, deep)
    try:
        while True:
            (pictures,) = pipeline.run()
            batch = fed.popleft()
            tensors = [torch.from_dlpack(pictures[row]) for row in range(len(pictures))]
            yield [tensor if each else None for tensor, each in zip(tensors, batch, strict=True)]
    except StopIteration:
        return
    except RuntimeError:
        GIVEN_UP.append(pipeline)
        log.warning("DALI cannot decode a picture that looks whole; Pillow decodes from here on")
    for batch in chain(fed, source):
        yield [decode_one(each, device) if each else None for each in batch]


def decode_one(encoded: Encoded, device: torch.device) -> Tensor | None:  # [H, W, 3] uint8
    """One picture without DALI; None if it cannot be decoded."""
    try:
        pixels = deep_pixels(encoded.data) if is_deep(encoded.data) else pixels_of(encoded.data)
    except PIL_ERRORS:
        return None
    return torch.from_numpy(as_colours(pixels, encoded.range).copy()).to(device)


def _pipeline(
    batches: Iterator[Sequence[Encoded | None]],
    fed: deque[Sequence[Encoded | None]],
    batch_size: int,
    num_threads: int,
    device: torch.device,
    deep: bool,
) -> Pipeline:
    """What decodes batches; those that it was given and has not handed out are in fed."""
    from nvidia.dali import fn, pipeline_def, types  # 1 s: pictures that are painted need no DALI

    on_gpu = device.type == "cuda"
    # The GPU has a model to train: beside one, nvJPEG gives 3,400 to 4,400 pictures of 256 x 256 a second and slows
    # the step by a tenth; 16 threads of the CPU give 14,000 and slow nothing (H200, docs/performance.md).
    by_nvjpeg = on_gpu and num_threads < FEW_THREADS

    def feed() -> Any:
        batch = next(batches)  # StopIteration ends the pipeline
        fed.append(batch)
        data = [each.data if each else BLACK for each in batch]
        if not deep:
            return data
        ranges = [each.range if each else FULL_16_BITS for each in batch]
        low = [np.float32(each.low) for each in ranges]
        return data, low, [np.float32(255 / (each.high - each.low)) for each in ranges]

    @pipeline_def(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=(device.index or 0) if on_gpu else None,
        prefetch_queue_depth=PREFETCH,
        seed=0,
    )
    def build() -> Any:
        # fancy upsampling: on the GPU the pixels of the CPU, as near as nvJPEG comes
        options: dict[str, Any] = {"device": "mixed" if by_nvjpeg else "cpu", "jpeg_fancy_upsampling": True}
        if deep:
            encoded, low, scale = fn.external_source(feed, num_outputs=3, batch=True)
            values = fn.cast(fn.decoders.image(encoded, dtype=types.UINT16, **options), dtype=types.FLOAT)
            pixels = fn.cast((values - low) * scale, dtype=types.UINT8)  # saturates and rounds
        else:
            pixels = fn.decoders.image(fn.external_source(feed, batch=True), **options)
        return pixels.gpu() if on_gpu and not by_nvjpeg else pixels

    return build()
