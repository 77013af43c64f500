"""The loop against the plain diffusers pipeline: same noise, same prompt, same picture. Guidance; noise."""

from __future__ import annotations

from typing import ClassVar

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
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from stablerep import ops
from stablerep.engines.conditioning import Conditioning
from stablerep.engines.torch import TorchEngine
from stablerep.generate.config import FUSED_SCHEDULERS
from stablerep.generate.denoise import MOST_DRAWS, guide, picture_noise
from stablerep.generate.pipeline import Pipeline, default_generator
from stablerep.generate.schedulers import make_schedule
from tests.generate.sampling import sample
from tests.waits import Waits

CPU = torch.device("cpu")
PROMPTS = ["a photo of a dark slim sneaker", "a photo of a white bag", "a photo of a busy dress"]


def paint(pipeline: Pipeline, prompt_ids: list[int], indices: list[int], **changes) -> np.ndarray:
    settings = {"guidance_scale": 2.0, "seed": 5, "image_size": None, "name": "ddim", "steps": 6} | changes
    schedule = make_schedule(settings.pop("name"), pipeline.scheduler_config, settings.pop("steps"), CPU)
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
        PROMPTS[:2], num_inference_steps=6, guidance_scale=guidance_scale, latents=noise, output_type="np"
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
        def unet(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
            return super().unet(latents, timestep, conditioning) * float(timestep > 0)

    text, negative, ids = pipeline.encode(PROMPTS[:2]), pipeline.encode([""]), torch.arange(2)
    schedule = make_schedule(name, pipeline.scheduler_config, 3, CPU)
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


class CountingEngine(TorchEngine):
    """Notes the batch of every call of the UNet."""

    batches: ClassVar[list[int]] = []

    def unet(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        self.batches.append(len(latents))
        return super().unet(latents, timestep, conditioning)


def paint_guided(pipeline: Pipeline, rows: list[int], scales: list[float], **changes) -> Tensor:
    settings = {"seed": 5, "negatives": [""], "guidance_rescale": 0.0} | changes
    CountingEngine.batches.clear()
    return sample(
        CountingEngine(pipeline),
        make_schedule("ddim", pipeline.scheduler_config, 4, CPU),
        pipeline.encode([PROMPTS[row] for row in rows]),
        pipeline.encode(settings.pop("negatives")),
        torch.tensor(rows),
        torch.zeros(len(rows), dtype=torch.int64),
        latent_shape=pipeline.latent_shape,
        guidance_scale=scales,
        **settings,
    ).int()


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_rescale_equals_diffusers(rescale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(6, 4, 8, 8, generator=generator) * torch.tensor([1, 2, 3, 4, 5, 6.0]).reshape(6, 1, 1, 1)
    scales = torch.tensor([1.0, 2.5, 7.5])
    without, with_text = output.chunk(2)
    guided = without + scales.reshape(3, 1, 1, 1) * (with_text - without)
    torch.testing.assert_close(guide(output, scales, rescale), rescale_noise_cfg(guided, with_text, rescale))


def test_rescale_equals_the_plain_diffusers_pipeline(pipeline: Pipeline) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(default_generator(), dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    noise = ops.philox_normal(5, torch.arange(2), torch.zeros(2, dtype=torch.int64), pipeline.latent_shape)
    settings = {"num_inference_steps": 4, "guidance_scale": 7.5, "latents": noise, "output_type": "np"}
    expected = torch.from_numpy(255 * theirs(PROMPTS[:2], guidance_rescale=0.7, **settings).images)
    ours = paint_guided(pipeline, [0, 1], [7.5, 7.5], guidance_rescale=0.7)
    assert (ours - expected).abs().max() <= 1.0  # grey levels: rounding
    assert (paint_guided(pipeline, [0, 1], [7.5, 7.5]) - expected).abs().max() > 5  # it does something


def test_each_picture_has_its_own_guidance_negative_and_seed(pipeline: Pipeline) -> None:
    rows, scales, negatives, seeds = [0, 1, 2], [1.0, 3.0, 7.5], ["", "a shirt", "a bag"], [5, 6, 5]
    together = paint_guided(pipeline, rows, scales, negatives=negatives, seed=seeds)
    for i in range(3):
        alone = paint_guided(pipeline, [rows[i]], [scales[i]], negatives=[negatives[i]], seed=seeds[i])
        assert (together[i] - alone[0]).abs().max() <= 1
    for other in ({"negatives": ["", "", ""]}, {"seed": 5}):
        changed = paint_guided(pipeline, rows, scales, **{"negatives": negatives, "seed": seeds} | other)
        assert (together - changed).abs().amax((1, 2, 3)).tolist() != [0, 0, 0]


@pytest.mark.parametrize(
    ("scales", "doubled"), [([1.0, 1.0, 1.0], False), ([1.0, 2.0, 1.0], True), ([0.0, 0.0, 0.0], True)]
)
def test_the_unguided_half_is_left_out_only_where_no_picture_needs_it(
    pipeline: Pipeline, scales: list[float], doubled: bool
) -> None:
    paint_guided(pipeline, [0, 1, 2], scales, guidance_rescale=0.5)
    assert CountingEngine.batches == [6 if doubled else 3] * 4


def test_noise_of_mixed_seeds_is_that_of_each_alone() -> None:
    ids, indices, seeds = torch.tensor([3, 4, 3, 9]), torch.tensor([0, 1, 2, 0]), [7, 8, 7, 2**63 - 1]
    together = picture_noise(seeds, ids, indices, (2, 3), CPU)
    for i, seed in enumerate(seeds):
        assert torch.equal(together[i], ops.philox_normal(seed, ids[i : i + 1], indices[i : i + 1], (2, 3))[0])


def test_draws_share_no_number() -> None:
    ids, indices = torch.zeros(50, dtype=torch.int64), torch.arange(50)
    draws = [picture_noise(1, ids, indices, (4,), CPU, draw=draw) for draw in (0, 1, 2, MOST_DRAWS - 1)]
    assert len(torch.cat(draws).unique(dim=0)) == 200
    with pytest.raises(AssertionError):
        picture_noise(1, ids, indices, (4,), CPU, draw=MOST_DRAWS)
