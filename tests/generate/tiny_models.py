"""Pipelines of every kind with random weights, made in code, small enough to paint in a tenth of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from stablerep.generate.pipeline import default_generator

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
TURBO = BETAS | {"timestep_spacing": "trailing"}
LATENT = BETAS | {"clip_sample": False, "set_alpha_to_one": False}
SCHEDULERS: dict[str, Any] = {
    "sd": lambda: DDIMScheduler(**LATENT),
    "sd2-v": lambda: DDIMScheduler(**LATENT, prediction_type="v_prediction"),
    "sd-turbo": lambda: EulerDiscreteScheduler(**TURBO),
    "sd-lcm": lambda: LCMScheduler(**LATENT, original_inference_steps=50),
    "sdxl": lambda: EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
    "sdxl-turbo": lambda: EulerDiscreteScheduler(**TURBO),
    "sdxl-v": lambda: DDIMScheduler(**LATENT, prediction_type="v_prediction"),
    "sdxl-lcm": lambda: LCMScheduler(**LATENT, original_inference_steps=50),
}
KINDS = tuple(SCHEDULERS)


def build(
    kind: str, *, vae: dict[str, Any] | None = None, unet: dict[str, Any] | None = None, **pipeline: Any
) -> DiffusionPipeline:
    """A pipeline whose pictures depend on everything its UNet takes; changes of configs by component."""
    torch.manual_seed(0)
    xl = kind.startswith("sdxl")
    tokenizer = CLIPTokenizer.from_pretrained(default_generator() / "tokenizer")
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": _lively(CLIPTextModel(_text_config(tokenizer, 24))),
        "vae": _lively(_vae(vae or {})),
        "unet": _lively(_unet(kind, 24 + 40 if xl else 24, unet or {})),
        "scheduler": SCHEDULERS[kind](),
    }
    if not xl:
        nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(**parts, **nothing)
    tokenizer_2 = CLIPTokenizer.from_pretrained(default_generator() / "tokenizer", pad_token="!")
    text_encoder_2 = _lively(CLIPTextModelWithProjection(_text_config(tokenizer_2, 40)))
    return StableDiffusionXLPipeline(
        **parts, tokenizer_2=tokenizer_2, text_encoder_2=text_encoder_2, add_watermarker=False, **pipeline
    )


def save(kind: str, folder: Path, variant: str | None = None, **changes: Any) -> DiffusionPipeline:
    """Build and write a pipeline folder."""
    built = build(kind, **changes)
    built.save_pretrained(folder, variant=variant)
    built.set_progress_bar_config(disable=True)
    return built


def _text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=tokenizer.model_max_length, projection_dim=width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _vae(changes: dict[str, Any]) -> AutoencoderKL:
    config = {
        "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4, "norm_num_groups": 4, "sample_size": 16,
    }  # fmt: skip
    return AutoencoderKL(**config | changes)


def _unet(kind: str, text_width: int, changes: dict[str, Any]) -> UNet2DConditionModel:
    config = {
        "sample_size": 8, "block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1,
        "cross_attention_dim": text_width, "attention_head_dim": (2, 4), "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    if kind.startswith("sdxl"):
        config |= {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 40 + 6 * 8,
        }  # fmt: skip
    if kind.endswith("lcm"):
        config |= {"time_cond_proj_dim": 17}  # odd: the embedding is padded
    return UNet2DConditionModel(**config | changes)


def _lively(module: nn.Module) -> nn.Module:
    """Weights so large that no input is lost on the way."""
    for weight in module.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=1.5 / weight[0].numel() ** 0.5)
    return module.eval().requires_grad_(False)
