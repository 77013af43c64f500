"""The denoising loss, its weights by noise level, and what each step draws: all functions of the seed and the step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from stablerep import ops
from stablerep.adapt.latents import Captions, Latents, Model
from stablerep.config import UserError
from stablerep.engines.conditioning import Conditioning
from stablerep.engines.torch import Unet

LOOKS = 64  # denoised pictures, at least, in a look at the photos held out
LOOK_INDICES = 2**31  # of their noise; training's are twice the step, and one more
LOOK_BATCH = 16


class Denoiser:
    """A UNet under its model's own noise schedule."""

    def __init__(self, model: Model, min_snr_gamma: float) -> None:
        """
        Raises:
            UserError: a model that predicts something else than noise, velocity or the picture.
        """
        self._unet, self._gamma = Unet(model.unet), min_snr_gamma
        self._schedule = DDPMScheduler.from_config(model.scheduler_config)
        self._predicts = self._schedule.config.prediction_type
        if self._predicts not in ("epsilon", "v_prediction", "sample"):
            raise UserError(f"--model predicts {self._predicts!r}, which is not known")

    @property
    def num_timesteps(self) -> int:
        return self._schedule.config.num_train_timesteps

    def losses(
        self,
        clean: Tensor,  # [B, C, h, w]
        noise: Tensor,  # the same shape
        timesteps: Tensor,  # [B] int64
        conditioning: Conditioning,  # B rows
    ) -> Tensor:  # [B] float32, the mean squared error of each picture, unweighted
        noisy = self._schedule.add_noise(clean, noise, timesteps)
        if clean.device.type == "cpu":
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        target = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: self._schedule.get_velocity(clean, noise, timesteps),
            "sample": lambda: clean,
        }[self._predicts]()
        predicted = self._unet(noisy, timesteps, **conditioning.inputs)
        return (predicted.float() - target).square().flatten(1).mean(1)

    def weights(self, timesteps: Tensor) -> Tensor:  # [B]
        """Of min-SNR weighting (arXiv 2303.09556): min(SNR, gamma), in terms of the target's error."""
        if not self._gamma:
            return torch.ones_like(timesteps, dtype=torch.float32)
        snr = compute_snr(self._schedule, timesteps)
        clipped = snr.clamp(max=self._gamma)
        return {"epsilon": clipped / snr, "v_prediction": clipped / (snr + 1), "sample": clipped}[self._predicts]


@dataclass(frozen=True)
class Draw:
    """A step's batch: which photos, which view of each, at which noise level, with or without its caption."""

    photos: Tensor  # [B] int64
    views: Tensor  # [B] int64
    timesteps: Tensor  # [B] int64
    is_bare: list[bool]  # [B]


def draw_batch(
    step: int, batch_size: int, seed: int, photos: int, views: int, num_timesteps: int, dropout: float, stream: int = 0
) -> Draw:
    """Photos go round in an order that each epoch shuffles anew; timesteps are stratified over the batch."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    epochs = {position // photos for position in positions}
    orders = {epoch: np.random.default_rng((seed, stream, epoch)).permutation(photos) for epoch in epochs}
    chosen = [orders[position // photos][position % photos] for position in positions]
    drawn = np.random.default_rng((seed, stream, step, 1))
    strata = (drawn.permutation(batch_size) + drawn.random(batch_size)) / batch_size
    return Draw(
        torch.tensor(np.array(chosen)),
        torch.from_numpy(drawn.integers(views, size=batch_size)),
        torch.from_numpy((strata * num_timesteps).astype(np.int64)),
        (drawn.random(batch_size) < dropout).tolist(),
    )


def batch_losses(
    denoiser: Denoiser,
    latents: Latents,
    captions: Captions,
    draw: Draw,
    seed: int,
    step: int,
    first_id: int,
    device: torch.device,
) -> Tensor:  # [B], weighted
    """The losses of a step. first_id is that of the first picture: its noise is another for each id and step."""
    mean, deviation = (each[draw.photos, draw.views].to(device) for each in (latents.mean, latents.deviation))
    shape = tuple(mean.shape[1:])
    steps = torch.full_like(draw.photos, 2 * step)
    # Twice the same photo in a batch is twice another noise.
    ids = first_id + draw.photos + (torch.arange(len(draw.photos)) << 32)
    clean = mean + deviation * ops.philox_normal(seed, ids, steps, shape, device)
    noise = ops.philox_normal(seed, ids, steps + 1, shape, device)
    texts = [
        "" if bare else latents.captions[photo] for photo, bare in zip(draw.photos.tolist(), draw.is_bare, strict=True)
    ]
    timesteps = draw.timesteps.to(device)
    return denoiser.losses(clean, noise, timesteps, captions(texts)) * denoiser.weights(timesteps)


@torch.no_grad()
def held_out_loss(denoiser: Denoiser, latents: Latents, captions: Captions, seed: int, device: torch.device) -> float:
    """The weighted loss of photos at noise levels and with noise that are the same at each look."""
    levels = max(8, -(-LOOKS // len(latents)))
    photos = torch.arange(len(latents)).repeat_interleave(levels)
    indices = torch.arange(levels).repeat(len(latents))
    timesteps = ((indices + 0.5) / levels * denoiser.num_timesteps).long()
    total = 0.0
    for rows in torch.arange(len(photos)).split(LOOK_BATCH):
        clean = latents.mean[photos[rows], 0].to(device)
        noise = ops.philox_normal(seed, photos[rows], LOOK_INDICES + indices[rows], tuple(clean.shape[1:]), device)
        conditioning = captions([latents.captions[photo] for photo in photos[rows].tolist()])
        levels_here = timesteps[rows].to(device)
        losses = denoiser.losses(clean, noise, levels_here, conditioning) * denoiser.weights(levels_here)
        total += losses.sum().item()
    return total / len(photos)
