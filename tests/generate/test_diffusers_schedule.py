"""The plain diffusers pipeline with the same scheduler is the oracle; its noise on the way is answered with ours."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from stablerep.config import UserError
from stablerep.engines.torch import TorchEngine
from stablerep.generate.config import FUSED_SCHEDULERS, SCHEDULERS, GenerateConfig
from stablerep.generate.diffusers_schedule import KINDS, open_schedule
from stablerep.generate.noise import picture_noise
from stablerep.generate.pipeline import Pipeline, default_generator
from tests.generate.sampling import sample

CPU = torch.device("cpu")
PROMPTS = ["a photo of a dark slim sneaker", "a photo of a white bag"]
STOCHASTIC = ("ddpm", "dpm2_ancestral", "euler_ancestral", "lcm", "sde-dpmsolver++")
ORACLES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmsolver_singlestep": ("DPMSolverSinglestepScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "sde-dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def paint(pipeline: Pipeline, name: str, rows: list[int], **changes: Any) -> Tensor:
    settings = {"guidance_scale": 2.0, "seed": 5, "guidance_rescale": 0.0} | changes
    return sample(
        TorchEngine(pipeline),
        open_schedule(name, pipeline.scheduler_config, 5, CPU),
        pipeline.encode([PROMPTS[row] for row in rows]),
        pipeline.encode([""]),
        torch.tensor(rows),
        torch.full((len(rows),), 3),
        latent_shape=pipeline.latent_shape,
        **settings,
    ).int()


@functools.cache
def their_pipeline() -> Any:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(default_generator(), dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    return theirs


def oracle(pipeline: Pipeline, name: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Tensor:
    theirs = their_pipeline()
    kind, changes = ORACLES[name]
    theirs.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler_config, **changes)
    draws = [picture_noise(5, torch.arange(2), torch.full((2,), 3), pipeline.latent_shape, CPU, n) for n in range(11)]
    start, *later = draws
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *_, **__: later.pop(0))
        images = theirs(PROMPTS, num_inference_steps=5, latents=start, output_type="np", **settings).images
    assert (len(later) < 10) == (name in STOCHASTIC)
    return torch.from_numpy(255 * images)


def test_every_name_is_told_apart() -> None:
    assert set(SCHEDULERS) == {*FUSED_SCHEDULERS, *KINDS}
    assert set(KINDS) == set(ORACLES)


@pytest.mark.parametrize("name", ORACLES)
def test_equals_the_plain_diffusers_pipeline(pipeline: Pipeline, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = oracle(pipeline, name, monkeypatch, guidance_scale=3.0)
    before = torch.get_rng_state()
    ours = paint(pipeline, name, [0, 1], guidance_scale=3.0)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn from the global generator
    assert (ours - expected).abs().max() <= 1.0  # grey levels: rounding


@pytest.mark.parametrize(
    "settings", [{"guidance_scale": 1.0}, {"guidance_scale": 7.5, "guidance_rescale": 0.7}], ids=str
)
@pytest.mark.parametrize("name", ["unipc", "euler_ancestral"])
def test_guidance_goes_with_them(
    pipeline: Pipeline, name: str, monkeypatch: pytest.MonkeyPatch, settings: dict[str, float]
) -> None:
    expected = oracle(pipeline, name, monkeypatch, **settings)
    assert (paint(pipeline, name, [0, 1], **settings) - expected).abs().max() <= 1.0


@pytest.mark.parametrize("name", ["euler_ancestral", "dpm2_ancestral", "heun"])
def test_a_picture_does_not_depend_on_its_batch(pipeline: Pipeline, name: str) -> None:
    together = paint(pipeline, name, [0, 1, 1], seed=[5, 6, 7])
    assert (together[1] - paint(pipeline, name, [1], seed=6)[0]).abs().max() <= 1
    assert (together[1] - together[2]).abs().max() > 50


def test_a_schedule_is_left_as_it_was(pipeline: Pipeline) -> None:
    schedule = open_schedule("unipc", pipeline.scheduler_config, 4, CPU)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = (schedule.denoise(lambda x, _: torch.tanh(x), noise, lambda _: noise) for _ in range(2))
    assert torch.equal(first, second)


def test_unknown_names_suggest_the_nearest() -> None:
    for name, near in (("unpic", "unipc"), ("euler_a", "euler_ancestral"), ("dpm++", "dpmsolver"), ("plms", "lms")):
        with pytest.raises(UserError) as error:
            GenerateConfig(prompts="p.txt", out="o", scheduler=name)
        assert f"--scheduler {name!r} is unknown; did you mean {near}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "changes", "steps", "message"),
    [
        ("pndm", {"prediction_type": "sample"}, 5, "--scheduler pndm cannot take .*prediction_type"),
        ("euler_ancestral", {"prediction_type": "sample"}, 5, "cannot take .*not implemented"),
        ("heun", {"beta_schedule": "cubic"}, 5, "--scheduler heun cannot take .*cubic"),
        ("lcm", {}, 60, "--scheduler lcm cannot take .* in 60 steps"),
        ("unipc", {}, 1001, "--num-inference-steps 1001 is more than the 1000"),
    ],
)
def test_refuses_before_anything_is_painted(
    pipeline: Pipeline, name: str, changes: dict[str, Any], steps: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_schedule(name, pipeline.scheduler_config | changes, steps, CPU)
