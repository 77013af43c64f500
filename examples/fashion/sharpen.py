"""Stage 2: the autoencoder's decoder against a critic that tells its patches from real ones.

A decoder trained on pixel distances alone answers doubt with an average, and fabric comes out smooth. The encoder
stays as it is, so latents, and a UNet trained on them, stay valid.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.func import functional_call

from examples.fashion.resumable import train
from examples.fashion.vae import pixel_loss, to_signed

ADVERSARIAL_WEIGHT = 0.05  # of being taken for real (Isola et al. 2017)
FEATURES_WEIGHT = 0.5  # of the critic's inner features being those of the photo (Wang et al. 2018)


class PatchCritic(nn.Module):
    """Real or decoded, asked of every patch of 14 x 14 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(1, 32, 3, 1, 1), nn.Conv2d(32, 64, 4, 2, 1), nn.Conv2d(64, 96, 3, 1, 1)])
        self.verdict = nn.Conv2d(96, 1, 3, 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Pictures [B, 3, 32, 32] to verdicts [B, 1, 16, 16], above 0 for real, and the features on the way."""
        x, features = images.mean(1, keepdim=True), []
        for stage in self.stages:
            x = F.leaky_relu(stage(x), 0.2)
            features.append(x)
        return self.verdict(x), features


class Contest(nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae, self.critic = vae, PatchCritic()


def sharpen(vae: AutoencoderKL, pixels: Tensor, *, steps: int, seed: int, checkpoint: Path) -> None:
    """Train the decoder of `vae` in place on pixels [N, 3, 32, 32] uint8."""
    torch.manual_seed(seed)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    contest = Contest(vae).to(vae.device)
    critic = contest.critic

    def loss_of(indices: Tensor, noise: torch.Generator) -> Tensor:
        images = to_signed(pixels[indices].to(vae.device))
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.sample(noise)
        decoded = vae.decode(latents).sample
        # One loss for both sides: the decoder sees the critic's weights as constants, the critic the decoder's output.
        constants = {name: value.detach() for name, value in critic.named_parameters()}
        taken_for_real, decoded_features = functional_call(critic, constants, (decoded,))
        on_real, real_features = critic(images)
        on_decoded, _ = critic(decoded.detach())
        pairs = zip(decoded_features, real_features, strict=True)
        return (
            pixel_loss(decoded, images)
            - ADVERSARIAL_WEIGHT * taken_for_real.mean()
            + FEATURES_WEIGHT * sum(F.l1_loss(ours, real.detach()) for ours, real in pairs)
            + F.relu(1 - on_real).mean()
            + F.relu(1 + on_decoded).mean()
        )

    train(
        contest,
        loss_of,
        num_photos=len(pixels),
        steps=steps,
        batch_size=32,
        learning_rate=1e-3,
        ema_decay=0.995,
        seed=seed,
        checkpoint=checkpoint,
        title="decoder",
    )
