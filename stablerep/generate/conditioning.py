"""What a UNet is told besides latents and timestep, under the names that its engines' inputs have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stablerep.generate.cuda import upload


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


def guidance_embedding(scales: Sequence[float], width: int, told: Conditioning) -> Tensor:
    """timestep_cond [B, width] of a UNet that was distilled with guidance as an input (Meng et al. 2023, LCM).

    The sines and cosines of 1000 (scale - 1), as diffusers' get_guidance_scale_embedding.
    """
    if len(set(scales)) == 1:  # filled on the device: no copy
        weight = torch.full((len(scales),), scales[0] - 1, dtype=torch.float32, device=told.device)
    else:
        weight = upload(torch.tensor([scale - 1 for scale in scales], dtype=torch.float32), told.device)
    half = width // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=told.device) * (-math.log(10000) / (half - 1))
    )
    angles = (weight * 1000)[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2)).to(told.dtype)
