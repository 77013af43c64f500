"""One step of a linear solver with guidance, as it is written on a whiteboard."""

from __future__ import annotations

import torch
from torch import Tensor


def guided_step(
    latents: Tensor,  # [B, ...]
    output: Tensor,  # [2B, ...] without and with text, or [B, ...]
    previous_x0: Tensor,  # [B, ...]
    table: Tensor,  # [S, 5]
    step: Tensor,  # [] int64
    guidance_scale: Tensor,  # [] or [B]
) -> tuple[Tensor, Tensor]:
    """In float32 (float64 for float64 latents) up to the rounding of both results to the latents' dtype."""
    exact = torch.promote_types(latents.dtype, torch.float32)
    x, predicted, before = latents.to(exact), output.to(exact), previous_x0.to(exact)
    row = table.to(exact).index_select(0, step.clamp(0, len(table) - 1).reshape(1))[0]
    a, b, c, d, e = row.where((step >= 0) & (step < len(table)), torch.nan)
    if len(output) != len(latents):
        without, with_text = predicted.chunk(2)
        scale = guidance_scale.to(exact).reshape(-1, *[1] * (latents.ndim - 1))
        predicted = torch.lerp(without, with_text, scale)
    x0 = a * x + b * predicted
    x = c * x + d * x0 + e * before.where(e != 0, 0)
    return x.to(latents.dtype), x0.to(latents.dtype)
