"""The last step of painting: pictures as the VAE leaves them to bytes, where the consumer wants them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stablerep import native
from stablerep.ops import impls
from stablerep.ops.to_pixels import _native, reference

Impl = Literal["auto", "native", "reference"]
IMPLS = {"native": native.why_not, "reference": impls.anywhere}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_SHRINKING = 64  # a CUDA block keeps the weights of its windows, twice as wide, in shared memory


def to_pixels(
    images: Tensor,  # [B, 3, H, W] float32, bfloat16 or float16, about -1..1; contiguous or channels_last
    image_size: int | None = None,  # S: the short side is resized to S with antialiasing, the centre cropped
    out: Tensor | None = None,  # [P, S, S, 3] uint8, a pool; needs slots
    slots: Tensor | None = None,  # [B] int64, where in the pool each picture goes
    impl: Impl = "auto",
) -> Tensor:  # [B, S, S, 3] uint8, or [B, H, W, 3] without image_size; or out itself
    """VAE output to grey levels: F.interpolate(antialias=True), crop, (x + 1) 127.5, round to even, clamp to 0..255.

    Implementations and devices agree but where a value lies between two levels to the last bit of a float. Infinity
    gives 0 or 255; NaN gives 0, after resizing: in every pixel whose window holds it.

    With out the pictures go straight into out[slots]. A slot outside 0 .. P-1 is passed over, of equal slots the last
    picture counts; both without asking the host. Not differentiable. Never waits for the device.

    Raises:
        ValueError: shapes do not fit, out without slots, tensors on two devices, a picture made over 64 times smaller.
        TypeError: a dtype other than these.
        ImplUnavailable: impl cannot run on that device.
    """
    _check(images, image_size)
    if out is None and slots is None:
        return _to_pixels(images, image_size, impl)
    if out is None or slots is None:
        raise ValueError("to_pixels: out and slots belong together, got one of them")
    _check_pool(images, image_size, out, slots)
    _to_pixels_into(images, image_size, out, slots, impl)
    return out


def _check(images: Tensor, image_size: int | None) -> None:
    if images.dtype not in DTYPES:
        raise TypeError(f"to_pixels: images must be float32, bfloat16 or float16, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] == 0 or images.shape[3] == 0:
        raise ValueError(f"to_pixels: images must be [B, 3, H, W], got {list(images.shape)}")
    if image_size is not None and not min(images.shape[2:]) <= MOST_SHRINKING * image_size:
        raise ValueError(
            f"to_pixels: image_size must be at least 1/{MOST_SHRINKING} of {min(images.shape[2:])}, got {image_size}"
        )


def _check_pool(images: Tensor, image_size: int | None, out: Tensor, slots: Tensor) -> None:
    size = images.shape[2:] if image_size is None else (image_size, image_size)
    if out.dtype != torch.uint8 or slots.dtype != torch.int64:
        raise TypeError(f"to_pixels: out must be uint8 and slots int64, got {out.dtype} and {slots.dtype}")
    if out.ndim != 4 or out.shape[1:] != (*size, 3) or not out.is_contiguous():
        raise ValueError(
            f"to_pixels: out must be [P, {size[0]}, {size[1]}, 3] and contiguous, "
            f"got {list(out.shape)} with strides {list(out.stride())}"
        )
    if slots.shape != images.shape[:1]:
        raise ValueError(f"to_pixels: slots must be [{images.shape[0]}], got {list(slots.shape)}")
    if not images.device == out.device == slots.device:
        raise ValueError(
            f"to_pixels: out and slots must lie on {images.device} as images do, got {out.device} and {slots.device}"
        )


@torch.library.custom_op(
    "stablerep::to_pixels", mutates_args=(), schema="(Tensor images, SymInt? image_size, str impl) -> Tensor"
)
def _to_pixels(images: Tensor, image_size: int | None, impl: str) -> Tensor:
    chosen = impls.choose("to_pixels", impl, images.device.type, IMPLS)
    return (_native if chosen == "native" else reference).to_pixels(images, image_size)


@_to_pixels.register_fake
def _(images, image_size, impl):
    height, width = images.shape[2:] if image_size is None else (image_size, image_size)
    return images.new_empty((images.shape[0], height, width, 3), dtype=torch.uint8)


@torch.library.custom_op(
    "stablerep::to_pixels_into",
    mutates_args=("out",),
    schema="(Tensor images, SymInt? image_size, Tensor(a!) out, Tensor slots, str impl) -> ()",
)
def _to_pixels_into(images: Tensor, image_size: int | None, out: Tensor, slots: Tensor, impl: str) -> None:
    chosen = impls.choose("to_pixels", impl, images.device.type, IMPLS)
    (_native if chosen == "native" else reference).to_pixels_into(images, image_size, out, slots)


@_to_pixels_into.register_fake
def _(images, image_size, out, slots, impl):
    return None
