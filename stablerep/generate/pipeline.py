"""Open a diffusers pipeline and take the modules we drive ourselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from stablerep import hub
from stablerep.config import UserError
from stablerep.engines.conditioning import Conditioning, guidance_embedding
from stablerep.generate.cuda import upload_floats
from stablerep.generate.lora import fuse_lora
from stablerep.generate.model_files import OPENS, check_kind, find_folder, is_xl, read_index, variant_of
from stablerep.generate.single_file import is_single_file, open_single_file
from stablerep.hub import default_generator


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's modules on one device, in diffusers' own names; SDXL has a second tokenizer and text encoder."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler_config: dict[str, Any]
    weights_hash: str
    tokenizer_2: CLIPTokenizer | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None
    force_zeros_for_empty_prompt: bool = False  # an empty negative prompt is then no text at all

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one picture's latents."""
        side = self.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        return self.unet.config.in_channels, height, width

    @property
    def embeds_guidance(self) -> bool:
        """Whether the UNet takes the guidance scale as an input (LCM), and so needs no unguided half."""
        return self.unet.config.time_cond_proj_dim is not None

    @property
    def reads_latin_only(self) -> bool:
        """Whether the text encoder knows no script but Latin, so that others come to it in pieces without a meaning.

        Decided by the kind of tokenizer. CLIP's byte pairs were made of English captions and cut a letter of another
        script into its bytes. A model for other languages brings another kind: XLM-R, mT5 and Japanese models
        SentencePiece, multilingual and Chinese BERT WordPiece.
        """
        return isinstance(self.tokenizer, CLIPTokenizer)

    def embed(self, prompts: list[str], *, zero_empty: bool = False) -> Conditioning:
        """A row a prompt, with gradients; what exceeds the tokenizer's length is cut. zero_empty: no text is zeros."""
        first = _encode(self.tokenizer, self.text_encoder, prompts)
        if self.tokenizer_2 is None or self.text_encoder_2 is None:
            return Conditioning({"text": first.last_hidden_state})
        second = _encode(self.tokenizer_2, self.text_encoder_2, prompts)
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        text_embeds = second.text_embeds
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)  # pixels a latent
        height, width = (scale * side for side in self.latent_shape[1:])
        sizes = text.new_tensor([height, width, 0, 0, height, width])  # original, crop, target: diffusers' defaults
        if zero_empty:
            empty = torch.tensor([not prompt for prompt in prompts], device=text.device)
            text = text.masked_fill(empty[:, None, None], 0)
            text_embeds = text_embeds.masked_fill(empty[:, None], 0)
        time_ids = sizes.repeat(len(prompts), 1)
        return Conditioning({"text": text, "text_embeds": text_embeds, "time_ids": time_ids})

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> Conditioning:
        """A row a prompt; what exceeds the tokenizer's length is cut."""
        return self.embed(prompts)

    @torch.inference_mode()
    def encode_negative(self, prompts: list[str]) -> Conditioning:
        """As encode, but that no text is zeros in a model that was trained so (SDXL)."""
        return self.embed(prompts, zero_empty=self.force_zeros_for_empty_prompt)

    def with_guidance(self, conditioning: Conditioning, scales: Sequence[float]) -> Conditioning:
        """Add the guidance scale of each row where the UNet takes it as an input."""
        if not self.embeds_guidance:
            return conditioning
        weight = upload_floats([scale - 1 for scale in scales], conditioning.device)
        embedding = guidance_embedding(weight, self.unet.config.time_cond_proj_dim)
        return Conditioning({**conditioning.inputs, "timestep_cond": embedding.to(conditioning.dtype)})

    def is_cut(self, prompt: str) -> bool:
        """Whether a prompt is longer than the tokenizer takes."""
        return len(self.tokenizer(prompt, truncation=False, verbose=False).input_ids) > self.tokenizer.model_max_length


def _encode(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, prompts: list[str]) -> Any:
    tokens = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    # Stable Diffusion 2 pads with real tokens that it masks; its config says so.
    masked = getattr(encoder.config, "use_attention_mask", False)
    mask = tokens.attention_mask.to(encoder.device) if masked else None
    return encoder(tokens.input_ids.to(encoder.device), attention_mask=mask, output_hidden_states=True)


