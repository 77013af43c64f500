"""The DALI pipeline: encoded pictures in, decoded ones out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import Pipeline

PREFETCH = 2  # batches DALI works on ahead of the one handed out


def decoding_pipeline(
    source: Callable[[], list[NDArray[np.uint8]]], *, batch_size: int, num_threads: int, device_id: int | None
) -> Pipeline:  # gives uint8 [H_i, W_i, 3], on the GPU device_id or on the CPU
    @pipeline_def(
        batch_size=batch_size, num_threads=num_threads, device_id=device_id, prefetch_queue_depth=PREFETCH, seed=0
    )
    def build() -> Any:
        encoded = fn.external_source(source, batch=True)
        return fn.decoders.image(encoded, device="cpu" if device_id is None else "mixed")

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
