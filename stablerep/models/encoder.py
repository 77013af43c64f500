"""Any timm model as an encoder, pictures in, one row of features each out; and its form on disk that timm opens.

    timm.create_model("local-dir:runs/a/exported", pretrained=True)

The input transform lies in the same config.json, as timm's own input_size, mean, std and interpolation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from stablerep import atomic
from stablerep.config import UserError, check_choice

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class InputTransform:
    """From decoded pictures to what an encoder takes."""

    image_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __call__(self, images: Tensor) -> Tensor:  # uint8 [B, H, W, 3] -> float32 [B, 3, S, S]
        """Resize (bilinear, antialiased where it shrinks) and normalise, on the device of the images."""
        pixels = images.permute(0, 3, 1, 2).float()
        size = (self.image_size, self.image_size)
        if pixels.shape[2:] != size:
            pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return (pixels / 255 - mean) / std


def create_encoder(arch: str, image_size: int, pretrained: bool = False) -> nn.Module:
    """A timm model without classifier: [B, 3, image_size, image_size] to [B, num_features].

    Features are what timm pools for that model: the class token of a plain ViT, the average of a CNN. The model is
    timm's own, stem and all, so that plain timm opens what is exported. A stem made for 224 pixels sees little of a
    small picture: train those at a larger image_size, to which they are resized once.

    Raises:
        UserError: timm has no such model, it cannot take that size, or its pretrained weights cannot be had.
    """
    import timm

    check_choice("--arch", arch.split(".")[0], timm.list_models())
    options: dict[str, Any] = {}
    if timm.models.get_pretrained_cfg(arch.split(".")[0]).fixed_input_size:  # ViTs and their kin are built for one size
        options["img_size"] = image_size
    try:
        encoder = timm.create_model(arch, pretrained=pretrained, num_classes=0, **options)
        _check_forward(encoder, image_size)
    except (RuntimeError, ValueError, AssertionError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"--arch {arch} cannot be built for --image-size {image_size}: {reason}") from error
    return encoder


def save_exported(encoder: nn.Module, arch: str, transform: InputTransform, folder: Path) -> None:
    """Write the encoder as a folder, whole or not at all; one already there is replaced."""
    size = transform.image_size
    known: dict[str, Any] = encoder.pretrained_cfg  # type: ignore[assignment]
    fixed = bool(known.get("fixed_input_size"))
    config: dict[str, Any] = {
        "architecture": arch.split(".")[0],
        "num_classes": 0,
        "num_features": encoder.num_features,
        "model_args": {"img_size": size} if fixed else {},
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": fixed,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
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


def load_encoder(path: Path) -> tuple[nn.Module, InputTransform]:
    """Open a trained encoder: a run folder, an exported folder, or a file in one. It comes in eval mode.

    Raises:
        UserError: there is no finished encoder there, or it is damaged.
    """
    import timm

    path = Path(path)
    folder = path.parent if path.is_file() else path
    if (folder / "exported").is_dir():
        folder = folder / "exported"
    if not (folder / CONFIG).is_file():
        if (folder / "checkpoints").is_dir():
            raise UserError(f"{folder} holds a run that has not ended; give stablerep-train the same --out to go on")
        raise UserError(f"{path} holds no trained encoder (no exported/{CONFIG}); give the --out of stablerep-train")
    try:
        about = json.loads((folder / CONFIG).read_text())["pretrained_cfg"]
        transform = InputTransform(about["input_size"][-1], tuple(about["mean"]), tuple(about["std"]))
        encoder = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} is damaged ({reason}); delete it and run stablerep-train again") from error
    return encoder.eval(), transform


def _check_forward(encoder: nn.Module, image_size: int) -> None:
    """Run one black picture, so that a size the model cannot take is found before any work is done."""
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
