"""What a UNet takes besides latents and timestep, under the names that its engines' inputs have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Tensors by name, each with a row a picture, all of one dtype and device.

    text [B, T, D] is always there. SDXL has besides text_embeds [B, E] (the pooled text) and time_ids [B, 6] (original
    size, crop, target size); a model that takes guidance as an input (LCM) has timestep_cond [B, W].
    """

    inputs: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, rows: Tensor | slice) -> Conditioning:
        return Conditioning({name: value[rows] for name, value in self.inputs.items()})

    @property
    def text(self) -> Tensor:
        return self.inputs["text"]

    @property
    def dtype(self) -> torch.dtype:
        return self.text.dtype

    @property
    def device(self) -> torch.device:
        return self.text.device

    def expand(self, rows: int) -> Conditioning:
        """One row as so many, without a copy; so many rows as they are."""
        return Conditioning({name: value.expand(rows, *value.shape[1:]) for name, value in self.inputs.items()})

    def cat(self, other: Conditioning) -> Conditioning:
        """The rows of both, these first."""
        return Conditioning({name: torch.cat([value, other.inputs[name]]) for name, value in self.inputs.items()})


def guidance_embedding(weight: Tensor, width: int) -> Tensor:  # [B] float32 to [B, width] float32
    """timestep_cond of a UNet that was distilled with guidance as an input (Meng et al. 2023, LCM).

    weight is the guidance scale less 1; sines and cosines of 1000 weight, as diffusers' get_guidance_scale_embedding.
    """
    half = width // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=weight.device) * (-math.log(10000) / (half - 1))
    )
    angles = (weight * 1000)[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))
