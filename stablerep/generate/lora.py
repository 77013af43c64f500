"""LoRA files added to a pipeline's weights at load, so that every engine sees plain weights.

A LoRA (Hu et al. 2021) holds for some layers W two thin matrices; W becomes W + weight * alpha / rank * up @ down.
diffusers' spellings of the keys are known (PEFT's lora_A and lora_B, and the older lora.down and lora.up), and
kohya's. diffusers itself would need the peft package and leave wrapped layers behind, which engines cannot export.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stablerep.config import UserError

FILE_NAME = "pytorch_lora_weights.safetensors"  # what diffusers' training scripts write
KOHYA_PREFIXES = {
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
}
ROLES = {"lora_A": "down", "lora_B": "up", "lora_down": "down", "lora_up": "up", "down": "down", "up": "up"}
KEY = re.compile(
    r"(?P<layer>.+?)[._](?:(?P<peft>lora_A|lora_B|lora_down|lora_up)|(?:lora|lora_linear_layer)\.(?P<older>down|up))\.weight"
)
ALPHA = re.compile(r"(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?(?:\.down)?)?\.alpha")


@dataclass
class _Layer:
    """What a file holds for one layer."""

    key: str  # one of its keys, to name it by
    matrices: dict[str, Tensor] = field(default_factory=dict)  # "down" [rank, in, ...], "up" [out, rank, ...]
    alpha: float | None = None


def parse_lora(text: str) -> tuple[Path, float]:
    """`PATH:WEIGHT`, or `PATH` for weight 1, to the safetensors file and the weight.

    Raises:
        UserError: no such file, a folder without one, a file of another kind, or a weight that is no number.
    """
    name, colon, last = text.rpartition(":")
    path, weight = Path(text), 1.0
    if colon and not path.exists():
        path = Path(name)
        try:
            weight = float(last)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise UserError(f"--lora {text}: no such file, and {last!r} after the colon is no weight (PATH:0.8)")
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        chosen = [file for file in found if file.name == FILE_NAME] or found
        if len(chosen) != 1:
            names = ", ".join(file.name for file in chosen[:3]) or "no safetensors file"
            raise UserError(f"--lora {text}: the folder holds {names}; name the one file")
        path = chosen[0]
    if not path.is_file():
        raise UserError(f"--lora {text}: {path} does not exist")
    if path.suffix != ".safetensors":
        raise UserError(f"--lora {text}: {path.name} is no .safetensors file, and pickles are not opened")
    return path, weight


@torch.no_grad()
def fuse_lora(modules: Mapping[str, nn.Module], text: str) -> str:
    """Add one `PATH:WEIGHT` to the weights of modules ("unet", "text_encoder", ...), in place.

    Returns:
        A digest of the file and the weight.

    Raises:
        UserError: a file that cannot be read, or that holds anything that does not fit; then nothing is changed.
    """
    path, weight = parse_lora(text)
    layers, metadata = _read(path, text)
    flat = {prefix: _flat_names(module) for prefix, module in modules.items()}
    updates = []
    for layer_name, layer in layers.items():
        prefix, name = _find(layer_name, flat, text, layer.key)
        target = _weight_of(modules[prefix].get_submodule(name))
        assert target is not None
        down, up = (layer.matrices.get(role) for role in ("down", "up"))
        if down is None or up is None:
            raise UserError(f"--lora {text}: {layer.key} has no other half; the file is not whole")
        fits = up.flatten(1).shape == (len(target), len(down)) and down[0].numel() == target[0].numel()
        if not fits:
            raise UserError(
                f"--lora {text} does not fit the model: {layer.key} is for a layer of {len(up)} x {down[0].numel()} "
                f"weights, and {prefix}.{name} has {len(target)} x {target[0].numel()}"
            )
        updates.append((target, down, up, weight * _scale(layer, prefix, name, len(down), metadata)))
    for target, down, up, scale in updates:
        delta = (up.float().flatten(1) @ down.float().flatten(1)).reshape(target.shape)
        target.copy_(target.float() + scale * delta.to(target.device))
    digest = hashlib.sha256(path.read_bytes())
    digest.update(repr(weight).encode())
    return digest.hexdigest()


def _read(path: Path, text: str) -> tuple[dict[str, _Layer], dict[str, Any]]:
    layers: dict[str, _Layer] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata") or "{}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if not isinstance(metadata, dict):
            raise ValueError("its lora_adapter_metadata is no mapping")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"--lora {text} cannot be read: {' '.join(str(error).split())}") from error
    for key, tensor in tensors.items():
        if found := KEY.fullmatch(key):
            layer = layers.setdefault(found["layer"], _Layer(key))
            layer.matrices[ROLES[found["peft"] or found["older"]]] = tensor
        elif found := ALPHA.fullmatch(key):
            layers.setdefault(found["layer"], _Layer(key)).alpha = float(tensor)
        else:
            raise UserError(f"--lora {text}: {key} is no weight of a plain LoRA in diffusers' or kohya's format")
    if not layers:
        raise UserError(f"--lora {text} is empty")
    return layers, metadata


def _find(layer: str, flat: Mapping[str, Mapping[str, str]], text: str, key: str) -> tuple[str, str]:
    """The module ("unet") and the name in it of a layer as a file spells it."""
    dotted, _, rest = layer.partition(".")
    kohya = next((word for word in KOHYA_PREFIXES if not rest and layer.startswith(word + "_")), None)
    prefix, name = (KOHYA_PREFIXES[kohya], layer[len(kohya) + 1 :]) if kohya else (dotted, rest)
    if prefix not in flat:
        raise UserError(f"--lora {text} does not fit the model: {key} is for none of its parts ({', '.join(flat)})")
    name = name.replace(".processor.", ".").replace(".", "_")
    # Old spellings: to_out stands for its first layer; text encoders have gained and lost a level of nesting.
    spellings = (name, name + "_0", name.removeprefix("text_model_"), "text_model_" + name)
    for spelling in spellings:
        if spelling in flat[prefix]:
            return prefix, flat[prefix][spelling]
    raise UserError(f"--lora {text} does not fit the model: its {prefix} has no layer for {key}")


def _flat_names(module: nn.Module) -> dict[str, str]:
    """kohya's spelling of each layer that can take a LoRA, to its own."""
    names = (name for name, layer in module.named_modules() if _weight_of(layer) is not None)
    return {name.replace(".", "_"): name for name in names}


def _weight_of(layer: nn.Module) -> Tensor | None:
    return layer.weight if isinstance(layer, nn.Linear | nn.Conv2d) else None


def _scale(layer: _Layer, prefix: str, name: str, rank: int, metadata: dict[str, Any]) -> float:
    """alpha / rank; 1 where neither the file's tensors nor its metadata say an alpha, as diffusers takes it."""
    alpha = layer.alpha
    if alpha is None:
        patterns: dict[str, float] = metadata.get(f"{prefix}.alpha_pattern") or {}
        own = next((value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", name)), None)
        alpha = metadata.get(f"{prefix}.lora_alpha") if own is None else own
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if metadata.get(f"{prefix}.use_rslora") else rank)
