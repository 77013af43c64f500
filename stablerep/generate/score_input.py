"""Pictures as a vision model of transformers wants them, made on the device that they are on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stablerep import hub
from stablerep.config import UserError

Prepare = Callable[[Tensor], Tensor]  # [B, H, W, 3] uint8 to [B, 3, h, w] float32, on the same device


def open_prepare(flag: str, folder: Path) -> Prepare:
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

    def prepare(pixels: Tensor) -> Tensor:
        made = processor(images=list(pixels), input_data_format="channels_last", return_tensors="pt")
        return made["pixel_values"]

    return prepare


def dtype_on(device: torch.device) -> torch.dtype:
    """As the painter's: half precision on CUDA."""
    return torch.float16 if device.type == "cuda" else torch.float32
