"""NSFW score: how likely a picture is not safe for work, by a classifier or by Stable Diffusion's safety checker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stablerep import hub
from stablerep.config import UserError
from stablerep.generate.score_input import Prepare, dtype_on, open_prepare

FLAG = "--nsfw-model"
SAFETY_CHECKER = "StableDiffusionSafetyChecker"
LABELS = {"nsfw", "porn", "pornography", "hentai", "sexy", "sexual", "explicit", "nude", "nudity", "unsafe"}
DENIALS = {"not", "non", "no"}  # "not nsfw" is a safe label


@dataclass(frozen=True)
class Classifier:
    """An image classifier of transformers that has labels like nsfw or porn."""

    model: Any
    prepare: Prepare
    labels: tuple[int, ...]

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 to [B] float32: the probability of these labels together. Never waits for the device."""
        logits = self.model(pixel_values=self.prepare(pixels).to(self.model.dtype)).logits.float()
        if self.model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1:
            return torch.stack([logits[:, label].sigmoid() for label in self.labels]).amax(0)
        return torch.stack([logits.softmax(1)[:, label] for label in self.labels]).sum(0)


@dataclass(frozen=True)
class SafetyChecker:
    """What a Stable Diffusion 1.x pipeline carries; here it blackens nothing."""

    model: Any
    prepare: Prepare

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 to [B] float32, 0..1. Never waits for the device.

        0.5 is where diffusers draws its line; a hundredth above is a hundredth of cosine nearer to the nearest of its
        concepts. To three digits, as diffusers rounds.
        """
        checker = self.model
        pictures = self.prepare(pixels).to(checker.dtype)
        told = F.normalize(checker.visual_projection(checker.vision_model(pictures)[1]).float())
        care = _above(told, checker.special_care_embeds, checker.special_care_embeds_weights)
        stricter = (care > 0).any(1, keepdim=True) * 0.01
        above = _above(told, checker.concept_embeds, checker.concept_embeds_weights, stricter)
        return (0.5 + above.amax(1)).clamp(0, 1)


def _above(told: Tensor, concepts: Tensor, thresholds: Tensor, more: Tensor | float = 0.0) -> Tensor:
    """[B, D] and [C, D] to [B, C]: by how much each cosine exceeds its concept's threshold."""
    above = told @ F.normalize(concepts.float()).T - thresholds.float() + more
    return above.mul(1000).round() / 1000


def open_nsfw_score(model: str, device: torch.device) -> Classifier | SafetyChecker:
    """Open a folder of transformers or a hub name, or the safety_checker folder of a pipeline.

    Raises:
        UserError: nothing there, no image classifier, or one whose labels say nothing of the kind.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    folder = hub.model_folder(FLAG, model)
    config = hub.load(FLAG, AutoConfig, folder)
    prepare = open_prepare(FLAG, processor_folder(folder))
    dtype = dtype_on(device)
    if SAFETY_CHECKER in (config.architectures or ()):
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        return SafetyChecker(
            hub.load_model(FLAG, StableDiffusionSafetyChecker, folder, dtype=dtype).to(device), prepare
        )
    classifier = hub.load_model(FLAG, AutoModelForImageClassification, folder, dtype=dtype).to(device)
    return Classifier(classifier, prepare, nsfw_labels(model, classifier.config.id2label))


def nsfw_labels(model: str, names: Mapping[int, str]) -> tuple[int, ...]:
    """Which of a classifier's labels are not safe for work, by their names.

    Raises:
        UserError: none is; which labels there are.
    """
    words = {number: re.findall(r"[a-z]+", name.lower()) for number, name in names.items()}
    found = tuple(number for number, of_name in words.items() if LABELS & {*of_name} and not DENIALS & {*of_name})
    if not found:
        there = ", ".join(list(names.values())[:10])
        raise UserError(f"{FLAG} {model} has no label like nsfw, porn or unsafe; it has {there}")
    return found


def processor_folder(folder: Path) -> Path:
    """Where preprocessor_config.json is: in a pipeline the safety checker's lies in the folder beside it."""
    beside = folder.parent / "feature_extractor"
    alone = (folder / "preprocessor_config.json").exists() or not beside.is_dir()
    return folder if alone else beside
