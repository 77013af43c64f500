"""Calls of csrc/guided_step.cpp and csrc/guided_step.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from stablerep import native

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/floats.h


def guided_step(
    latents: Tensor, output: Tensor, previous_x0: Tensor, table: Tensor, step: Tensor, guidance_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """latents, output and previous_x0 lie in one memory layout, without gaps."""
    table, guidance_scale = table.contiguous(), guidance_scale.contiguous()
    updated, x0 = torch.empty_like(latents), torch.empty_like(latents)
    pictures = len(latents)
    module = native.module()
    call = module.GuidedStep(
        *(tensor.data_ptr() for tensor in (latents, output, previous_x0, table, step, guidance_scale, updated, x0)),
        pictures,
        latents.numel() // max(1, pictures),
        len(table),
        len(output) != pictures,
        guidance_scale.ndim == 1,
        DTYPES[latents.dtype],
        DTYPES[output.dtype],
    )
    if latents.is_cuda:
        stream = torch.cuda.current_stream(latents.device).cuda_stream
        module.guided_step_cuda(call, latents.device.index, stream)
    else:
        module.guided_step(call, torch.get_num_threads())
    return updated, x0
