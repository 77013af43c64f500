"""What `make gpu-check` asks of the networks alone: milliseconds of a UNet, a VAE and a training step, eager, compiled.

The ceilings of painting and training: what is lost beyond them is lost by our own loops.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.checks import Numbers
from benchmarks.gpu_generate import CUDA, SD15

BATCH = 16
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def milliseconds(run: Callable[[], Any], rounds: int = 5) -> float:
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / rounds * 1e3


@torch.inference_mode()
def sd15_modules() -> Numbers:
    """Stable Diffusion 1.5's UNet (16 pictures with guidance) and VAE at 512, half precision, each way to run them."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with CUDA:
        unet = UNet2DConditionModel(**{"block_out_channels": (320, 640, 1280, 1280)} | SD15.unet).half().eval()
        vae = AutoencoderKL(**SD15.vae).half().eval()
        latents = torch.randn(2 * BATCH, 4, 64, 64).half()
        text = torch.randn(2 * BATCH, *SD15.text).half()
        timestep = torch.tensor(500)
    numbers: Numbers = {}
    for how, layout in (("eager", "nchw"), ("eager", "nhwc"), ("compiled", "nhwc")):
        unet, vae = (module.to(memory_format=LAYOUTS[layout]) for module in (unet, vae))
        latents = latents.contiguous(memory_format=LAYOUTS[layout])
        predict: Any = unet if how == "eager" else torch.compile(unet, dynamic=False)
        decode: Any = vae.decode if how == "eager" else torch.compile(vae.decode, dynamic=False)
        unet_ms = milliseconds(partial(predict, latents, timestep, text))
        vae_ms = milliseconds(partial(decode, latents[:BATCH]))
        name = f"{how}_{layout}"
        numbers |= {f"unet_ms_{name}": unet_ms, f"vae_ms_{name}": vae_ms}
        numbers[f"images_per_second_{name}"] = BATCH * 1e3 / (50 * unet_ms + vae_ms)
    return numbers


def vit_step() -> Numbers:
    """Pictures per second of a ViT-B/16 training step, bfloat16, 768 at once, without data: eager and compiled."""
    from stablerep.data.loader import Batch
    from stablerep.train import loop
    from stablerep.train.config import TrainConfig
    from stablerep.train.optimiser import apply_gradients

    batch = 768
    config = TrainConfig(data=("none",), out=Path("none"), batch_size=batch, device="cuda")
    images = torch.randn(batch, 3, 224, 224, device=CUDA, dtype=torch.bfloat16)
    resident = Batch(images, torch.arange(batch, device=CUDA) // config.views)
    numbers: Numbers = {}
    for how in ("eager", "compiled"):
        model, optimiser = loop.build(config, CUDA)
        if how == "compiled":
            model.compile()

        def step(forward: Any = model, optimiser: torch.optim.AdamW = optimiser) -> None:
            forward(resident).backward()
            apply_gradients(optimiser)

        numbers[f"images_per_second_{how}"] = batch * 1e3 / milliseconds(step, 10)
        torch.cuda.reset_peak_memory_stats()
        step()
        numbers[f"peak_gib_{how}"] = torch.cuda.max_memory_allocated() / 2**30
    return numbers
