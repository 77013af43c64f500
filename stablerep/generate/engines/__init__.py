"""An engine replaces two calls, the UNet and the VAE decoder, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Engine(Protocol):
    """Tensors in and out have the pipeline's dtype and device."""

    @property
    def name(self) -> str:
        """torch, onnx or trt."""

    def unet(
        self, latents: Tensor, timestep: Tensor, text: Tensor, added: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Predict from latents [B, C, h, w], timestep [] float32 and text [B, T, D]; same shape as latents.

        added holds what a UNet with added conditions (SDXL) wants besides: text_embeds [B, E] and time_ids [B, 6].
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as the sampler leaves them, [B, C, h, w], to pictures [B, 3, H, W], about -1..1."""
