"""The reference engine: the pipeline's own modules, channels last, attention through torch's fused kernel (SDPA)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stablerep.generate.conditioning import Conditioning
from stablerep.generate.pipeline import Pipeline


@dataclass(frozen=True)
class TorchEngine:
    pipeline: Pipeline
    name: str = "torch"

    def unet(self, latents: Tensor, timestep: Tensor, told: Conditioning) -> Tensor:
        added = {name: value for name, value in told.inputs.items() if name in ("text_embeds", "time_ids")}
        return self.pipeline.unet(
            latents,
            timestep,
            told.text,
            timestep_cond=told.inputs.get("timestep_cond"),
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
