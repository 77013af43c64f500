"""From text embeddings to uint8 pictures: the denoising loop that all engines share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stablerep import ops
from stablerep.generate.engines import Engine
from stablerep.generate.schedule import Schedule


def sample(
    engine: Engine,
    schedule: Schedule,
    text: Tensor,  # [B, T, D]
    negative_text: Tensor,  # [1, T, D]
    prompt_ids: Tensor,  # [B] int64
    indices: Tensor,  # [B] int64, which picture of its prompt
    *,
    image_size: int | None = None,
    **settings: Any,  # as in sample_decoded
) -> Tensor:  # [B, H, W, 3] uint8 on the device of text
    """Paint one batch: sample_decoded, and to_pixels."""
    return ops.to_pixels(
        sample_decoded(engine, schedule, text, negative_text, prompt_ids, indices, **settings), image_size
    )


@torch.inference_mode()
def sample_decoded(
    engine: Engine,
    schedule: Schedule,
    text: Tensor,  # [B, T, D]
    negative_text: Tensor,  # [1, T, D]
    prompt_ids: Tensor,  # [B] int64
    indices: Tensor,  # [B] int64, which picture of its prompt
    *,
    latent_shape: tuple[int, int, int],
    guidance_scale: float,
    seed: int,
) -> Tensor:  # [B, 3, H, W] on the device of text, as the VAE leaves it, about -1..1
    """Paint one batch. A picture depends on (seed, prompt id, index), not on its neighbours in the batch.

    Guidance (Ho and Salimans 2022) runs as one batch of two; at scale 1 the unguided half is left out.
    """
    # Latents stay float32 through the loop, whatever the UNet computes in: their rounding would be most of the error.
    latents = ops.philox_normal(seed, prompt_ids, indices, latent_shape, device=text.device) * schedule.init_scale
    guided = guidance_scale != 1
    if guided:
        text = torch.cat([negative_text.expand_as(text), text])
    scale = torch.full((), guidance_scale, device=text.device)
    x0 = latents  # the first row of a table does not read it
    for step, timestep in zip(schedule.steps, schedule.timesteps, strict=True):
        told = latents.to(text.dtype)
        output = engine.unet(torch.cat([told, told]) if guided else told, timestep, text)
        latents, x0 = ops.guided_step(latents, output, x0, schedule.table, step, scale)
    return engine.decode(latents.to(text.dtype))
