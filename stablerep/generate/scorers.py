"""What models say of the pictures: CLIP score, and NSFW score by a classifier or Stable Diffusion's safety checker.

CLIP score is how well a picture shows what its prompt says; NSFW score how likely it is not safe for work. Both are
computed on the device that the pictures are on, beside what screening measures by itself.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stablerep import hub
from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.generate.cuda import upload
from stablerep.generate.screen import BatchQuality

CLIP_FLAG, NSFW_FLAG = "--clip-score-model", "--nsfw-model"
CLIP_KINDS = ("clip", "siglip")
SAFETY_CHECKER = "StableDiffusionSafetyChecker"
NSFW_LABELS = {"nsfw", "porn", "pornography", "hentai", "sexy", "sexual", "explicit", "nude", "nudity", "unsafe"}
DENIALS = {"not", "non", "no"}  # "not nsfw" is a safe label

Preprocess = Callable[[Tensor], Tensor]  # [B, H, W, 3] uint8 to [B, 3, h, w] float32, on the same device


@dataclass(frozen=True)
class Scorer:
    """The models that were asked for, if any."""

    clip: ClipScore | None = None
    nsfw: NsfwClassifier | SafetyChecker | None = None

    def add_scores(self, quality: BatchQuality, pixels: Tensor, texts: Sequence[str]) -> BatchQuality:
        """With the scores of B pictures [B, H, W, 3] uint8 of these prompts. Never waits for the device."""
        scores = {}
        if self.clip is not None:
            scores["clip_score"] = self.clip(pixels, texts)
        if self.nsfw is not None:
            scores["nsfw_score"] = self.nsfw(pixels)
        return dataclasses.replace(quality, **scores)


def open_scorer(config: GenerateConfig, device: torch.device) -> Scorer:
    """Open the models that a config names.

    Raises:
        UserError: one of them cannot be opened.
    """
    return Scorer(
        clip=open_clip_score(config.clip_score_model, device) if config.clip_score_model else None,
        nsfw=open_nsfw_score(config.nsfw_model, device) if config.nsfw_model else None,
    )


def identity(config: GenerateConfig) -> dict[str, Any]:
    """What the rows, and what is left out, follow from: the models' weights and the thresholds, where used."""
    known: dict[str, Any] = {}
    if config.clip_score_model:
        folder = hub.model_folder(CLIP_FLAG, config.clip_score_model)
        known |= {"clip_score_model": hub.hash_folder(folder), "clip_score_below": config.clip_score_below}
    if config.nsfw_model:
        folder = hub.model_folder(NSFW_FLAG, config.nsfw_model)
        hashes = [hub.hash_folder(each) for each in dict.fromkeys([folder, processor_folder(folder)])]
        known |= {"nsfw_model": "+".join(hashes), "nsfw_above": config.nsfw_above}
    return known


@dataclass(frozen=True)
class ClipScore:
    """A CLIPModel or SiglipModel with its image processor and tokenizer."""

    model: Any
    preprocess: Preprocess
    tokenizer: Any

    @torch.inference_mode()
    def __call__(
        self,
        pixels: Tensor,  # [B, H, W, 3] uint8 on the model's device
        texts: Sequence[str],  # [B]
    ) -> Tensor:  # [B] float32, 0..100; NaN where the text is empty
        """100 x the cosine between picture and text, at least 0 (Hessel et al. 2021, in torchmetrics' scale).

        A text that is longer than the model takes is cut. Never waits for the device.
        """
        different = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        rows = torch.tensor([different[text] for text in texts])
        missing = torch.tensor([0.0 if text.strip() else torch.nan for text in texts])
        of_text = self._of_texts(list(different)).index_select(0, upload(rows, pixels.device))
        pictures = self.preprocess(pixels).to(self.model.dtype)
        of_picture = self.model.get_image_features(pixel_values=pictures).pooler_output
        cosine = F.cosine_similarity(of_picture.float(), of_text.float())
        return cosine.mul(100).clamp(min=0) + upload(missing, pixels.device)

    def _of_texts(self, texts: list[str]) -> Tensor:
        ids = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).input_ids.to(self.model.device, non_blocking=True)
        # No mask: CLIP's text attends backwards from its end-of-text, SigLIP was trained without one. A mask would make
        # transformers ask the device whether it masks anything.
        return self.model.get_text_features(input_ids=ids).pooler_output


