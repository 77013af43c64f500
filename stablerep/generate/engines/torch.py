"""The reference engine: the pipeline's own modules, channels last, attention through torch's fused kernel (SDPA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from stablerep.generate.pipeline import Pipeline


@dataclass(frozen=True)
class TorchEngine:
    pipeline: Pipeline
    name: str = "torch"

    def unet(
        self, latents: Tensor, timestep: Tensor, text: Tensor, added: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        return self.pipeline.unet(latents, timestep, text, added_cond_kwargs=added, return_dict=False)[0]

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
