"""The two modules of a pipeline that every engine runs, each with its inputs by name: all that they need of a model."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn


class Unet(nn.Module):
    """Inputs are latents, timestep and those of engines.conditioning.Conditioning."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        timestep_cond: Tensor | None = None,
    ) -> Tensor:
        added = None
        if text_embeds is not None:
            # The UNet joins it with float32 embeddings of time_ids. torch promotes by itself; in ONNX nothing does.
            added = {"text_embeds": text_embeds.float(), "time_ids": time_ids}
        return self.unet(
            latents, timestep, text, timestep_cond=timestep_cond, added_cond_kwargs=added, return_dict=False
        )[0]


class Decoder(nn.Module):
    """Only what decoding needs: the encoder half of the VAE is neither exported nor part of the identity."""

    mean: Tensor
    std: Tensor

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        config = vae.config
        self.scaling_factor: float = config.scaling_factor
        self.shift_factor: float = config.shift_factor or 0.0
        mean, std = config.latents_mean, config.latents_std
        self.normalised = mean is not None and std is not None
        if self.normalised:
            of_channel = [torch.tensor(each, dtype=vae.dtype, device=vae.device) for each in (mean, std)]
            self.register_buffer("mean", of_channel[0].reshape(1, -1, 1, 1), persistent=False)
            self.register_buffer("std", of_channel[1].reshape(1, -1, 1, 1), persistent=False)
        self.decoder = vae.decoder
        self.post_quant_conv = vae.post_quant_conv

    def forward(self, latents: Tensor) -> Tensor:
        if self.normalised:
            latents = latents * self.std / self.scaling_factor + self.mean
        else:
            latents = latents / self.scaling_factor
        if self.shift_factor:
            latents = latents + self.shift_factor
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))