def open_pipeline(
    model: str,
    device: torch.device,
    loras: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    model_config: str | None = None,
) -> Pipeline:
    """Open a pipeline's folder, a file of all its weights, a hub name or "default".

    Args:
        dtype: by default half precision on CUDA, single on the CPU.
        model_config: folder or hub name of the configs and the tokenizer of a model that is one file.
        loras: PATH:WEIGHT each, added to the weights; the weights' hash then is another.

    Raises:
        UserError: nothing there, a pipeline of another kind, or a LoRA that does not fit.
    """
    for library in (diffusers_logging, transformers_logging):  # their bars would break ours
        library.set_verbosity_error()
        library.disable_progress_bar()
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    if is_single_file(model):
        opened, weights_hash = open_single_file(model, model_config, dtype)
    elif model_config is not None:
        raise UserError(f"--model-config {model_config} is for a --model of one file; {model} has its own configs")
    else:
        opened, weights_hash = _open_folder(model, dtype)
    xl = isinstance(opened, StableDiffusionXLPipeline)
    _check_inputs(model, opened.unet.config, opened.vae.config)
    if loras:
        modules = {name: each for name, each in opened.components.items() if isinstance(each, torch.nn.Module)}
        digests = [fuse_lora(modules, lora, weights_hash) for lora in loras]
        weights_hash = hashlib.sha256("\n".join([weights_hash, *digests]).encode()).hexdigest()[:12]
    opened.to(device)
    second = {name: getattr(opened, name) for name in ("tokenizer_2", "text_encoder_2")} if xl else {}
    for module in (opened.unet, opened.vae, opened.text_encoder, *([opened.text_encoder_2] if xl else [])):
        module.eval().requires_grad_(False)
    if device.type == "cpu":  # on CUDA GroupNorm would copy to NCHW and back: 105 ms a step of SD 1.5, not 95 (H200)
        opened.unet.to(memory_format=torch.channels_last)
        opened.vae.to(memory_format=torch.channels_last)
    return Pipeline(
        tokenizer=opened.tokenizer,
        text_encoder=opened.text_encoder,
        unet=opened.unet,
        vae=opened.vae,
        scheduler_config=dict(opened.scheduler.config),
        weights_hash=weights_hash,
        force_zeros_for_empty_prompt=xl and opened.config.force_zeros_for_empty_prompt,
        **second,
    )


def _open_folder(model: str, dtype: torch.dtype) -> tuple[StableDiffusionPipeline | StableDiffusionXLPipeline, str]:
    folder = default_generator() if model == "default" else find_folder(model)
    try:
        index = read_index(folder)
        check_kind(model, index)
        xl = is_xl(index)
        options = {"add_watermarker": False} if xl else {"safety_checker": None, "requires_safety_checker": False}
        opened = (StableDiffusionXLPipeline if xl else StableDiffusionPipeline).from_pretrained(
            folder,
            dtype={"default": dtype, "vae": _vae_dtype(folder, dtype) if xl else dtype},
            variant=variant_of(folder),
            use_safetensors=True,
            local_files_only=True,
            **options,
        )
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--model {model} is no pipeline of safetensors ({OPENS}): {reason}") from error
    return opened, hub.hash_folder(folder, (".safetensors", ".json"))


def _vae_dtype(folder: Path, dtype: torch.dtype) -> torch.dtype:
    """SDXL's VAE overflows in float16 unless its config says otherwise; as diffusers, it then decodes in float32."""
    upcast = json.loads((folder / "vae/config.json").read_text()).get("force_upcast", True)
    return torch.float32 if upcast and dtype == torch.float16 else dtype


def _check_inputs(model: str, unet: Any, vae: Any) -> None:
    """
    Raises:
        UserError: the UNet needs an input that we have not.
    """
    if unet.in_channels != vae.latent_channels:
        raise UserError(
            f"--model {model} paints over given pictures: its UNet takes {unet.in_channels} channels, its VAE gives "
            f"{vae.latent_channels}; take the text-to-image model of the family"
        )
    known = {"addition_embed_type": (None, "text_time"), "class_embed_type": (None,), "encoder_hid_dim_type": (None,)}
    for name, values in known.items():
        if unet[name] not in values:
            raise UserError(f"--model {model} has a UNet with {name} {unet[name]!r}; what opens is {OPENS}")
    if unet.sample_size is None:
        raise UserError(f"--model {model} does not say its size: sample_size is missing in unet/config.json")
