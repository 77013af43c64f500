"""Calls of csrc/to_pixels.cpp and csrc/to_pixels.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from stablerep import native
from stablerep.ops.to_pixels import reference

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/floats.h


def to_pixels(images: Tensor, image_size: int | None) -> Tensor:
    height, width = images.shape[-2:] if image_size is None else (image_size, image_size)
    out = torch.empty((len(images), height, width, 3), dtype=torch.uint8, device=images.device)
    _run(images, image_size, out, None)
    return out


def to_pixels_into(images: Tensor, image_size: int | None, out: Tensor, slots: Tensor) -> None:
    _run(images, image_size, out, slots.contiguous())


def _run(images: Tensor, image_size: int | None, out: Tensor, slots: Tensor | None) -> None:
    channels_last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
    if not channels_last:
        images = images.contiguous()
    height, width = images.shape[-2:]
    module = native.module()
    call = module.ToPixels(
        images.data_ptr(),
        out.data_ptr(),
        0 if slots is None else slots.data_ptr(),
        len(images),
        len(out),
        (height, width),
        reference.geometry(height, width, image_size),
        (out.shape[1], out.shape[2]),
        channels_last,
        DTYPES[images.dtype],
    )
    if images.is_cuda:
        stream = torch.cuda.current_stream(images.device).cuda_stream
        module.to_pixels_cuda(call, images.device.index, stream)
    else:
        module.to_pixels(call, torch.get_num_threads())
