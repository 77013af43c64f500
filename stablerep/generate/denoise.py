"""From noise and text embeddings to decoded pictures: the denoising loop that all engines share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stablerep import ops
from stablerep.engines import Engine
from stablerep.generate.conditioning import Conditioning
from stablerep.generate.diffusers_schedule import DiffusersSchedule
from stablerep.generate.guidance import guide
from stablerep.generate.schedulers import Schedule
from stablerep.generate.transfer import up


@torch.inference_mode()
def denoise(
    engine: Engine,
    schedule: Schedule | DiffusersSchedule,
    told: Conditioning,  # B rows
    negative: Conditioning,  # 1 row or B
    draw: Callable[[int], Tensor],  # number of the draw, from 0 -> noise [B, C, h, w] float32
    scale: Tensor,  # [B] float32
    guided: bool,
    guidance_rescale: float = 0.0,
) -> Tensor:  # [B, 3, H, W] on the device of told, as the VAE leaves it, about -1..1
    """The loop and the decoder. A picture depends on its own noise and text, not on its neighbours in the batch.

    Guidance (Ho and Salimans 2022) runs as one batch of two; unguided, the other half is left out. Asks the device
    nothing and, with a Schedule, brings nothing from the host.
    """
    # Latents stay float32 through the loop, whatever the UNet computes in: their rounding would be most of the error.
    # A model that takes guidance as an input (LCM) has it in told, and no unguided half.
    guided = guided and "timestep_cond" not in told.inputs
    both = negative.expand(len(told)).cat(told) if guided else told

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        rows = latents.to(told.dtype)
        return engine.unet(torch.cat([rows, rows]) if guided else rows, timestep, both)

    latents = draw(0) * schedule.init_scale
    if isinstance(schedule, DiffusersSchedule):

        def guided_prediction(latents: Tensor, timestep: Tensor) -> Tensor:
            output = predict(latents, timestep)
            return guide(output, scale, guidance_rescale) if guided else output.float()

        latents = schedule.denoise(guided_prediction, latents, draw)
    else:
        x0 = latents  # the first row of a table does not read it
        for step, timestep in zip(schedule.steps, schedule.timesteps, strict=True):
            output = predict(latents, timestep)
            if guided and guidance_rescale:
                output = guide(output, scale, guidance_rescale)  # [B, ...]: the fused step has no more to guide
            latents, x0 = ops.guided_step(latents, output, x0, schedule.table, step, scale)
    return engine.decode(latents)


def is_guided(guidance_scale: float | Sequence[float]) -> bool:
    """Whether any picture of a batch needs the unguided half: known on the host, so that nothing waits."""
    return any(
        scale != 1 for scale in ([guidance_scale] if isinstance(guidance_scale, int | float) else guidance_scale)
    )


def scales(guidance_scale: float | Sequence[float], batch: int, device: torch.device) -> Tensor:  # [B] float32
    if isinstance(guidance_scale, int | float):
        return torch.full((batch,), guidance_scale, device=device, dtype=torch.float32)
    if len(set(guidance_scale)) == 1:  # filled on the device: no copy
        return torch.full((batch,), guidance_scale[0], device=device, dtype=torch.float32)
    return up(torch.tensor(guidance_scale, dtype=torch.float32), device)
