"""With what one prompt is painted: its own values where it has some, else the run's."""

from __future__ import annotations

from dataclasses import dataclass

from stablerep.generate.config import GenerateConfig
from stablerep.prompts import Prompt


@dataclass(frozen=True)
class Settings:
    seed: int
    guidance_scale: float
    negative_prompt: str


def settings_of(prompt: Prompt, config: GenerateConfig) -> Settings:
    """config is one run: its guidance_scale is a number."""
    assert isinstance(config.guidance_scale, float)
    return Settings(
        seed=config.seed if prompt.seed is None else prompt.seed,
        guidance_scale=config.guidance_scale if prompt.guidance_scale is None else prompt.guidance_scale,
        negative_prompt=config.negative_prompt if prompt.negative_prompt is None else prompt.negative_prompt,
    )
