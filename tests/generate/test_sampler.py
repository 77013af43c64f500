"""The plain diffusers pipeline is the oracle: same noise, same prompt, same picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from torch import Tensor

from stablerep import ops
from stablerep.engines.torch import TorchEngine
from stablerep.generate.conditioning import Conditioning
from stablerep.generate.config import FUSED_SCHEDULERS
from stablerep.generate.pipeline import Pipeline, default_generator
from stablerep.generate.schedulers import make_schedule
from tests.generate.sampling import sample
from tests.waits import Waits

PROMPTS = ["a photo of a dark slim sneaker", "a photo of a white bag"]


def paint(pipeline: Pipeline, prompt_ids: list[int], indices: list[int], **changes) -> np.ndarray:
    settings = {"guidance_scale": 2.0, "seed": 5, "image_size": None, "name": "ddim", "steps": 6} | changes
    schedule = make_schedule(
        settings.pop("name"), pipeline.scheduler_config, settings.pop("steps"), torch.device("cpu")
    )
    images = sample(
        TorchEngine(pipeline),
        schedule,
        pipeline.encode([PROMPTS[i] for i in prompt_ids]),
        pipeline.encode([""]),
        torch.tensor(prompt_ids),
        torch.tensor(indices),
        latent_shape=pipeline.latent_shape,
        **settings,
    )
    return images.numpy()


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0, 7.5])
@pytest.mark.parametrize("name", FUSED_SCHEDULERS)
def test_equals_the_plain_diffusers_pipeline(pipeline: Pipeline, name: str, guidance_scale: float) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(default_generator(), dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    kinds = {"ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}
    kind = kinds[name]
    theirs.scheduler = kind.from_config(theirs.scheduler.config)
    noise = ops.philox_normal(5, torch.tensor([0, 1]), torch.tensor([3, 0]), pipeline.latent_shape)
    expected = theirs(
        PROMPTS, num_inference_steps=6, guidance_scale=guidance_scale, latents=noise, output_type="np"
    ).images
    ours = paint(pipeline, [0, 1], [3, 0], name=name, guidance_scale=guidance_scale)
    assert np.abs(ours - 255 * expected).max() <= 1.0  # grey levels: rounding


def test_a_picture_does_not_depend_on_its_batch(pipeline: Pipeline) -> None:
    together = paint(pipeline, [0, 1, 1], [0, 0, 1]).astype(int)
    alone = paint(pipeline, [1], [1]).astype(int)
    assert np.abs(together[2] - alone[0]).max() <= 1
    assert np.abs(together[1] - together[2]).max() > 50  # another index, another picture


def test_image_size_resizes_before_storing(pipeline: Pipeline) -> None:
    assert paint(pipeline, [0], [0], image_size=20).shape == (1, 20, 20, 3)
    assert paint(pipeline, [0], [0], image_size=48).shape == (1, 48, 48, 3)


@pytest.mark.parametrize("name", FUSED_SCHEDULERS)
def test_painting_asks_the_device_nothing(pipeline: Pipeline, name: str) -> None:
    class Asking(TorchEngine):
        def unet(self, latents: Tensor, timestep: Tensor, told: Conditioning) -> Tensor:
            return super().unet(latents, timestep, told) * float(timestep > 0)

    text, negative, ids = pipeline.encode(PROMPTS), pipeline.encode([""]), torch.arange(2)
    schedule = make_schedule(name, pipeline.scheduler_config, 3, torch.device("cpu"))
    for engine, waits in ((TorchEngine(pipeline), 0), (Asking(pipeline), 3)):  # the second shows that we would see it
        with Waits() as seen:
            sample(
                engine, schedule, text, negative, ids, ids,
                latent_shape=pipeline.latent_shape, guidance_scale=2.0, seed=1, image_size=20,
            )  # fmt: skip
        assert seen.counts.total() == waits, +seen.counts


def test_diffusers_opens_and_runs_the_embedded_default_as_it_is() -> None:
    theirs = DiffusionPipeline.from_pretrained(default_generator())
    theirs.set_progress_bar_config(disable=True)
    assert theirs(PROMPTS[0], num_inference_steps=2).images[0].size == (32, 32)
    size = sum(path.stat().st_size for path in default_generator().rglob("*") if path.is_file())
    assert size <= 12e6  # bytes: what the package can afford to carry
