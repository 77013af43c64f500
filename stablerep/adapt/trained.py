"""What learns: a LoRA in the attention layers, or all weights; and the files that come of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save
from torch import Tensor, nn

from stablerep import atomic
from stablerep.adapt.config import AdaptConfig
from stablerep.adapt.latents import Model
from stablerep.config import UserError

LORA_FILE, PIPELINE = "pytorch_lora_weights.safetensors", "pipeline"  # the first is diffusers' own name
# diffusers looks for these layers in a text encoder.
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")

log = logging.getLogger("stablerep.adapt")


class Trained:
    """The weights that learn, by module and name. float32, whatever the frozen ones are."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.weights = {
            f"{prefix}.{name}": weight
            for prefix, module in modules.items()
            for name, weight in module.named_parameters()
            if weight.requires_grad
        }

    def state(self) -> dict[str, Tensor]:
        """A copy on the host."""
        return {name: weight.detach().cpu().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(state[name])


def open_trained(config: AdaptConfig, model: Model) -> Trained:
    """Make ready what learns, the same for the same seed.

    Raises:
        UserError: peft is missing, or the UNet has no layers of these names.
    """
    modules: dict[str, nn.Module] = {"unet": model.unet}
    if config.text_encoder:
        modules |= text_encoders(model)
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    if config.full:
        for module in modules.values():
            module.requires_grad_(True)
        return Trained(modules)
    LoraConfig = _lora_config()
    torch.manual_seed(config.seed)
    for name, module in modules.items():
        targets = config.targets if name == "unet" else TEXT_TARGETS
        lora = LoraConfig(
            r=config.rank, lora_alpha=config.alpha or config.rank, init_lora_weights="gaussian",
            target_modules=sorted(targets),
        )  # fmt: skip
        try:
            module.add_adapter(lora)  # type: ignore[operator]  # diffusers' and transformers' own
        except ValueError as error:
            if "not found" not in str(error):
                raise
            raise UserError(
                f"--targets {' '.join(config.targets)}: the UNet has no layer of such a name; attention has to_q, "
                "to_k, to_v and to_out.0"
            ) from error
        for weight in module.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    return Trained(modules)


def text_encoders(model: Model) -> dict[str, nn.Module]:
    found = {"text_encoder": model.text_encoder, "text_encoder_2": model.text_encoder_2}
    return {name: module for name, module in found.items() if module is not None}


def check_peft() -> None:
    """
    Raises:
        UserError: it is not installed.
    """
    _lora_config()


def _lora_config() -> Any:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UserError("a LoRA needs peft: pip install 'stablerep[adapt]'; --full needs nothing more") from error
    return LoraConfig


def save_lora(trained: Trained, out: Path, about: Mapping[str, str]) -> Path:
    """Write the LoRA as diffusers' load_lora_weights and stablerep-gen --lora read it.

    Args:
        about: goes into the file's metadata.
    """
    from peft.utils import get_peft_model_state_dict

    tensors: dict[str, Tensor] = {}
    configs: dict[str, Any] = {}
    for prefix, module in trained.modules.items():
        state = get_peft_model_state_dict(module)
        tensors |= {f"{prefix}.{name}": weight.detach().cpu().contiguous() for name, weight in state.items()}
        (lora,) = module.peft_config.values()  # type: ignore[operator]
        configs |= {f"{prefix}.{name}": value for name, value in lora.to_dict().items()}
    adapter = json.dumps(configs, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    path = out / LORA_FILE
    atomic.write(path, _with_metadata(save(tensors), {"format": "pt", "lora_adapter_metadata": adapter, **about}))
    return path


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with metadata in this order; safetensors itself puts it in another one each time."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": metadata, **json.loads(data[8:start])}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[start:]


def save_pipeline(model: Model, out: Path) -> Path:
    """Write the whole pipeline, in single precision, as DiffusionPipeline.from_pretrained opens it."""
    config = dict(model.scheduler_config)
    kind = getattr(diffusers, str(config.get("_class_name", "DDIMScheduler")))
    parts: dict[str, Any] = {
        "vae": model.vae, "unet": model.unet, "tokenizer": model.tokenizer, "text_encoder": model.text_encoder,
        "scheduler": kind.from_config(config),
    }  # fmt: skip
    if model.text_encoder_2 is None:
        nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = diffusers.StableDiffusionPipeline(**parts, **nothing)
    else:
        second = {"tokenizer_2": model.tokenizer_2, "text_encoder_2": model.text_encoder_2}
        zeros = model.force_zeros_for_empty_prompt
        pipeline = diffusers.StableDiffusionXLPipeline(
            **parts, **second, force_zeros_for_empty_prompt=zeros, add_watermarker=False
        )
    with atomic.new_folder(out / PIPELINE) as folder:
        pipeline.save_pretrained(folder)
    return out / PIPELINE
