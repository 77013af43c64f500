"""Weights of timm as the hub's client keeps them, without the hub."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn

COMMIT = "0" * 40


def in_cache(cache: Path, name: str) -> nn.Module:
    """Weights of timm/NAME as the hub's client keeps them."""
    torch.manual_seed(7)
    model = timm.create_model(name.partition(".")[0]).eval()
    folder = cache / f"models--timm--{name}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, snapshot / "model.safetensors")
    about = {"architecture": name.partition(".")[0], "num_classes": 1000}
    (snapshot / "config.json").write_text(json.dumps(about | {"pretrained_cfg": model.pretrained_cfg}, default=str))
    return model
