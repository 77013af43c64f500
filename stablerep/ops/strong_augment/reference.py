"""Strong augmentation of one picture at a time as torchvision computes it on float tensors, in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stablerep.ops.strong_augment.draws import BRIGHTNESS, CONTRAST, HUE, SATURATION, AugmentParams
from stablerep.ops.strong_augment.spec import AugmentSpec


def strong_augment(
    pictures: list[Tensor],  # [H_i, W_i, 3] uint8
    params: AugmentParams,
    spec: AugmentSpec,
    compute: torch.dtype = torch.float32,
) -> Tensor:  # [B, 3, S, S] of compute
    """Resize, crop, colours, grey, blur, flip, normalise; nothing is rounded to 8 bits in between."""
    result = torch.empty(len(pictures), 3, spec.image_size, spec.image_size, dtype=compute, device=params.flip.device)
    mean, std = (result.new_tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    for row, picture in enumerate(pictures):
        x = picture.permute(2, 0, 1).to(compute) / 255
        if small_side := int(params.small_side[row]):
            height, width = x.shape[1:]
            short = min(height, width)
            x = resize(resize(x, (height * small_side // short, width * small_side // short)), (height, width))
        top, left, height, width = params.box[row].tolist()
        x = resize(x[:, top : top + height, left : left + width], (spec.image_size, spec.image_size))
        for operation in params.order[row].tolist():
            x = change_colour(x, operation, params, row)
        if params.grey[row]:
            x = grey(x).expand(3, -1, -1)
        if (sigma := float(params.blur_sigma[row])) > 0:
            x = blur(x, sigma)
        if params.flip[row]:
            x = x.flip(2)
        result[row] = (x - mean) / std
    return result


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bilinear, as torch's interpolate; that of torch 2.14 gets a new width of 1 wrong."""
    for length in reversed(size):  # along the last axis, then along the other
        scale = x.shape[-1] / length
        centre = (torch.arange(length, device=x.device, dtype=torch.float64)[:, None] + 0.5) * scale
        pixel = torch.arange(x.shape[-1], device=x.device, dtype=torch.float64) + 0.5
        weights = (1 - (pixel - centre).abs() / max(scale, 1.0)).clamp(min=0)  # [length, old length]
        x = (x @ (weights / weights.sum(1, keepdim=True)).to(x.dtype).T).mT
    return x


def grey(x: Tensor) -> Tensor:  # [1, H, W]
    return (0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2])[None]


def change_colour(x: Tensor, operation: int, params: AugmentParams, row: int) -> Tensor:
    def blend(factor: float, other: Tensor | float) -> Tensor:
        return (factor * x + (1 - factor) * other).clamp(0, 1)

    if operation == BRIGHTNESS and (factor := float(params.brightness[row])) != 1:
        return blend(factor, 0.0)
    if operation == CONTRAST and (factor := float(params.contrast[row])) != 1:
        return blend(factor, grey(x).mean())
    if operation == SATURATION and (factor := float(params.saturation[row])) != 1:
        return blend(factor, grey(x))
    if operation == HUE and (turns := float(params.hue[row])) != 0:
        return turn_hue(x, turns)
    return x


def turn_hue(x: Tensor, turns: float) -> Tensor:
    """To HSV, the hue turned, and back; a channel is the value less its part of the range of the three."""
    r, g, b = x
    low, high = x.aminmax(dim=0)
    span = high - low
    divisor = torch.where(span > 0, span, 1)
    green_or_blue = torch.where(g == high, 2 + (b - r) / divisor, 4 + (r - g) / divisor)
    sixths = (torch.where(r == high, (g - b) / divisor, green_or_blue) + 6 * turns).remainder(6)
    part = [(sixths - 3).abs() - 1, 2 - (sixths - 2).abs(), 2 - (sixths - 4).abs()]
    return low + span * torch.stack(part).clamp(0, 1)


def blur(x: Tensor, sigma: float) -> Tensor:
    radius = math.ceil(3 * sigma)
    distance = torch.arange(-radius, radius + 1, device=x.device)
    weights = torch.softmax(-0.5 * (distance.to(x.dtype) / sigma) ** 2, dim=0)
    period = max(2 * (x.shape[-1] - 1), 1)  # of the picture mirrored at its outermost pixels, again and again
    at = (torch.arange(x.shape[-1], device=x.device)[:, None] + distance) % period
    at = torch.minimum(at, period - at)  # [S, taps]
    for _ in range(2):  # along the last axis, then along the other; the picture is square
        x = (x[:, :, at] @ weights).mT
    return x
