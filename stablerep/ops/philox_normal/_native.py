"""Calls of csrc/noise.cpp and csrc/noise.cu."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stablerep import native


def philox_normal(seed: int, prompt_ids: Tensor, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    prompt_ids, indices = prompt_ids.contiguous(), indices.contiguous()
    out = torch.empty((len(prompt_ids), *shape), dtype=torch.float32, device=prompt_ids.device)
    sizes = len(prompt_ids), math.prod(shape)
    if out.is_cuda:
        stream = torch.cuda.current_stream(out.device).cuda_stream
        native.module().philox_normal_cuda(
            seed, prompt_ids.data_ptr(), indices.data_ptr(), *sizes, out.data_ptr(), out.device.index, stream
        )
    else:
        native.module().philox_normal(
            seed, prompt_ids.data_ptr(), indices.data_ptr(), *sizes, out.data_ptr(), torch.get_num_threads()
        )
    return out
