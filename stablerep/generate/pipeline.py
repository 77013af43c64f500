"""Open a diffusers pipeline and take the parts we drive ourselves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from stablerep.config import UserError
from stablerep.generate.conditioning import Conditioning
from stablerep.generate.lora import fuse_lora

PACKAGE = Path(__file__).parent.parent
# In a wheel the folder lies in the package, in a source checkout with the script that trained it.
DEFAULT_GENERATOR_FOLDERS = (PACKAGE / "default_generator", PACKAGE.parent / "examples/fashion/pipeline")


@dataclass(frozen=True)
class Pipeline:
    """The parts of a Stable Diffusion 1.x/2.x pipeline on one device."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler_config: dict[str, Any]
    weights_hash: str

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one picture's latents."""
        side = self.unet.config.sample_size
        return self.unet.config.in_channels, side, side

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> Conditioning:
        """A row a prompt; what exceeds the tokenizer's length is cut."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        # Stable Diffusion 2 pads with real tokens that it masks; its config says so.
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.text_encoder.device) if masked else None
        ids = tokens.input_ids.to(self.text_encoder.device)
        return Conditioning({"text": self.text_encoder(ids, attention_mask=mask).last_hidden_state})

    def is_cut(self, prompt: str) -> bool:
        """Whether a prompt is longer than the tokenizer takes."""
        return len(self.tokenizer(prompt, truncation=False, verbose=False).input_ids) > self.tokenizer.model_max_length


def default_generator() -> Path:
    """The folder of the embedded Stable Diffusion pipeline (32x32 garments, 5.8 M weights)."""
    for folder in DEFAULT_GENERATOR_FOLDERS:
        if (folder / "model_index.json").exists():
            return folder
    raise UserError("--model default: its folder is missing from this installation; reinstall stablerep")


def open_pipeline(
    model: str, device: torch.device, loras: Sequence[str] = (), dtype: torch.dtype | None = None
) -> Pipeline:
    """Open a pipeline folder, a hub name or "default"; without a dtype half precision on CUDA, single on the CPU.

    Args:
        loras: PATH:WEIGHT each, added to the weights; the weights' hash then is another.

    Raises:
        UserError: nothing there, a pipeline of another kind than Stable Diffusion 1.x/2.x, or a LoRA that does not fit.
    """
    for library in (diffusers_logging, transformers_logging):  # their bars would break ours
        library.set_verbosity_error()
        library.disable_progress_bar()
    folder = _folder(model)
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    try:
        parts = StableDiffusionPipeline.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
            local_files_only=True,
        )
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--model {model} is not a Stable Diffusion 1.x/2.x pipeline of safetensors: {reason}"
        ) from error
    weights_hash = _hash_files(folder)
    if loras:
        modules = {name: part for name, part in parts.components.items() if isinstance(part, torch.nn.Module)}
        digests = [fuse_lora(modules, lora) for lora in loras]
        weights_hash = hashlib.sha256("\n".join([weights_hash, *digests]).encode()).hexdigest()[:12]
    parts.to(device)
    for module in (parts.unet, parts.vae, parts.text_encoder):
        module.eval().requires_grad_(False)
    parts.unet.to(memory_format=torch.channels_last)
    parts.vae.to(memory_format=torch.channels_last)
    return Pipeline(
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        unet=parts.unet,
        vae=parts.vae,
        scheduler_config=dict(parts.scheduler.config),
        weights_hash=weights_hash,
    )


def _folder(model: str) -> Path:
    if model == "default":
        return default_generator()
    if Path(model).is_dir():
        return Path(model)
    if Path(model).exists() or model.count("/") != 1:
        raise UserError(f"--model {model} is neither a folder nor a hub name (owner/name)")
    try:
        return Path(StableDiffusionPipeline.download(model, use_safetensors=True))
    except Exception as error:  # the hub client raises a dozen kinds; each means that the model is not to be had
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--model {model} cannot be fetched from the hub: {reason}") from error


def _hash_files(folder: Path) -> str:
    """Twelve hex digits over the weights and configs of a pipeline folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json"):
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()[:12]
