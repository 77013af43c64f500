"""From text embeddings to uint8 pictures: the denoising loop that all engines share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stablerep import ops
from stablerep.generate.engines import Engine
from stablerep.generate.schedule import Schedule


@torch.inference_mode()
def sample(
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
    image_size: int | None = None,
) -> Tensor:  # [B, H, W, 3] uint8 on the device of text
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
    return _to_pixels(engine.decode(latents.to(text.dtype)), image_size)


def _to_pixels(images: Tensor, image_size: int | None) -> Tensor:
    """VAE output [B, 3, H, W] in -1..1 to uint8 [B, H, W, 3], the short side resized to image_size, then cropped."""
    images = images.float()
    if image_size is not None and images.shape[-2:] != (image_size, image_size):
        scale = image_size / min(images.shape[-2:])
        size = [max(image_size, round(side * scale)) for side in images.shape[-2:]]
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        top, left = ((side - image_size) // 2 for side in size)
        images = images[..., top : top + image_size, left : left + image_size]
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
