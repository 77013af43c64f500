"""A trained encoder on disk: safetensors and a config.json that timm opens by itself.

    timm.create_model("local-dir:runs/a/exported", pretrained=True)

The input transform lies in the same config.json, as timm's own input_size, mean, std and interpolation.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from stablerep.config import UserError
from stablerep.models.encoder import InputTransform

WEIGHTS, CONFIG = "model.safetensors", "config.json"


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
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
    (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    for name in (WEIGHTS, CONFIG):
        with (partial / name).open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


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
