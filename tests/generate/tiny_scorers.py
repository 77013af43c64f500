"""Models of transformers with random weights, small enough to be made in a test."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from examples.fashion.text import train_tokenizer

LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = LAYERS | {"image_size": 30, "patch_size": 10}


def save_clip(folder: Path, kind: str = "clip", seed: int = 0) -> Path:
    """A CLIPModel or SiglipModel of 30 x 30 pictures, with tokenizer and image processor."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["a photo of a dark bag", "a photo of a coat"])
    tokenizer.save_pretrained(folder)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    text = LAYERS | {"vocab_size": len(tokenizer), "max_position_embeddings": 24}
    text |= {name: getattr(tokenizer, name) for name in names}
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))
        CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}).save_pretrained(folder)
    else:
        model = SiglipModel(SiglipConfig(text_config=text | {"projection_size": 16}, vision_config=VISION))
        SiglipImageProcessor(size={"height": 30, "width": 30}).save_pretrained(folder)
    _spread(model).save_pretrained(folder)
    return folder


def save_classifier(folder: Path, labels: tuple[str, ...] = ("normal", "nsfw"), **config: object) -> Path:
    torch.manual_seed(1)
    id2label = dict(enumerate(labels))
    model = ViTForImageClassification(ViTConfig(**VISION, id2label=id2label, num_labels=len(labels), **config))
    _spread(model).save_pretrained(folder)
    ViTImageProcessor(size={"height": 30, "width": 30}).save_pretrained(folder)
    return folder


def save_safety_checker(pipeline: Path, threshold: float = 0.5) -> Path:
    """The two folders of a Stable Diffusion 1.x pipeline that matter here."""
    torch.manual_seed(2)
    checker = _spread(StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=8)))
    checker.concept_embeds.data.normal_()
    checker.special_care_embeds.data.normal_()
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.special_care_embeds_weights.data.fill_(threshold - 0.2)
    checker.save_pretrained(pipeline / "safety_checker")
    processor = CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    processor.save_pretrained(pipeline / "feature_extractor")
    return pipeline / "safety_checker"


def _spread(model: torch.nn.Module) -> torch.nn.Module:
    """Larger weights than a fresh model's, so that pictures differ in what it says of them."""
    for weights in model.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.3)
    return model.eval()
