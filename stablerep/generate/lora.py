"""LoRA files added to a pipeline's weights at load, so that every engine sees plain weights.

diffusers' spellings of the keys are known (PEFT's lora_A and lora_B, and the older lora.down and lora.up), and those of
kohya and LyCORIS, with diffusers' names of the UNet's layers or SGM's. diffusers itself would need the peft package,
leave wrapped layers behind, which engines cannot export, drop kohya's DoRA and know no LoHa for these models.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stablerep.config import UserError
from stablerep.generate.lora_layer import LoraLayer

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
HADAMARD_KEY = re.compile(r"(?P<layer>.+?)\.hada_(?P<role>w1_a|w1_b|w2_a|w2_b|t1|t2)")
MAGNITUDE = re.compile(r"(?P<layer>.+?)\.(?:(?P<lycoris>dora_scale)|lora_magnitude_vector(?:\.weight)?)")
RESNET_IN_SGM = {
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
OUTER_IN_SGM = {
    "conv_in": "input_blocks_0_0",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
    "conv_out": "out_2",
}
BLOCK = re.compile(
    r"(?P<side>down_blocks|mid_block|up_blocks)(?:\.(?P<block>\d+))?\.(?P<kind>resnets|attentions|\w+samplers)\."
    r"(?P<number>\d+)\.(?P<rest>.+)"
)
ALPHA = re.compile(r"(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?(?:\.down)?)?\.alpha")

log = logging.getLogger("stablerep.generate")


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
def fuse_lora(modules: Mapping[str, nn.Module], text: str, weights_hash: str = "") -> str:
    """Add one `PATH:WEIGHT` to the weights of modules ("unet", "text_encoder", ...), in place.

    Args:
        weights_hash: of the model. A file of stablerep-adapt for another one of the same shapes is used, and that said.

    Returns:
        A digest of the file and the weight.

    Raises:
        UserError: a file that cannot be read, or that holds anything that does not fit; then nothing is changed.
    """
    path, weight = parse_lora(text)
    layers, metadata, made_for = _read(path, text)
    flat = {prefix: _flat_names(module) for prefix, module in modules.items()}
    if "unet" in flat:
        flat["unet"] = _sgm_names(modules["unet"]) | flat["unet"]
    updates = []
    for layer_name, layer in layers.items():
        prefix, name = _find(layer_name, flat, text, layer.key, _whose(made_for))
        target = _weight_of(modules[prefix].get_submodule(name))
        assert target is not None
        if not layer.is_whole:
            raise UserError(f"--lora {text}: {layer.key} has no other half; the file is not whole")
        if not layer.fits(target):
            raise UserError(
                f"--lora {text} does not fit the model: {layer.key} is for a layer of {layer.shape[0]} x "
                f"{layer.shape[1]} weights, and {prefix}.{name} has {len(target)} x {target[0].numel()}"
                f"{_whose(made_for)}"
            )
        updates.append((target, layer, weight * _scale(layer, prefix, name, metadata)))
    if weights_hash and weights_hash != made_for.get("base_model_hash", weights_hash):
        log.warning("--lora %s is used on another model than its own%s", text, _whose(made_for))
    for target, layer, scale in updates:
        target.copy_(layer.add_to(target, scale))
    digest = hashlib.sha256(path.read_bytes())
    digest.update(repr(weight).encode())
    return digest.hexdigest()


def _read(path: Path, text: str) -> tuple[dict[str, LoraLayer], dict[str, Any], dict[str, str]]:
    """The layers, what diffusers notes of them, and what stablerep-adapt notes of the model."""
    layers: dict[str, LoraLayer] = {}
    try:
        with safe_open(path, framework="pt") as file:
            made_for = file.metadata() or {}
            metadata = json.loads(made_for.get("lora_adapter_metadata") or "{}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if not isinstance(metadata, dict):
            raise ValueError("its lora_adapter_metadata is no mapping")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"--lora {text} cannot be read: {' '.join(str(error).split())}") from error
    for key, tensor in tensors.items():
        if found := KEY.fullmatch(key):
            layer = layers.setdefault(found["layer"], LoraLayer(key))
            layer.matrices[ROLES[found["peft"] or found["older"]]] = tensor
        elif found := HADAMARD_KEY.fullmatch(key):
            layers.setdefault(found["layer"], LoraLayer(key)).matrices[found["role"]] = tensor
        elif found := MAGNITUDE.fullmatch(key):
            layer = layers.setdefault(found["layer"], LoraLayer(key))
            layer.magnitude = tensor
            layer.per_input = bool(found["lycoris"]) and tensor.ndim > 1 and len(tensor) == 1
        elif found := ALPHA.fullmatch(key):
            layers.setdefault(found["layer"], LoraLayer(key)).alpha = float(tensor)
        else:
            raise UserError(f"--lora {text}: {key} is no weight of a LoRA, LoHa or DoRA of diffusers or kohya")
    if not layers:
        raise UserError(f"--lora {text} is empty")
    return layers, metadata, made_for


def _whose(made_for: Mapping[str, str]) -> str:
    """What a line says of the model that stablerep-adapt made a file for."""
    return f"; it was made for {made_for['base_model']}" if "base_model" in made_for else ""


def _find(layer: str, flat: Mapping[str, Mapping[str, str]], text: str, key: str, whose: str) -> tuple[str, str]:
    """The module ("unet") and the name in it of a layer as a file spells it; whose ends the line that refuses."""
    dotted, _, rest = layer.partition(".")
    kohya = next((word for word in KOHYA_PREFIXES if not rest and layer.startswith(word + "_")), None)
    prefix, name = (KOHYA_PREFIXES[kohya], layer[len(kohya) + 1 :]) if kohya else (dotted, rest)
    if prefix not in flat:
        raise UserError(
            f"--lora {text} does not fit the model: {key} is for none of its parts ({', '.join(flat)}){whose}"
        )
    name = name.replace(".processor.", ".").replace(".", "_")
    # Old spellings: to_out stands for its first layer; text encoders have gained and lost a level of nesting.
    spellings = (name, name + "_0", name.removeprefix("text_model_"), "text_model_" + name)
    for spelling in spellings:
        if spelling in flat[prefix]:
            return prefix, flat[prefix][spelling]
    raise UserError(f"--lora {text} does not fit the model: its {prefix} has no layer for {key}{whose}")


def _flat_names(module: nn.Module) -> dict[str, str]:
    """kohya's spelling of each layer that can take a LoRA, to its own."""
    names = (name for name, layer in module.named_modules() if _weight_of(layer) is not None)
    return {name.replace(".", "_"): name for name in names}


