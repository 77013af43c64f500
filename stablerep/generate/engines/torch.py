"""The reference engine: the pipeline's own modules."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stablerep.generate.pipeline import Pipeline


@dataclass(frozen=True)
class TorchEngine:
    pipeline: Pipeline

    def unet(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return self.pipeline.unet(latents, timestep, text, return_dict=False)[0]

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
