"""What an adaptation is handed: the model it begins with, and a few pictures of it as it is at a moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stablerep.generate.config import GenerateConfig
from stablerep.generate.online import paint_prompts
from stablerep.generate.painter import open_painter
from stablerep.generate.pipeline import Pipeline, open_pipeline
from stablerep.prompts import Prompt


@torch.inference_mode()
def paint_samples(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    seed: int,
    guidance_scale: float,
    num_inference_steps: int,
    batch_size: int = 16,
) -> Tensor:  # uint8 [N, H, W, 3] on the host
    """A picture of each prompt: the first that stablerep-gen paints of it, where it stands in that row of a file."""
    config = GenerateConfig(
        prompts=Path("prompts.txt"), out=Path("samples"), engine="torch", scheduler="dpmsolver++",
        num_images_per_prompt=1, seed=seed, guidance_scale=guidance_scale, num_inference_steps=num_inference_steps,
        batch_size=batch_size,
    )  # fmt: skip
    asked = [Prompt(number, text) for number, text in enumerate(prompts)]
    painter = open_painter(config, pipeline, pipeline.unet.device, guided=config.is_guided(asked))
    blocks = [asked[first : first + batch_size] for first in range(0, len(asked), batch_size)]
    return torch.cat([paint_prompts(painter, block, [0] * len(block))[0][:, 0].cpu() for block in blocks])


def open_model(model: str, device: torch.device, dtype: torch.dtype, model_config: str | None) -> Pipeline:
    return open_pipeline(model, device, (), dtype, model_config)
