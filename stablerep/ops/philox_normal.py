"""Normal noise of images that does not depend on batch, rank, engine or device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from stablerep import native
from stablerep.ops import impls

Impl = Literal["auto", "native", "reference"]
IMPLS = {"native": native.why_not, "reference": impls.anywhere}
LOW = 0xFFFFFFFF  # the low 32 bits


def philox_normal(
    seed: int,  # 0 .. 2^64 - 1
    prompt_ids: Tensor,  # [B] int64
    indices: Tensor,  # [B] int64, image number within the prompt; its low 32 bits count
    shape: tuple[int, ...],  # of one image
    device: torch.device | str | None = None,  # of the result; None: where prompt_ids lies
    impl: Impl = "auto",
) -> Tensor:  # [B, *shape] float32
    """Standard normal noise, for each image a pure function of (seed, prompt id, index): Philox4x32-10 and Box-Muller.

    Implementations and devices agree to 1e-6. Values lie within 5.77 standard deviations. Not differentiable.
    Never waits for the device, except to copy prompt_ids or indices from another one.

    Raises:
        ValueError: prompt_ids and indices are not one-dimensional of one length, seed or shape is out of range.
        TypeError: prompt_ids or indices is not int64.
        ImplUnavailable: impl cannot run on that device.
    """
    if prompt_ids.ndim != 1 or prompt_ids.shape != indices.shape:
        raise ValueError(f"prompt_ids and indices must be [B], got {list(prompt_ids.shape)} and {list(indices.shape)}")
    if prompt_ids.dtype != torch.int64 or indices.dtype != torch.int64:
        raise TypeError(f"prompt_ids and indices must be int64, got {prompt_ids.dtype} and {indices.dtype}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in 0 .. 2^64 - 1, got {seed}")
    if any(size < 0 for size in shape):
        raise ValueError(f"shape must not be negative, got {shape}")
    target = prompt_ids.device if device is None else torch.device(device)
    signed = seed if seed < 2**63 else seed - 2**64  # torch.library's integers have 64 bits and a sign
    return _philox_normal(signed, prompt_ids.to(target), indices.to(target), shape, impl)


def philox4x32_10(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four counter words to four random words, each a 32-bit number held in int64 (Salmon et al., SC 2011)."""
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
    """Box-Muller in float64."""
    u1 = ((radius_word >> 8) + 1).double() * 2.0**-24
    u2 = (angle_word >> 8).double() * 2.0**-24
    radius = torch.sqrt(-2 * torch.log(u1))
    return radius * torch.cos(2 * math.pi * u2), radius * torch.sin(2 * math.pi * u2)


def reference(seed: int, prompt_ids: Tensor, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """prompt_ids, indices [B] -> [B, *shape]; block b of an image gives its flat elements 4b .. 4b+3."""
    size = math.prod(shape)
    block = torch.arange((size + 3) // 4, device=prompt_ids.device).expand(len(prompt_ids), -1)  # [B, ceil(size / 4)]
    prompt, index = prompt_ids[:, None], indices[:, None]
    words = philox4x32_10((block, index & LOW, prompt & LOW, prompt >> 32 & LOW), (seed & LOW, seed >> 32))
    normals = torch.stack([*normal_pair(*words[:2]), *normal_pair(*words[2:])], dim=-1)  # [B, blocks, 4]
    return normals.flatten(1)[:, :size].float().reshape(len(prompt_ids), *shape)


def _native(seed: int, prompt_ids: Tensor, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """csrc/noise.cpp and .cu."""
    prompt_ids, indices = prompt_ids.contiguous(), indices.contiguous()
    out = torch.empty((len(prompt_ids), *shape), dtype=torch.float32, device=prompt_ids.device)
    sizes = len(prompt_ids), math.prod(shape)
    if out.is_cuda:
        stream = torch.cuda.current_stream(out.device).cuda_stream
        native.module().philox_normal_cuda(
            seed, prompt_ids.data_ptr(), indices.data_ptr(), *sizes, out.data_ptr(), out.device.index, stream
        )
    else:
        native.module().philox_normal(
            seed, prompt_ids.data_ptr(), indices.data_ptr(), *sizes, out.data_ptr(), torch.get_num_threads()
        )
    return out


@torch.library.custom_op(
    "stablerep::philox_normal",
    mutates_args=(),
    schema="(SymInt seed, Tensor prompt_ids, Tensor indices, SymInt[] shape, str impl) -> Tensor",
)
def _philox_normal(seed: int, prompt_ids: Tensor, indices: Tensor, shape: Sequence[int], impl: str) -> Tensor:
    chosen = impls.choose("philox_normal", impl, prompt_ids.device.type, IMPLS)
    fill = _native if chosen == "native" else reference
    return fill(seed % 2**64, prompt_ids, indices, tuple(shape))


@_philox_normal.register_fake
def _(seed, prompt_ids, indices, shape, impl):
    return prompt_ids.new_empty((prompt_ids.shape[0], *shape), dtype=torch.float32)
