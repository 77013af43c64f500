"""Any timm model as an encoder, pictures in, one row of features each out; and its form on disk that timm opens.

    timm.create_model("local-dir:runs/a/exported", pretrained=True)

The input transform lies in the same config.json, as timm's own input_size, mean, std and interpolation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from stablerep import atomic
from stablerep.config import UserError
from stablerep.models.input_transform import InputTransform
from stablerep.models.pretrained import check_arch

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def create_encoder(arch: str, image_size: int, small_size: int | None = None) -> nn.Module:
    """A timm model with random weights and without classifier: [B, 3, image_size, image_size] to [B, num_features].

    Features are what timm pools for that model: the class token of a plain ViT, the average of a CNN. The model is
    timm's own, stem and all, so that plain timm opens what is exported. A stem made for 224 pixels sees little of a
    small picture: train those at a larger image_size, to which they are resized once. With small_size it takes pictures
    of that size too, for which a ViT's position embeddings are resized each time.

    Raises:
        UserError: timm has no such model, or it cannot take that size.
    """
    import timm

    check_arch(arch)
    options: dict[str, Any] = {}
    if timm.models.get_pretrained_cfg(arch.split(".")[0]).fixed_input_size:  # ViTs and their kin are built for one size
        options["img_size"] = image_size
    try:
        encoder = timm.create_model(arch, pretrained=False, num_classes=0, **options)
        check_forward(encoder, image_size)
    except (RuntimeError, ValueError, AssertionError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"--arch {arch} cannot be built for --image-size {image_size}: {reason}") from error
    if small_size:
        try:
            encoder = timm.create_model(arch, pretrained=False, num_classes=0, **options, **_any_size(options))
            check_forward(encoder, small_size)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"--arch {arch} takes no --local-crop-size {small_size}: {reason}") from error
    return encoder


def _any_size(options: Mapping[str, Any]) -> dict[str, bool]:
    return {"dynamic_img_size": True} if options else {}


def blocks_of(encoder: nn.Module) -> list[nn.Module]:
    """The parts that follow each other and are alike: a ViT's blocks, the bottlenecks of a ResNet; may be none."""
    blocks: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in encoder.modules():
        alike = len({type(child) for child in module.children()}) == 1
        if isinstance(module, nn.Sequential | nn.ModuleList) and alike and len(module) > 1 and module not in inside:
            blocks += module
            inside |= {part for block in module for part in block.modules()}
    return blocks


def set_activation_checkpointing(encoder: nn.Module, arch: str) -> None:
    """Let a timm model compute its activations again in the backward pass instead of keeping them.

    Raises:
        UserError: timm cannot do that for this model.
    """
    try:
        encoder.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, TypeError) as error:
        raise UserError(
            f"--activation-checkpointing: timm's {arch} cannot do that; leave it out, or take a smaller --batch-size"
        ) from error


def save_exported(
    encoder: nn.Module,
    arch: str,
    transform: InputTransform,
    folder: Path,
    initialized_from: str | None = None,
    save_beside: Callable[[Path], None] | None = None,
) -> None:
    """Write the encoder as a folder, whole or not at all; one already there is replaced.

    initialized_from says whose weights the training began with; None: random ones. save_beside writes into the folder
    what else belongs there.
    """
    size = transform.image_size
    known: dict[str, Any] = encoder.pretrained_cfg  # type: ignore[assignment]
    fixed = bool(known.get("fixed_input_size"))
    config: dict[str, Any] = {
        "architecture": arch.split(".")[0],
        "num_classes": 0,
        "num_features": encoder.num_features,
        "initialized_from": initialized_from,
        "bit_range": transform.bit_range,
        "model_args": {"img_size": size} if fixed else {},
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": fixed,
            "interpolation": transform.interpolation,
            "crop_pct": transform.crop_pct,
            "crop_mode": transform.crop_mode,
            "mean": list(transform.mean),
            "std": list(transform.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    with atomic.new_folder(folder) as new:
        save_file(weights, new / WEIGHTS, metadata={"format": "pt"})
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        if save_beside:
            save_beside(new)


def check_forward(encoder: nn.Module, image_size: int) -> None:
    """Run one black picture, so that a size the model cannot take is found before any work is done.

    Raises:
        ValueError, or what the model raises: it cannot take that size, or gives no rows of features.
    """
    patch = getattr(getattr(encoder, "patch_embed", None), "patch_size", None)
    if patch is not None and image_size % patch[0]:  # timm would leave out the pixels on the right and below
        raise ValueError(f"it sees patches of {patch[0]} pixels; choose a multiple of {patch[0]}")
    encoder.eval()
    with torch.no_grad():
        features = encoder(torch.zeros(1, 3, image_size, image_size))
    if features.dim() != 2:
        raise ValueError(f"it gives features of shape {tuple(features.shape[1:])}, not one row a picture")
    encoder.num_features = features.shape[1]  # some models pool to another width than timm's num_features says
    encoder.train()
