"""One batch from tensors: the denoising loop with the noise that pictures start from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from stablerep import ops
from stablerep.engines import Engine
from stablerep.engines.conditioning import Conditioning
from stablerep.generate.config import is_guided
from stablerep.generate.cuda import upload_floats
from stablerep.generate.denoise import BatchInputs, Schedule, denoise, picture_noise


def sample(*batch: Any, image_size: int | None = None, **settings: Any) -> Tensor:  # [B, H, W, 3] uint8
    """sample_decoded, and to_pixels."""
    return ops.to_pixels(sample_decoded(*batch, **settings), image_size)


def sample_decoded(
    engine: Engine,
    schedule: Schedule,
    conditioning: Conditioning,  # B rows
    negative: Conditioning,  # 1 row or B
    prompt_ids: Tensor,  # [B] int64
    indices: Tensor,  # [B] int64, which picture of its prompt
    *,
    latent_shape: tuple[int, int, int],
    guidance_scale: float | Sequence[float],  # one, or [B]
    seed: int | Sequence[int],  # one, or [B]
    guidance_rescale: float = 0.0,
) -> Tensor:  # [B, 3, H, W] on the device of the conditioning, as the VAE leaves it, about -1..1
    device, one = conditioning.device, isinstance(guidance_scale, int | float)
    scales = [guidance_scale] * len(conditioning) if one else guidance_scale
    draw = partial(picture_noise, seed, prompt_ids, indices, latent_shape, device)
    inputs = BatchInputs(draw(0), upload_floats(scales, device), conditioning, negative)
    return denoise(engine, schedule, inputs, draw, guided=is_guided(scales), guidance_rescale=guidance_rescale)
