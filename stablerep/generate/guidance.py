"""Classifier-free guidance as plain tensors, for what the fused step (ops.guided_step) does not hold."""

from __future__ import annotations

import torch
from torch import Tensor


def guide(
    output: Tensor,  # [2B, ...] of the UNet, without text and then with it
    guidance_scale: Tensor,  # [B] float32
    guidance_rescale: float = 0.0,
) -> Tensor:  # [B, ...] float32
    """Guidance (Ho and Salimans 2022), rescaled as by Lin et al. 2023 (arXiv 2305.08891, eq. 14-16).

    Guidance raises the output's standard deviation over a picture; rescaling leads it back to that of the output with
    text, by guidance_rescale (0: not at all, 1: wholly).
    """
    without, with_text = output.float().chunk(2)
    guided = torch.lerp(without, with_text, guidance_scale.reshape(-1, *[1] * (output.ndim - 1)))
    if guidance_rescale == 0:
        return guided
    of_picture = tuple(range(1, output.ndim))
    ratio = with_text.std(of_picture, keepdim=True) / guided.std(of_picture, keepdim=True)
    return guided * (1 + guidance_rescale * (ratio - 1))
