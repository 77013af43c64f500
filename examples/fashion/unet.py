"""Stage 3: the UNet and its text model, trained on the latents of the photos and their captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from examples.fashion.captions import Caption, measure_steps
from examples.fashion.resumable import train
from examples.fashion.text import new_text_model
from stablerep.data.labelled import LabelledSet

EMPTY_PROMPT = 0.1  # share of steps without any text, for classifier-free guidance
WORD_LEFT_OUT = 0.1  # share of captions that lack a given attribute, so that shorter prompts work too


class TextToLatent(nn.Module):
    """What stage 3 trains: 4.7 M weights of UNet, 0.3 M of text model."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder: CLIPTextModel = new_text_model(tokenizer)
        # Attention at 4x4 only: at 8x8 it doubled the time of a step.
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=8,
            out_channels=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(96, 128),
            layers_per_block=1,
            cross_attention_dim=96,
            attention_head_dim=4,
            norm_num_groups=16,
        )


def new_noise_schedule() -> DDPMScheduler:
    """Stable Diffusion's schedule, carried on to less signal: 64 latents show a mean that 4,096 would hide."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
    )


def train_unet(
    tokenizer: CLIPTokenizer,
    photos: LabelledSet,
    latents: tuple[Tensor, Tensor],  # posterior mean and deviation, [N, 8, 8, 8] float32, times the scaling factor
    *,
    steps: int,
    seed: int,
    device: torch.device,
    checkpoint: Path,
) -> TextToLatent:
    torch.manual_seed(seed)
    model = TextToLatent(tokenizer).to(device)
    model.unet.to(memory_format=torch.channels_last)
    schedule = new_noise_schedule()
    attributes = measure_steps(photos)
    mean, deviation = latents

    def loss_of(indices: Tensor, noise: torch.Generator) -> Tensor:
        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=noise, device=device)

        clean = mean[indices].to(device)
        clean = clean + deviation[indices].to(device) * normal(clean)
        drawn = np.random.default_rng(noise.initial_seed())
        prompts = [_caption(photos, attributes, index, drawn) for index in indices.tolist()]
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        # Stratified timesteps: every noise level in every batch, for a steadier loss than independent draws.
        offset = torch.rand((), generator=noise, device=device)
        strata = (torch.arange(len(indices), device=device) + offset) / len(indices)
        timesteps = (strata * schedule.config.num_train_timesteps).long()
        added = normal(clean)
        noisy = schedule.add_noise(clean, added, timesteps).contiguous(memory_format=torch.channels_last)
        velocity = schedule.get_velocity(clean, added, timesteps)
        text = model.text_encoder(tokens).last_hidden_state
        return F.mse_loss(model.unet(noisy, timesteps, text).sample, velocity)

    train(
        model,
        loss_of,
        num_photos=len(photos),
        steps=steps,
        batch_size=128,
        learning_rate=1e-3,
        ema_decay=0.9985,
        seed=seed + 1,
        checkpoint=checkpoint,
        title="UNet",
    )
    return model


def _caption(photos: LabelledSet, attributes: np.ndarray, index: int, drawn: np.random.Generator) -> str:
    chance = drawn.random(4)
    if chance[0] < EMPTY_PROMPT:
        return ""
    steps = [int(step) if chance[1 + i] >= WORD_LEFT_OUT else None for i, step in enumerate(attributes[index])]
    return str(Caption(photos.class_names[photos.labels[index]], *steps))
