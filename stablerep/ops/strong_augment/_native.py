"""Calls of csrc/augment.cpp and csrc/augment.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stablerep import native
from stablerep.ops import impls
from stablerep.ops.strong_augment.draws import WORDS
from stablerep.ops.strong_augment.spec import AugmentSpec

MOST_SCRATCH_BYTES = 256 * 2**20  # of a GPU; more pictures than fit are done one group after the other


def draw(images: Sequence[Tensor], keys: Tensor, spec: AugmentSpec) -> Tensor:
    """[B, WORDS] int32: AugmentParams.unpack reads them."""
    pictures, _table = _pictures(images)
    keys = keys.contiguous()
    params = torch.empty((len(keys), WORDS), dtype=torch.int32, device=keys.device)
    arguments = (pictures, spec.numbers(), spec.seed, keys.data_ptr(), params.data_ptr())
    if keys.is_cuda:
        native.module().augment_draw_cuda(*arguments, *_device_and_stream(keys.device))
    else:
        native.module().augment_draw(*arguments)
    return params


def apply(
    images: Sequence[Tensor],
    params: Tensor,
    spec: AugmentSpec,
    memory_format: torch.memory_format = torch.contiguous_format,
    threads: int = 1,
) -> Tensor:
    """params [B, WORDS] int32, contiguous, with boxes that lie within their pictures."""
    pictures, _table = _pictures(images)
    out = torch.empty(
        (len(params), 3, spec.image_size, spec.image_size),
        dtype=spec.dtype,
        device=params.device,
        memory_format=memory_format,
    )
    channels_last = memory_format == torch.channels_last
    arguments = (
        pictures,
        spec.numbers(),
        params.data_ptr(),
        out.data_ptr(),
        impls.DTYPES.index(spec.dtype),
        channels_last,
    )
    module = native.module()
    if not params.is_cuda:
        module.augment_apply(*arguments, threads)
        return out
    one = module.augment_scratch_bytes(pictures, spec.numbers(), 1)
    scratch = torch.empty(max(one, min(one * len(params), MOST_SCRATCH_BYTES)), dtype=torch.uint8, device=params.device)
    module.augment_apply_cuda(*arguments, scratch.data_ptr(), scratch.numel(), *_device_and_stream(params.device))
    return out


def _pictures(images: Sequence[Tensor]) -> tuple[Any, Tensor | None]:
    """Where the pictures lie: one tensor [B, H, W, 3], or B of [H, W, 3] and a table that must outlive the call."""
    pictures = native.module().Pictures
    if images[0].ndim == 4:
        number, height, width, _ = images[0].shape
        return pictures(0, images[0].data_ptr(), number, height, width), None
    rows = [(image.data_ptr(), image.shape[0], image.shape[1]) for image in images]
    table = torch.tensor(rows, dtype=torch.int64)
    if images[0].is_cuda:
        table = table.pin_memory().to(images[0].device, non_blocking=True)
    height, width = max(row[1] for row in rows), max(row[2] for row in rows)
    return pictures(table.data_ptr(), 0, len(rows), height, width), table


def _device_and_stream(device: torch.device) -> tuple[int, int]:
    index = torch.cuda.current_device() if device.index is None else device.index
    return index, torch.cuda.current_stream(device).cuda_stream
