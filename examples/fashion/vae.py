"""Stage 1: the autoencoder. 32x32 pictures to 8x8 latents of 8 channels."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from examples.fashion.resumable import train

# A mean KL in nats a latent value. At this weight the posterior's own noise costs about half a grey level:
# what lies below is forgotten, which makes the latents easier to model; prints and fabric lie above.
KL_WEIGHT = 5e-3


def new_vae() -> AutoencoderKL:
    """0.8 M weights. Eight latent channels, because four smoothed prints and fabric away."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def train_vae(pixels: Tensor, *, steps: int, seed: int, device: torch.device, checkpoint: Path) -> AutoencoderKL:
    """Train on pixels [N, 3, 32, 32] uint8 and set the scaling factor to 1 / the latents' deviation."""
    torch.manual_seed(seed)
    vae = new_vae().to(device, memory_format=torch.channels_last)

    def loss_of(indices: Tensor, noise: torch.Generator) -> Tensor:
        images = to_signed(pixels[indices].to(device))
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample(noise)).sample
        return pixel_loss(decoded, images) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()

    train(
        vae,
        loss_of,
        num_photos=len(pixels),
        steps=steps,
        batch_size=32,
        learning_rate=2e-3,
        ema_decay=0.998,
        seed=seed,
        checkpoint=checkpoint,
        title="VAE",
    )
    mean, deviation = encode(vae, pixels[:10_000])
    total = (mean.var() + deviation.square().mean()).sqrt().item()
    vae.register_to_config(scaling_factor=1 / total)
    return vae


def pixel_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Differences of neighbouring pixels count as much as the pixels: blur is what they punish."""
    sharp = sum(F.l1_loss(decoded.diff(dim=axis), images.diff(dim=axis)) for axis in (2, 3))
    return F.l1_loss(decoded, images) + sharp


@torch.inference_mode()
def encode(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and deviation, [N, 8, 8, 8] float32 each, of pixels [N, 3, 32, 32] uint8."""
    vae.eval()
    moments = [vae.encode(to_signed(block.to(vae.device))).latent_dist for block in pixels.split(500)]
    return torch.cat([m.mean for m in moments]), torch.cat([m.std for m in moments])


def to_signed(pixels: Tensor) -> Tensor:
    """Uint8 0..255 to float32 -1..1."""
    return pixels.float().mul(2 / 255).sub(1).contiguous(memory_format=torch.channels_last)
