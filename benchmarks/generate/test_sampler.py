"""Painting a batch of the embedded default: our loop against the plain diffusers pipeline."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from benchmarks.record import Bench
from stablerep import ops
from stablerep.generate.engines.torch import TorchEngine
from stablerep.generate.pipeline import default_generator, open_pipeline
from stablerep.generate.sampler import sample
from stablerep.generate.schedule import make_schedule


def test_sampler(bench: Bench, device: str) -> None:
    batch, steps = (2, 2) if bench.quick else (64, 12)
    where = torch.device(device)
    pipeline = open_pipeline("default", where)
    prompts = [f"a photo of a dark slim {garment}" for garment in ("sneaker", "bag")] * (batch // 2)
    schedule = make_schedule("dpmsolver++", pipeline.scheduler_config, steps, where)
    text, negative = pipeline.encode(prompts), pipeline.encode([""])
    ids = torch.arange(batch, device=where)

    def ours() -> np.ndarray:
        images = sample(
            TorchEngine(pipeline), schedule, text, negative, ids, torch.zeros_like(ids),
            latent_shape=pipeline.latent_shape, guidance_scale=2.0, seed=1,
        )  # fmt: skip
        return images.cpu().numpy()

    theirs = StableDiffusionPipeline.from_pretrained(default_generator(), dtype=pipeline.unet.dtype).to(where)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(theirs.scheduler.config)
    noise = ops.philox_normal(1, ids, torch.zeros_like(ids), pipeline.latent_shape).to(text.dtype)

    def diffusers() -> np.ndarray:
        settings = {"num_inference_steps": steps, "guidance_scale": 2.0, "output_type": "np"}
        return theirs(prompts, latents=noise, **settings).images

    assert np.abs(ours() - 255 * diffusers()).mean() < 1
    bench.compare(f"sampler {batch} pictures, {steps} steps", device, {"ours": ours, "diffusers": diffusers})
