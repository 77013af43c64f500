"""What models say of the pictures, beside the marks that screening computes itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stablerep import hub
from stablerep.generate import clip_score
from stablerep.generate import scorers as nsfw_score
from stablerep.generate.config import GenerateConfig
from stablerep.generate.screen import Marks


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The models that were asked for, if any."""

    clip: clip_score.ClipScore | None = None
    nsfw: nsfw_score.Classifier | nsfw_score.SafetyChecker | None = None

    def look(self, marks: Marks, pixels: Tensor, texts: Sequence[str]) -> Marks:
        """The marks with the scores of B pictures [B, H, W, 3] uint8 of these prompts. Never waits for the device."""
        scores = {}
        if self.clip is not None:
            scores["clip_score"] = self.clip(pixels, texts)
        if self.nsfw is not None:
            scores["nsfw_score"] = self.nsfw(pixels)
        return dataclasses.replace(marks, **scores)


def open_scorer(config: GenerateConfig, device: torch.device) -> Scorer:
    """Open the models that a config names.

    Raises:
        UserError: one of them cannot be opened.
    """
    return Scorer(
        clip=clip_score.open_clip_score(config.clip_score_model, device) if config.clip_score_model else None,
        nsfw=nsfw_score.open_nsfw_score(config.nsfw_model, device) if config.nsfw_model else None,
    )


def identity(config: GenerateConfig) -> dict[str, Any]:
    """What the rows, and what is left out, follow from: the models' weights and the thresholds, where used."""
    known: dict[str, Any] = {}
    if config.clip_score_model:
        folder = hub.model_folder(clip_score.FLAG, config.clip_score_model)
        known |= {"clip_score_model": hub.hash_folder(folder), "clip_score_below": config.clip_score_below}
    if config.nsfw_model:
        folder = hub.model_folder(nsfw_score.FLAG, config.nsfw_model)
        hashes = [hub.hash_folder(each) for each in dict.fromkeys([folder, nsfw_score.processor_folder(folder)])]
        known |= {"nsfw_model": "+".join(hashes), "nsfw_above": config.nsfw_above}
    return known
