"""The last step of generation: pictures as the VAE leaves them to bytes, where the consumer wants them."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stablerep import native
from stablerep.ops import impls

Impl = Literal["auto", "native", "reference"]
IMPLS = {"native": native.why_not, "reference": impls.anywhere}
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


def geometry(height: int, width: int, image_size: int | None) -> tuple[int, int, int, int]:
    """The size to resize to, and rows and columns of it that the centre crop leaves out at the top and the left."""
    if image_size is None:
        return height, width, 0, 0
    scale = image_size / min(height, width)
    resized = [max(image_size, round(side * scale)) for side in (height, width)]
    return resized[0], resized[1], (resized[0] - image_size) // 2, (resized[1] - image_size) // 2


def reference(images: Tensor, image_size: int | None) -> Tensor:
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


def reference_into(images: Tensor, image_size: int | None, out: Tensor, slots: Tensor) -> None:
    """Picture b into out[slots[b]]: slots outside the pool are passed over, of equal ones the last counts."""
    slot = torch.where((slots >= 0) & (slots < len(out)), slots, len(out))  # one slot more takes what is passed over
    nobody = slot.new_full((len(out) + 1,), -1)
    writer = nobody.scatter_reduce(0, slot, torch.arange(len(slot), device=slot.device), "amax")[:-1]
    if len(slot) > 0:
        pixels = reference(images, image_size).index_select(0, writer.clamp(min=0))
        out.copy_(pixels.where((writer >= 0)[:, None, None, None], out))


def _check(images: Tensor, image_size: int | None) -> None:
    if images.dtype not in impls.DTYPES:
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


def _native(images: Tensor, image_size: int | None) -> Tensor:
    height, width = images.shape[-2:] if image_size is None else (image_size, image_size)
    out = torch.empty((len(images), height, width, 3), dtype=torch.uint8, device=images.device)
    _native_into(images, image_size, out, None)
    return out


def _native_into(images: Tensor, image_size: int | None, out: Tensor, slots: Tensor | None) -> None:
    """csrc/to_pixels.cpp and .cu; without slots picture b goes into out[b]."""
    channels_last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
    if not channels_last:
        images = images.contiguous()
    slots = None if slots is None else slots.contiguous()
    height, width = images.shape[-2:]
    module = native.module()
    call = module.ToPixels(
        images.data_ptr(),
        out.data_ptr(),
        0 if slots is None else slots.data_ptr(),
        len(images),
        len(out),
        (height, width),
        geometry(height, width, image_size),
        (out.shape[1], out.shape[2]),
        channels_last,
        impls.DTYPES.index(images.dtype),
    )
    if images.is_cuda:
        stream = torch.cuda.current_stream(images.device).cuda_stream
        module.to_pixels_cuda(call, images.device.index, stream)
    else:
        module.to_pixels(call, torch.get_num_threads())


@torch.library.custom_op(
    "stablerep::to_pixels", mutates_args=(), schema="(Tensor images, SymInt? image_size, str impl) -> Tensor"
)
def _to_pixels(images: Tensor, image_size: int | None, impl: str) -> Tensor:
    chosen = impls.choose("to_pixels", impl, images.device.type, IMPLS)
    return (_native if chosen == "native" else reference)(images, image_size)


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
    (_native_into if chosen == "native" else reference_into)(images, image_size, out, slots)


@_to_pixels_into.register_fake
def _(images, image_size, out, slots, impl):
    return None
