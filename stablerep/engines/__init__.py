"""An engine replaces two calls, the UNet and the VAE decoder, and nothing else."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from stablerep.generate.conditioning import Conditioning


class Engine(Protocol):
    """Tensors in and out have the pipeline's dtype and device, but that decode takes any dtype."""

    @property
    def name(self) -> str:
        """torch, native, onnx or trt."""

    @property
    def why_not_capturable(self) -> str | None:
        """Why a CUDA graph cannot hold its calls, if it cannot."""

    def unet(self, latents: Tensor, timestep: Tensor, told: Conditioning) -> Tensor:
        """Predict from latents [B, C, h, w], timestep [] float32 and B rows of conditioning; same shape as latents."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as the sampler leaves them, [B, C, h, w], to pictures [B, 3, H, W], about -1..1."""

    def with_own_context(self) -> Engine:
        """The same engine for one CUDA graph, with working memory that no other call uses; itself if it keeps none."""
