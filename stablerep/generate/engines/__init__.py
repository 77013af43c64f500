"""An engine replaces two calls, the UNet and the VAE decoder, and nothing else."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Engine(Protocol):
    def unet(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """Predict from latents [B, C, h, w], timestep [] float32 and text [B, T, D]; same shape as latents."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as the sampler leaves them, [B, C, h, w], to pictures [B, 3, H, W], about -1..1."""
