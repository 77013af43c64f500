"""An engine replaces two calls, the UNet and the VAE decoder, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the commands' --help need not load torch
    from torch import Tensor

    from stablerep.engines.conditioning import Conditioning

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


class Engine(Protocol):
    """Tensors in and out have the pipeline's dtype and device, but that decode takes any dtype."""

    @property
    def name(self) -> str:
        """torch, native, onnx or trt."""

    @property
    def why_not_capturable(self) -> str | None:
        """Why a CUDA graph cannot hold its calls; None if it can."""

    def unet(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict from latents [B, C, h, w], timestep [] float32 and B rows of conditioning; same shape as latents."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as the denoising loop leaves them, [B, C, h, w], to pictures [B, 3, H, W], about -1..1."""

    def with_own_context(self) -> Engine:
        """The same engine for one CUDA graph, with working memory that no other call uses; itself if it keeps none."""


class PipelineModules(Protocol):
    """What engines need of an open pipeline (generate.pipeline.Pipeline)."""

    @property
    def unet(self) -> UNet2DConditionModel: ...

    @property
    def vae(self) -> AutoencoderKL: ...

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...

    def encode(self, prompts: list[str], /) -> Conditioning: ...

    def with_guidance(self, conditioning: Conditioning, scales: Sequence[float], /) -> Conditioning: ...