def _sgm_names(unet: Any) -> dict[str, str]:
    """kohya's spelling of SGM's name of each layer of a UNet, as trainers of SDXL write it, to diffusers' own."""
    names = {_sgm_name(name, unet): name for name in _flat_names(unet).values()}
    return {spelled: name for spelled, name in names.items() if spelled}


def _sgm_name(name: str, unet: Any) -> str:
    """ "" for a layer that SGM has not, or names alike."""
    per_block = unet.config.layers_per_block
    if (found := BLOCK.fullmatch(name)) is None or not isinstance(per_block, int):
        return OUTER_IN_SGM.get(name, "")
    block, number, rest = int(found["block"] or 0), int(found["number"]), found["rest"]
    if found["kind"] == "resnets":
        rest = RESNET_IN_SGM.get(rest, rest)
    inner = ("resnets", "attentions").index(found["kind"]) if found["kind"] in ("resnets", "attentions") else None
    if found["side"] == "mid_block":
        place = f"middle_block_{2 * number + (inner or 0)}"
    elif found["side"] == "down_blocks":
        if inner is None:
            return f"input_blocks_{(block + 1) * (per_block + 1)}_0_op"
        place = f"input_blocks_{block * (per_block + 1) + number + 1}_{inner}"
    else:
        if inner is None:
            attends = hasattr(unet.up_blocks[block], "attentions")
            return f"output_blocks_{block * (per_block + 1) + per_block}_{2 if attends else 1}_conv"
        place = f"output_blocks_{block * (per_block + 1) + number}_{inner}"
    return f"{place}_{rest}".replace(".", "_")


def _weight_of(layer: nn.Module) -> Tensor | None:
    return layer.weight if isinstance(layer, nn.Linear | nn.Conv2d) else None


def _scale(layer: LoraLayer, prefix: str, name: str, metadata: dict[str, Any]) -> float:
    """alpha / rank; 1 where neither the file's tensors nor its metadata say an alpha, as diffusers takes it."""
    alpha = layer.alpha
    if alpha is None:
        patterns: dict[str, float] = metadata.get(f"{prefix}.alpha_pattern") or {}
        own = next((value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", name)), None)
        alpha = metadata.get(f"{prefix}.lora_alpha") if own is None else own
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(layer.rank) if metadata.get(f"{prefix}.use_rslora") else layer.rank)
