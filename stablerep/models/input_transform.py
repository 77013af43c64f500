"""From decoded pictures to what an encoder takes, in timm's terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional

from stablerep.config import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["bilinear", "bicubic"]
CropMode = Literal["squash", "center"]


@dataclass(frozen=True)
class InputTransform:
    """Resize, crop the centre, normalise. As it stands: what our own exports take, the whole picture made square."""

    image_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    crop_pct: float = 1.0
    """The resized picture has image_size / crop_pct pixels a side, of which the middle is taken."""
    crop_mode: CropMode = "squash"
    """`squash`: both sides are brought to that length. `center`: the short one is, the proportions stay."""
    bit_range: tuple[float, float] | None = None
    """Of pictures with more than 8 bits a channel, the values that become black and white; None: all of 16 bits."""

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a picture is brought to before the crop."""
        side = math.floor(self.image_size / self.crop_pct)  # timm's rounding, and torchvision's of the long side
        if self.crop_mode == "squash" or height == width:
            return side, side
        return (side, int(side * width / height)) if height < width else (int(side * height / width), side)

    def __call__(self, images: Tensor) -> Tensor:  # uint8 or wider [B, H, W, 3] -> float32 [B, 3, S, S]
        """Resize (antialiased where it shrinks), crop and normalise, on the device of the images."""
        pixels = self._eight_bits(images.permute(0, 3, 1, 2))
        size = self.resized(*pixels.shape[2:])
        if pixels.shape[2:] != size:
            pixels = functional.interpolate(pixels, size, mode=self.interpolation, antialias=True)
            if self.interpolation == "bicubic":
                pixels = pixels.clamp(0, 255)  # it overshoots at edges; uint8 pictures, as timm resizes them, cannot
        top, left = (round((side - self.image_size) / 2) for side in size)
        pixels = pixels[:, :, top : top + self.image_size, left : left + self.image_size]
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return (pixels / 255 - mean) / std

    def _eight_bits(self, pixels: Tensor) -> Tensor:  # -> float32, 0 to 255
        """As the loader of training reads them: what has more than 8 bits is brought to 256 levels by the range.

        Raises:
            ValueError: signed or floating point values, and no bit_range.
        """
        if pixels.dtype == torch.uint8:
            return pixels.float()
        if self.bit_range is None and pixels.dtype != torch.uint16:
            raise ValueError(
                f"pictures of {pixels.dtype} need a bit_range; dataclasses.replace(transform, bit_range=...)"
            )
        low, high = self.bit_range or (0.0, 65_535.0)
        return ((pixels.float() - low) * (255 / (high - low))).round().clamp(0, 255)

    @classmethod
    def from_timm(cls, data_config: Mapping[str, Any]) -> InputTransform:
        """From what timm.data.resolve_data_config says of a model.

        Raises:
            UserError: the model takes other pictures than square ones of three colours, or crops in a way of its own.
        """
        channels, height, width = data_config["input_size"]
        if channels != 3 or height != width:
            raise UserError(
                f"it takes pictures of {channels} x {height} x {width}; only 3 x S x S can be measured here"
            )
        for name, known in (("interpolation", ("bilinear", "bicubic")), ("crop_mode", ("squash", "center"))):
            if data_config[name] not in known:
                raise UserError(f"its {name} is {data_config[name]}; only {' and '.join(known)} can be had here")
        return cls(
            height,
            cast(tuple[float, float, float], tuple(data_config["mean"])),
            cast(tuple[float, float, float], tuple(data_config["std"])),
            data_config["interpolation"],
            data_config["crop_pct"],
            data_config["crop_mode"],
        )