def open_clip_score(model: str, device: torch.device) -> ClipScore:
    """Open a folder of transformers or a hub name.

    Raises:
        UserError: nothing there, or another kind of model than CLIP or SigLIP.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    folder = hub.model_folder(CLIP_FLAG, model)
    kind = hub.load(CLIP_FLAG, AutoConfig, folder).model_type
    if kind not in CLIP_KINDS:
        raise UserError(
            f"{CLIP_FLAG} {model} is a {kind} model; give one of {' or '.join(CLIP_KINDS)}, text and pictures"
        )
    return ClipScore(
        model=hub.load_model(CLIP_FLAG, AutoModel, folder, dtype=dtype_on(device)).to(device),
        preprocess=open_preprocess(CLIP_FLAG, folder),
        tokenizer=hub.load(CLIP_FLAG, AutoTokenizer, folder),
    )


@dataclass(frozen=True)
class NsfwClassifier:
    """An image classifier of transformers that has labels like nsfw or porn."""

    model: Any
    preprocess: Preprocess
    labels: tuple[int, ...]

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 to [B] float32: the probability of these labels together. Never waits for the device."""
        logits = self.model(pixel_values=self.preprocess(pixels).to(self.model.dtype)).logits.float()
        if self.model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1:
            return torch.stack([logits[:, label].sigmoid() for label in self.labels]).amax(0)
        return torch.stack([logits.softmax(1)[:, label] for label in self.labels]).sum(0)


@dataclass(frozen=True)
class SafetyChecker:
    """What a Stable Diffusion 1.x pipeline carries; here it blackens nothing."""

    model: Any
    preprocess: Preprocess

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 to [B] float32, 0..1. Never waits for the device.

        0.5 is where diffusers draws its line; a hundredth above is a hundredth of cosine nearer to the nearest of its
        concepts. To three digits, as diffusers rounds.
        """
        checker = self.model
        pictures = self.preprocess(pixels).to(checker.dtype)
        embedding = F.normalize(checker.visual_projection(checker.vision_model(pictures)[1]).float())
        care = _above(embedding, checker.special_care_embeds, checker.special_care_embeds_weights)
        stricter = (care > 0).any(1, keepdim=True) * 0.01
        above = _above(embedding, checker.concept_embeds, checker.concept_embeds_weights, stricter)
        return (0.5 + above.amax(1)).clamp(0, 1)


def _above(embedding: Tensor, concepts: Tensor, thresholds: Tensor, more: Tensor | float = 0.0) -> Tensor:
    """[B, D] and [C, D] to [B, C]: by how much each cosine exceeds its concept's threshold."""
    above = embedding @ F.normalize(concepts.float()).T - thresholds.float() + more
    return above.mul(1000).round() / 1000


def open_nsfw_score(model: str, device: torch.device) -> NsfwClassifier | SafetyChecker:
    """Open a folder of transformers or a hub name, or the safety_checker folder of a pipeline.

    Raises:
        UserError: nothing there, no image classifier, or one whose labels say nothing of the kind.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    folder = hub.model_folder(NSFW_FLAG, model)
    config = hub.load(NSFW_FLAG, AutoConfig, folder)
    preprocess = open_preprocess(NSFW_FLAG, processor_folder(folder))
    dtype = dtype_on(device)
    if SAFETY_CHECKER in (config.architectures or ()):
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        return SafetyChecker(
            hub.load_model(NSFW_FLAG, StableDiffusionSafetyChecker, folder, dtype=dtype).to(device), preprocess
        )
    classifier = hub.load_model(NSFW_FLAG, AutoModelForImageClassification, folder, dtype=dtype).to(device)
    return NsfwClassifier(classifier, preprocess, nsfw_labels(model, classifier.config.id2label))


def nsfw_labels(model: str, names: Mapping[int, str]) -> tuple[int, ...]:
    """Which of a classifier's labels are not safe for work, by their names.

    Raises:
        UserError: none is; which labels there are.
    """
    words = {number: re.findall(r"[a-z]+", name.lower()) for number, name in names.items()}
    found = tuple(number for number, of_name in words.items() if NSFW_LABELS & {*of_name} and not DENIALS & {*of_name})
    if not found:
        there = ", ".join(list(names.values())[:10])
        raise UserError(f"{NSFW_FLAG} {model} has no label like nsfw, porn or unsafe; it has {there}")
    return found


def processor_folder(folder: Path) -> Path:
    """Where preprocessor_config.json is: in a pipeline the safety checker's lies in the folder beside it."""
    beside = folder.parent / "feature_extractor"
    has_own = (folder / "preprocessor_config.json").exists() or not beside.is_dir()
    return folder if has_own else beside


def open_preprocess(flag: str, folder: Path) -> Preprocess:
    """The resizing, cropping and normalising that a folder's preprocessor_config.json asks for.

    transformers' own torchvision code does it: to the number what its processor makes of the same PIL pictures on the
    CPU, within one grey level of PIL's resizing. Never waits for the device.

    Raises:
        UserError: no image processor there, or one that works on the host alone.
    """
    from transformers import AutoImageProcessor

    processor = hub.load(flag, AutoImageProcessor, folder)
    if getattr(processor, "backend", "") != "torchvision":
        raise UserError(f"{flag} {folder}: its image processor ({type(processor).__name__}) has no torchvision form")

    def preprocess(pixels: Tensor) -> Tensor:
        made = processor(images=list(pixels), input_data_format="channels_last", return_tensors="pt")
        return made["pixel_values"]

    return preprocess


def dtype_on(device: torch.device) -> torch.dtype:
    """As the painter's: half precision on CUDA."""
    return torch.float16 if device.type == "cuda" else torch.float32
