"""Pictures of a VAE to grey levels, as it is written on a whiteboard: resize, crop, round."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def geometry(height: int, width: int, image_size: int | None) -> tuple[int, int, int, int]:
    """The size to resize to, and rows and columns of it that the centre crop leaves out at the top and the left."""
    if image_size is None:
        return height, width, 0, 0
    scale = image_size / min(height, width)
    resized = [max(image_size, round(side * scale)) for side in (height, width)]
    return resized[0], resized[1], (resized[0] - image_size) // 2, (resized[1] - image_size) // 2


def to_pixels(images: Tensor, image_size: int | None) -> Tensor:
    """[B, 3, H, W], about -1..1, to [B, S, S, 3] uint8; without image_size [B, H, W, 3]."""
    images = images if images.dtype == torch.float64 else images.float()
    height, width, top, left = geometry(images.shape[-2], images.shape[-1], image_size)
    if images.shape[-2:] != (height, width):
        if width == 1:  # torch 2.14 on the CPU fills such columns with their first number, but not in this layout
            images = images.contiguous(memory_format=torch.channels_last)
        images = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)
    if image_size is not None:
        images = images[..., top : top + image_size, left : left + image_size]
    grey = images.add(1).mul(127.5).round().clamp(0, 255).nan_to_num(nan=0.0)
    return grey.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def to_pixels_into(images: Tensor, image_size: int | None, out: Tensor, slots: Tensor) -> None:
    """Picture b into out[slots[b]]: slots outside the pool are passed over, of equal ones the last counts."""
    slot = torch.where((slots >= 0) & (slots < len(out)), slots, len(out))  # one slot more takes what is passed over
    nobody = slot.new_full((len(out) + 1,), -1)
    writer = nobody.scatter_reduce(0, slot, torch.arange(len(slot), device=slot.device), "amax")[:-1]
    if len(slot) > 0:
        pixels = to_pixels(images, image_size).index_select(0, writer.clamp(min=0))
        out.copy_(pixels.where((writer >= 0)[:, None, None, None], out))
