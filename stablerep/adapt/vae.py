"""The VAE of a small model learns to draw photos of another kind, before the UNet does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stablerep import ops
from stablerep.adapt import checkpoint
from stablerep.adapt.config import AdaptConfig
from stablerep.adapt.denoising import draw_batch
from stablerep.adapt.latents import as_input
from stablerep.runlog import progress

CHECKPOINT = "vae.pt"
LEARNING_RATE = 1e-3
KL_WEIGHT = 1e-5  # of the posterior's distance to normal noise, a mean over latents
STREAM = 1  # of draws; the UNet's is 0


def train_vae(
    vae: Any,
    pictures: Tensor,  # uint8 [N, V, 3, H, W]
    config: AdaptConfig,
    device: torch.device,
    stopped: Callable[[], bool],
    out: Path | None,
) -> bool:  # whether it was not stopped before its end
    """Train it to draw the pictures again, and scale its latents to a deviation of 1, as the UNet wants them.

    Its checkpoint in `out` is gone on from, and stays as its result; without `out` nothing is written.
    """
    vae.requires_grad_(True)
    weights = dict(vae.named_parameters())
    optimiser = torch.optim.AdamW(weights.values(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    path = None if out is None else out / CHECKPOINT
    first = 0 if path is None else checkpoint.restore(path, weights, optimiser, device).step
    steps, count = config.vae_steps, config.batch_size
    with progress(f"adapt {config.out.name}: VAE", steps * count, "photos", start=first * count) as bar:
        for step in range(first, steps):
            draw = draw_batch(step, count, config.seed, len(pictures), pictures.shape[1], 1, 0.0, STREAM)
            pixels = as_input(pictures[draw.photos, draw.views]).to(device)
            posterior = vae.encode(pixels).latent_dist
            ids = draw.photos + (torch.arange(count) << 32)
            shape = tuple(posterior.mean.shape[1:])
            noise = ops.philox_normal(config.seed + 1, ids, torch.full_like(ids, step), shape, device)
            drawn = vae.decode(posterior.mean + posterior.std * noise).sample
            kl = (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean() / 2
            loss = F.l1_loss(drawn, pixels) + F.mse_loss(drawn, pixels) + KL_WEIGHT * kl
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * checkpoint.rate_at(step, steps, config.warmup)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            done = step + 1
            if done % config.log_every == 0 or done == steps:
                bar.update(done * count, f"loss {loss.item():.4f}")
            leaves = stopped()
            if path is not None and (done % config.checkpoint_every == 0 or done == steps or leaves):
                checkpoint.save(path, checkpoint.Progress(done), weights, optimiser)
            if leaves and done < steps:
                return False
    vae.requires_grad_(False)
    with torch.no_grad():
        means = [vae.encode(as_input(each[:1]).to(device)).latent_dist.mean for each in pictures]
    vae.register_to_config(
        scaling_factor=1 / torch.cat(means).std().item(), shift_factor=None, latents_mean=None, latents_std=None
    )
    return True
