"""What `make gpu-check` shows of where the time goes: the kernels that take most of a training and of a UNet step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.checks import Numbers
from benchmarks.gpu_generate import CUDA, SD15
from benchmarks.gpu_train import training_step

MOST_KERNELS = 15
STEPS = 3


def training_kernels() -> Numbers:
    """The kernels of a compiled ViT-B/16 training step, bfloat16, 384 pictures that lie on the device."""
    return heaviest_kernels(training_step(compile="on"))


@torch.inference_mode()
def unet_kernels() -> Numbers:
    """The kernels of Stable Diffusion 1.5's compiled UNet at 512, half precision, 16 pictures with guidance."""
    from diffusers import UNet2DConditionModel

    with CUDA:
        unet = UNet2DConditionModel(**{"block_out_channels": (320, 640, 1280, 1280)} | SD15.unet).half().eval()
        latents, text = torch.randn(32, 4, 64, 64).half(), torch.randn(32, *SD15.text).half()
        timestep = torch.tensor(500)
    unet = torch.compile(unet, dynamic=False)
    return heaviest_kernels(lambda: unet(latents, timestep, text))


def heaviest_kernels(step: Callable[[], Any]) -> Numbers:
    for _ in range(3):  # compiles, allocates
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    kernels = [each for each in profiled.key_averages() if each.device_type == DeviceType.CUDA]
    kernels.sort(key=lambda each: -each.self_device_time_total)
    total = sum(each.self_device_time_total for each in kernels)
    rows = [
        {
            "kernel": each.key[:120],
            "share": each.self_device_time_total / total,
            "ms": each.self_device_time_total / STEPS / 1e3,
            "calls": each.count / STEPS,
        }
        for each in kernels[:MOST_KERNELS]
    ]
    for row in rows:
        print(f"    {row['share']:6.1%} {row['ms']:8.3f} ms {row['calls']:6.0f} x  {row['kernel']}", flush=True)
    return {"ms_a_step": total / STEPS / 1e3, "rows": rows}
