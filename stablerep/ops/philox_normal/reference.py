"""Philox4x32-10 (Salmon et al., SC 2011) and Box-Muller in plain torch, in float64 before the last rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOW = 0xFFFFFFFF


def philox4x32_10(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four counter words to four random words, each a 32-bit number held in int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # An int64 product wraps, but its 64 bits are those of the unsigned one.
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = (product1 >> 32 & LOW) ^ c1 ^ k0, product1 & LOW
        c2, c3 = (product0 >> 32 & LOW) ^ c3 ^ k1, product0 & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return c0, c1, c2, c3


def normal_pair(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    u1 = ((radius_word >> 8) + 1).double() * 2.0**-24
    u2 = (angle_word >> 8).double() * 2.0**-24
    radius = torch.sqrt(-2 * torch.log(u1))
    return radius * torch.cos(2 * math.pi * u2), radius * torch.sin(2 * math.pi * u2)


def philox_normal(seed: int, prompt_ids: Tensor, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """prompt_ids, indices [B] -> [B, *shape]; block b of an image gives its flat elements 4b .. 4b+3."""
    size = math.prod(shape)
    block = torch.arange((size + 3) // 4, device=prompt_ids.device).expand(len(prompt_ids), -1)  # [B, ceil(size / 4)]
    prompt, index = prompt_ids[:, None], indices[:, None]
    words = philox4x32_10((block, index & LOW, prompt & LOW, prompt >> 32 & LOW), (seed & LOW, seed >> 32))
    normals = torch.stack([*normal_pair(*words[:2]), *normal_pair(*words[2:])], dim=-1)  # [B, blocks, 4]
    return normals.flatten(1)[:, :size].float().reshape(len(prompt_ids), *shape)
