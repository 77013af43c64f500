"""Pictures of any size to augmented, normalised ones of one size, as a pure function of their keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from stablerep import native
from stablerep.ops import impls
from stablerep.ops.strong_augment import _native, draws, reference
from stablerep.ops.strong_augment.spec import AugmentSpec

Impl = Literal["auto", "native", "reference"]
IMPLS = {"native": native.why_not, "reference": impls.anywhere}
MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last)
MOST_SIDE = 2**16

__all__ = ["AugmentSpec", "strong_augment"]


def strong_augment(
    images: Tensor | Sequence[Tensor],  # uint8 [B, H, W, 3], or B of uint8 [H_i, W_i, 3]; all on one device
    keys: Tensor,  # [B, 3] int64 epoch, image, view; of each the low 32 bits count
    spec: AugmentSpec,
    impl: Impl = "auto",
    memory_format: torch.memory_format = torch.contiguous_format,  # or torch.channels_last
    threads: int | None = None,  # on the CPU; None: as many as torch uses
) -> Tensor:  # [B, 3, S, S] of spec.dtype
    """StableRep's strong augmentation with torchvision's formulas; each result a pure function of picture, key, spec.

    In this order: with spec.downsample the short side to one of two sizes and back; random resized crop (antialiased
    bilinear) and flip; brightness, contrast, saturation and hue in random order; grey; Gaussian blur of radius
    ceil(3 sigma), mirrored at the edges; (colour - mean) / std. All in float: nothing is rounded to 8 bits in between.
    Everything is drawn from Philox4x32-10 of (spec.seed; epoch, image, view): see draws.py.

    Implementations and devices draw the same bits and agree to 2e-5 of the range of colours, before normalisation; on
    one device native results depend on neither the batch nor the number of threads. Not differentiable. A picture that
    is not contiguous is copied first. Native code never waits for the device, whether keys lie there or on the CPU
    (from where they go through pinned memory); the reference does.

    Raises:
        ValueError: a shape is wrong, a picture has no pixels or more than 65,536 on a side, keys are not as many as
            pictures, the pictures lie on several devices, another memory_format, or threads below 1.
        TypeError: images are not uint8, or keys not int64.
        ImplUnavailable: impl cannot run on that device.
    """
    stack = [images] if isinstance(images, Tensor) else list(images)
    _check_images(stack, 4 if isinstance(images, Tensor) else 3)
    number = len(images)
    if keys.shape != (number, 3):
        raise ValueError(f"strong_augment: keys must be [{number}, 3] for {number} images, got {list(keys.shape)}")
    if keys.dtype != torch.int64:
        raise TypeError(f"strong_augment: keys must be int64, got {keys.dtype}")
    if memory_format not in MEMORY_FORMATS:
        raise ValueError(f"strong_augment: memory_format must be one of {MEMORY_FORMATS}, got {memory_format}")
    if threads is not None and threads < 1:
        raise ValueError(f"strong_augment: threads must be at least 1, got {threads}")
    device = stack[0].device if stack else keys.device
    if keys.device != device:
        if keys.device.type == "cpu" and device.type == "cuda":
            keys = keys.pin_memory()
        keys = keys.to(device, non_blocking=True)
    if number == 0:
        shape = (0, 3, spec.image_size, spec.image_size)
        return torch.empty(shape, dtype=spec.dtype, device=device, memory_format=memory_format)
    channels_last = memory_format == torch.channels_last
    # The seed as a signed number: what a schema's int holds.
    seed = spec.seed - (spec.seed >> 63 << 64)
    return _strong_augment(stack, keys, spec.numbers(), seed, spec.dtype, channels_last, threads or 0, impl)


@torch.library.custom_op("stablerep::strong_augment", mutates_args=())
def _strong_augment(
    images: Sequence[Tensor],
    keys: Tensor,
    numbers: Sequence[float],
    seed: int,
    dtype: torch.dtype,
    channels_last: bool,
    threads: int,  # 0: as many as torch uses
    impl: str,
) -> Tensor:
    spec = AugmentSpec.from_numbers(numbers, dtype, seed % 2**64)
    memory_format = MEMORY_FORMATS[channels_last]
    images = [image.contiguous() for image in images]
    if impls.choose("strong_augment", impl, keys.device.type, IMPLS) == "native":
        packed = _native.draw(images, keys, spec)
        return _native.apply(images, packed, spec, memory_format, threads or torch.get_num_threads())
    pictures = list(images[0]) if images[0].ndim == 4 else images
    sizes = torch.tensor([picture.shape[:2] for picture in pictures], device=keys.device)
    params = draws.draw(spec, keys, sizes)
    return reference.strong_augment(pictures, params, spec).to(spec.dtype).contiguous(memory_format=memory_format)


@_strong_augment.register_fake
def _(
    images: Sequence[Tensor],
    keys: Tensor,
    numbers: Sequence[float],
    seed: int,
    dtype: torch.dtype,
    channels_last: bool,
    threads: int,  # 0: as many as torch uses
    impl: str,
) -> Tensor:
    shape = (keys.shape[0], 3, int(numbers[0]), int(numbers[0]))
    return keys.new_empty(shape, dtype=dtype).contiguous(memory_format=MEMORY_FORMATS[channels_last])


def _check_images(images: list[Tensor], ndim: int) -> None:
    for i, image in enumerate(images):
        name = "images" if ndim == 4 else f"images[{i}]"
        if image.ndim != ndim or image.shape[-1] != 3:
            wanted = "[B, H, W, 3]" if ndim == 4 else "[H, W, 3]"
            raise ValueError(f"strong_augment: {name} must be {wanted}, got {list(image.shape)}")
        if image.dtype != torch.uint8:
            raise TypeError(f"strong_augment: {name} must be uint8, got {image.dtype}")
        height, width = image.shape[-3:-1]
        if not (0 < height <= MOST_SIDE and 0 < width <= MOST_SIDE):
            raise ValueError(f"strong_augment: {name} must have sides of 1 to {MOST_SIDE} pixels, got {height}x{width}")
        if image.device != images[0].device:
            raise ValueError(f"strong_augment: {name} lies on {image.device} and images[0] on {images[0].device}")
