"""One batch from tensors: the sampler's loop with the noise that pictures start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stablerep import ops
from stablerep.engines import Engine
from stablerep.generate.conditioning import Conditioning
from stablerep.generate.denoise import denoise, is_guided, scales
from stablerep.generate.diffusers_schedule import DiffusersSchedule
from stablerep.generate.noise import picture_noise
from stablerep.generate.schedulers import Schedule


def sample(*batch: Any, image_size: int | None = None, **settings: Any) -> Tensor:  # [B, H, W, 3] uint8
    """sample_decoded, and to_pixels."""
    return ops.to_pixels(sample_decoded(*batch, **settings), image_size)


def sample_decoded(
    engine: Engine,
    schedule: Schedule | DiffusersSchedule,
    told: Conditioning,  # B rows
    negative: Conditioning,  # 1 row or B
    prompt_ids: Tensor,  # [B] int64
    indices: Tensor,  # [B] int64, which picture of its prompt
    *,
    latent_shape: tuple[int, int, int],
    guidance_scale: float | Sequence[float],  # one, or [B]
    seed: int | Sequence[int],  # one, or [B]
    guidance_rescale: float = 0.0,
) -> Tensor:  # [B, 3, H, W] on the device of told, as the VAE leaves it, about -1..1
    def draw(number: int) -> Tensor:
        return picture_noise(seed, prompt_ids, indices, latent_shape, told.device, draw=number)

    scale = scales(guidance_scale, len(told), told.device)
    return denoise(engine, schedule, told, negative, draw, scale, is_guided(guidance_scale), guidance_rescale)
