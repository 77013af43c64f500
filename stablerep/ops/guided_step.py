"""What happens between two calls of the UNet: guidance, x0, and the solver's update, in one pass."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stablerep import native
from stablerep.ops import impls

Impl = Literal["auto", "native", "reference"]
IMPLS = {"native": native.why_not, "reference": impls.anywhere}


def guided_step(
    latents: Tensor,  # [B, ...] float32, bfloat16 or float16
    output: Tensor,  # [2B, ...] of the UNet, without text and then with it; or [B, ...]: no guidance
    previous_x0: Tensor,  # [B, ...] of the latents' dtype, from the step before
    table: Tensor,  # [S, 5] float32: a, b, c, d, e of every step
    step: Tensor,  # [] int64, which row
    guidance_scale: Tensor,  # [] or [B] float32; without guidance it is not read
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:  # the next latents and x0, both [B, ...] of the latents' dtype
    """One step of a denoising solver that is linear in what it knows (DDIM, DPM-Solver++(2M), Euler).

    output <- lerp(without, with, guidance_scale), x0 = a latents + b output,
    latents <- c latents + d x0 + e previous_x0.

    All inputs lie on one device, the row's number too, so that a loop or a CUDA graph needs nothing from the host.
    output has the latents' dtype, or any of the three if latents are float32: float32 latents around a half precision
    UNet take the error of 50 steps to a fifth (DDIM, float16, exact denoiser of a mixture of Gaussians, median: 4e-4 to
    7e-5). x0's dtype alone changes nothing, so it is the latents'. Arithmetic is float32 and rounded once. Where e is 0
    previous_x0 is not read; a step outside 0 .. S-1 gives NaN. Results lie in the memory layout of output. Not
    differentiable: backward raises.

    Raises:
        ValueError: shapes do not fit, an empty table, or a tensor on another device.
        TypeError: a dtype other than these.
        ImplUnavailable: impl cannot run on that device.
    """
    _check(latents, output, previous_x0, table, step, guidance_scale)
    return torch.ops.stablerep.guided_step.default(latents, output, previous_x0, table, step, guidance_scale, impl)


def reference(
    latents: Tensor,  # [B, ...]
    output: Tensor,  # [2B, ...] without and with text, or [B, ...]
    previous_x0: Tensor,  # [B, ...]
    table: Tensor,  # [S, 5]
    step: Tensor,  # [] int64
    guidance_scale: Tensor,  # [] or [B]
) -> tuple[Tensor, Tensor]:
    """The step as on a whiteboard, in float32 (float64 for float64 latents) up to the rounding of both results."""
    exact = torch.promote_types(latents.dtype, torch.float32)
    x, predicted, before = latents.to(exact), output.to(exact), previous_x0.to(exact)
    row = table.to(exact).index_select(0, step.clamp(0, len(table) - 1).reshape(1))[0]
    a, b, c, d, e = row.where((step >= 0) & (step < len(table)), torch.nan)
    if len(output) != len(latents):
        without, with_text = predicted.chunk(2)
        scale = guidance_scale.to(exact).reshape(-1, *[1] * (latents.ndim - 1))
        predicted = torch.lerp(without, with_text, scale)
    x0 = a * x + b * predicted
    x = c * x + d * x0 + e * before.where(e != 0, 0)
    return x.to(latents.dtype), x0.to(latents.dtype)


def _check(
    latents: Tensor, output: Tensor, previous_x0: Tensor, table: Tensor, step: Tensor, guidance_scale: Tensor
) -> None:
    if latents.dtype not in impls.DTYPES or previous_x0.dtype != latents.dtype:
        raise TypeError(
            "guided_step: latents must be float32, bfloat16 or float16 and previous_x0 the same, "
            f"got {latents.dtype} and {previous_x0.dtype}"
        )
    if output.dtype != latents.dtype and (latents.dtype != torch.float32 or output.dtype not in impls.DTYPES):
        raise TypeError(f"guided_step: output must be {latents.dtype} as the latents are, got {output.dtype}")
    if table.dtype != torch.float32 or step.dtype != torch.int64 or guidance_scale.dtype != torch.float32:
        raise TypeError(
            "guided_step: table and guidance_scale must be float32 and step int64, "
            f"got {table.dtype}, {guidance_scale.dtype} and {step.dtype}"
        )
    if latents.ndim == 0 or previous_x0.shape != latents.shape:
        raise ValueError(
            "guided_step: latents and previous_x0 must be [B, ...], "
            f"got {list(latents.shape)} and {list(previous_x0.shape)}"
        )
    batch = latents.shape[0]
    if output.shape[1:] != latents.shape[1:] or output.shape[0] not in (batch, 2 * batch):
        raise ValueError(
            f"guided_step: output must be [2B, ...] or [B, ...] for latents {list(latents.shape)}, "
            f"got {list(output.shape)}"
        )
    if table.ndim != 2 or table.shape[0] == 0 or table.shape[1] != 5 or step.ndim != 0:
        raise ValueError(
            f"guided_step: table must be [S, 5] and step [], got {list(table.shape)} and {list(step.shape)}"
        )
    if guidance_scale.ndim != 0 and guidance_scale.shape != (batch,):
        raise ValueError(f"guided_step: guidance_scale must be [] or [{batch}], got {list(guidance_scale.shape)}")
    device = latents.device
    if not device == output.device == previous_x0.device == table.device == step.device == guidance_scale.device:
        others = {tensor.device for tensor in (output, previous_x0, table, step, guidance_scale)} - {device}
        raise ValueError(f"guided_step: all inputs must lie on {device} as latents do, got {others}")


def _layout(output: Tensor) -> torch.memory_format:
    """A UNet in channels_last says what it likes to be given next."""
    if output.ndim == 4 and not output.is_contiguous() and output.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _native(
    latents: Tensor, output: Tensor, previous_x0: Tensor, table: Tensor, step: Tensor, guidance_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """csrc/guided_step.cpp and .cu; latents, output and previous_x0 lie in one memory layout, without gaps."""
    table, guidance_scale = table.contiguous(), guidance_scale.contiguous()
    updated, x0 = torch.empty_like(latents), torch.empty_like(latents)
    batch = len(latents)
    module = native.module()
    call = module.GuidedStep(
        *(tensor.data_ptr() for tensor in (latents, output, previous_x0, table, step, guidance_scale, updated, x0)),
        batch,
        latents.numel() // max(1, batch),
        len(table),
        len(output) != batch,
        guidance_scale.ndim == 1,
        impls.DTYPES.index(latents.dtype),
        impls.DTYPES.index(output.dtype),
    )
    if latents.is_cuda:
        stream = torch.cuda.current_stream(latents.device).cuda_stream
        module.guided_step_cuda(call, latents.device.index, stream)
    else:
        module.guided_step(call, torch.get_num_threads())
    return updated, x0


def _run(
    latents: Tensor,
    output: Tensor,
    previous_x0: Tensor,
    table: Tensor,
    step: Tensor,
    guidance_scale: Tensor,
    impl: str,
) -> tuple[Tensor, Tensor]:
    chosen = impls.choose("guided_step", impl, latents.device.type, IMPLS)
    run = _native if chosen == "native" else reference
    layout = _layout(output)
    latents, output, previous_x0 = (
        tensor.contiguous(memory_format=layout) for tensor in (latents, output, previous_x0)
    )
    return run(latents, output, previous_x0, table, step, guidance_scale)


def _fake(latents, output, previous_x0, table, step, guidance_scale, impl):
    layout = _layout(output)
    return torch.empty_like(latents, memory_format=layout), torch.empty_like(latents, memory_format=layout)


def _backward(ctx, *gradients):
    raise NotImplementedError("guided_step is not differentiable")


# Not torch.library.custom_op, whose wrappers take 6 us a call where this takes 3; the step itself takes 9.
_LIBRARY = torch.library.Library("stablerep", "FRAGMENT")
_LIBRARY.define(
    "guided_step(Tensor latents, Tensor output, Tensor previous_x0, Tensor table, Tensor step, Tensor guidance_scale, "
    "str impl) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.impl("guided_step", _run, "CompositeExplicitAutograd")
torch.library.register_fake("stablerep::guided_step", _fake, lib=_LIBRARY)
torch.library.register_autograd("stablerep::guided_step", _backward, lib=_LIBRARY)
