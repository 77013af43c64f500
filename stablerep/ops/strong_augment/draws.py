"""What is drawn for each picture, in torch: csrc/augment_draws.h gives the same bits.

A picture's numbers are Philox4x32-10 blocks of counter (2^31 + block, view, image, epoch) under the seed as key. The
2^31 keeps them apart from philox_normal's under the same seed, whose first word counts blocks of four elements.

    block 0: chances of flip, jitter, grey, blur       block 3: top, left of the crop
    block 1: brightness, contrast, saturation, hue     block 4 .. 8: area, ratio; area, ratio of the ten tries
    block 2: order, sigma, chance and size of downsampling
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from stablerep.ops.philox_normal import LOW, philox4x32_10
from stablerep.ops.strong_augment.spec import AugmentSpec

WORDS = 16  # of csrc/augment.h: AugmentParams
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
TRIES = 10


@dataclass(frozen=True)
class AugmentParams:
    box: Tensor  # [B, 4] int32 top, left, height, width of the crop
    flip: Tensor  # [B] int32, 1: mirrored
    small_side: Tensor  # [B] int32 that the short side is brought to and back before the crop; 0: is not
    grey: Tensor  # [B] int32, 1: colour is taken away
    order: Tensor  # [B, 4] int32 which of the four comes first, second, ...
    brightness: Tensor  # [B] float32 factor; 1: left out
    contrast: Tensor  # [B] float32 factor; 1: left out
    saturation: Tensor  # [B] float32 factor; 1: left out
    hue: Tensor  # [B] float32 part of the circle; 0: left out
    blur_sigma: Tensor  # [B] float32; 0: no blur

    def pack(self) -> Tensor:  # [B, WORDS] int32
        """As native code reads them."""
        order = (self.order << torch.arange(0, 32, 8, device=self.order.device, dtype=torch.int32)).sum(1)
        numbers = (self.brightness, self.contrast, self.saturation, self.hue, self.blur_sigma)
        words = [self.flip, self.small_side, self.grey, order, *(number.view(torch.int32) for number in numbers)]
        packed = torch.stack([*self.box.unbind(1), *(word.to(torch.int32) for word in words)], dim=1)
        return torch.nn.functional.pad(packed, (0, WORDS - packed.shape[1]))

    @staticmethod
    def unpack(packed: Tensor) -> AugmentParams:
        shifts = torch.arange(0, 32, 8, device=packed.device, dtype=torch.int32)
        order = packed[:, 7, None] >> shifts & 0xFF
        numbers = packed[:, 8:13].contiguous().view(torch.float32).unbind(1)
        return AugmentParams(packed[:, :4], packed[:, 4], packed[:, 5], packed[:, 6], order, *numbers)


def draw(spec: AugmentSpec, keys: Tensor, sizes: Tensor) -> AugmentParams:
    """keys [B, 3] int64 epoch, image, view; sizes [B, 2] int64 height, width."""

    def words(block: int) -> tuple[Tensor, ...]:
        epoch, image, view = (keys & LOW).unbind(1)
        first = torch.full_like(epoch, 0x80000000 + block)
        return philox4x32_10((first, view, image, epoch), (spec.seed & LOW, spec.seed >> 32))

    chance, colour, more = words(0), words(1), words(2)
    jitter = unit(chance[1]) < spec.jitter

    def jittered(word: Tensor, low: float, high: float, otherwise: float) -> Tensor:
        return torch.where(jitter, between(word, low, high), otherwise).float()

    def factor(word: Tensor, strength: float) -> Tensor:
        return jittered(word, max(0.0, 1.0 - strength), 1.0 + strength, 1.0)

    orders = torch.tensor(list(itertools.permutations(range(4))), device=keys.device, dtype=torch.int32)
    sigma = between(more[1], *spec.blur_sigma).float()
    side = torch.where(below(more[3], 2) == 1, spec.downsample_sizes[1], spec.downsample_sizes[0])
    shrinks = (unit(more[2]) < spec.downsample) & (side < sizes.amin(1))
    return AugmentParams(
        box=_box(spec, [words(4 + block) for block in range(TRIES // 2)], words(3), sizes),
        flip=(unit(chance[0]) < spec.flip).int(),
        small_side=torch.where(shrinks, side, 0).int(),
        grey=(unit(chance[2]) < spec.grey).int(),
        order=orders[below(more[0], 24)],
        brightness=factor(colour[0], spec.brightness),
        contrast=factor(colour[1], spec.contrast),
        saturation=factor(colour[2], spec.saturation),
        hue=jittered(colour[3], -spec.hue, spec.hue, 0.0),
        blur_sigma=torch.where(unit(chance[3]) < spec.blur, sigma, 0.0),
    )


def unit(word: Tensor) -> Tensor:  # [0, 1) in steps of 2^-24
    return (word >> 8).double() * 2.0**-24


def between(word: Tensor, low: float, high: float) -> Tensor:
    return low + unit(word) * (high - low)


def below(word: Tensor, bound: Tensor | int) -> Tensor:  # 0 .. bound - 1
    return word * bound >> 32


def portable_exp(x: Tensor) -> Tensor:
    """exp for |x| < 12 to 1e-13, of products and sums alone: every library's own exp has other last bits."""
    z = x * (1.0 / 256.0)
    y = torch.ones_like(x)
    for i in range(9, 0, -1):
        y = 1.0 + z * y / i
    for _ in range(8):
        y = y * y
    return y


def _box(spec: AugmentSpec, tries: list[tuple[Tensor, ...]], place: tuple[Tensor, ...], sizes: Tensor) -> Tensor:
    """torchvision's RandomResizedCrop: the first of ten tries that fits, else the largest central crop."""
    height, width = sizes.double().unbind(1)
    in_ratio = width / height
    low, high = spec.ratio
    h = torch.where(in_ratio < low, torch.round(width / low).clamp(min=1), height)
    w = torch.where(in_ratio > high, torch.round(height * high).clamp(min=1), width)
    top, left = (sizes[:, 0] - h.long()) // 2, (sizes[:, 1] - w.long()) // 2
    for attempt in reversed(range(TRIES)):  # the earliest that fits is written last
        area_word, ratio_word = tries[attempt // 2][2 * (attempt % 2) :][:2]
        area = height * width * between(area_word, *spec.scale)
        ratio = portable_exp(between(ratio_word, *spec.log_ratio))
        try_w, try_h = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
        fits = (try_w >= 1) & (try_w <= width) & (try_h >= 1) & (try_h <= height)
        h, w = torch.where(fits, try_h, h), torch.where(fits, try_w, w)
        top = torch.where(fits, below(place[0], sizes[:, 0] - try_h.long() + 1), top)
        left = torch.where(fits, below(place[1], sizes[:, 1] - try_w.long() + 1), left)
    return torch.stack([top, left, h.long(), w.long()], dim=1).int()
