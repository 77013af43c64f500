"""diffusers' own schedulers are the oracle: step by step for the fused ones, the whole pipeline for the others.

Noise that the others add on the way is answered with ours.
"""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

from stablerep import ops
from stablerep.config import UserError
from stablerep.engines.torch import TorchEngine
from stablerep.generate.config import FUSED_SCHEDULERS, SCHEDULERS, GenerateConfig
from stablerep.generate.denoise import picture_noise
from stablerep.generate.pipeline import Pipeline, default_generator
from stablerep.generate.schedulers import KINDS, make_schedule, open_schedule
from tests.generate.sampling import sample

CPU = torch.device("cpu")
SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
        "set_alpha_to_one": False, "clip_sample": False, "num_train_timesteps": 1000}  # fmt: skip
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


def diffusers_scheduler(name: str, config: dict[str, Any], steps: int) -> Any:
    if name == "ddim":
        scheduler = DDIMScheduler.from_config(config)
    elif name == "euler":
        scheduler = EulerDiscreteScheduler.from_config(config)
    else:
        scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)
    scheduler.set_timesteps(steps)
    if name != "ddim":
        scheduler.set_begin_index(0)  # as pipelines do; else it starts at the second of two equal timesteps
    return scheduler


def level(theirs: Any, name: str, i: int) -> float:
    """By how much diffusers' latents at step i are larger than ours: Euler's by sqrt(sigma^2 + 1), but the last."""
    return float((theirs.sigmas[i] ** 2 + 1) ** 0.5) if name == "euler" and i < len(theirs.timesteps) else 1.0


def assert_equals_diffusers(name: str, config: dict[str, Any], steps: int) -> None:
    theirs = diffusers_scheduler(name, config, steps)
    schedule = make_schedule(name, config, steps, CPU)
    assert schedule.timesteps.tolist() == theirs.timesteps.tolist()
    assert schedule.timesteps.dtype == schedule.table.dtype == torch.float32

    generator = torch.Generator().manual_seed(steps)
    noise = torch.randn(2, 4, 4, 4, generator=generator)
    expected = noise * float(theirs.init_noise_sigma)
    latents = noise * schedule.init_scale
    x0 = torch.full_like(noise, float("nan"))  # the first step knows none
    for i, timestep in enumerate(theirs.timesteps):
        unet_input = theirs.scale_model_input(expected, timestep)
        torch.testing.assert_close(latents, unet_input, rtol=2e-4, atol=2e-4)
        output = torch.randn(2, 4, 4, 4, generator=generator)  # any output will do: the update is an identity in it
        # From diffusers' own latents: what a step leaves of rounding does not add up.
        latents, x0 = ops.guided_step(unet_input, output, x0, schedule.table, torch.tensor(i), torch.ones(()))
        before, expected = expected, theirs.step(output, timestep, expected).prev_sample
        difference = (latents * level(theirs, name, i + 1) - expected).abs().max()
        largest = max(before.abs().max(), expected.abs().max())  # diffusers' Euler subtracts numbers as large as sigma
        assert difference < 2e-6 * largest, f"step {i}: {difference / largest:.1e}"


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", FUSED_SCHEDULERS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_every_step_equals_diffusers(name: str, prediction_type: str, spacing: str) -> None:
    config = SD15 | {"prediction_type": prediction_type, "timestep_spacing": spacing}
    for steps in (1, 2, 5, 12, 20, 50):
        assert_equals_diffusers(name, config, steps)


@pytest.mark.parametrize("name", FUSED_SCHEDULERS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(
    "changes",
    [
        {"set_alpha_to_one": True},
        {"steps_offset": 0},
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "prediction_type": "sample"},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_lu_lambdas": True},
        {"interpolation_type": "log_linear"},
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "euler_at_final": True},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()),
)
def test_every_field_of_the_config_counts(name: str, spacing: str, changes: dict[str, Any]) -> None:
    for steps in (1, 5, 20):
        assert_equals_diffusers(name, SD15 | {"timestep_spacing": spacing} | changes, steps)


@pytest.mark.parametrize("name", ["dpmsolver++", "euler"])
def test_zero_snr_with_epsilon(name: str) -> None:
    """diffusers starts these at 2^-24 of signal."""
    config = SD15 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert_equals_diffusers(name, config, 5)


def whole_loop(schedule: Any, noise: Tensor) -> Tensor:
    latents = noise * schedule.init_scale
    x0 = latents
    for i in range(len(schedule.timesteps)):
        output = torch.tanh(latents) + 0.1 * i
        latents, x0 = ops.guided_step(latents, output, x0, schedule.table, torch.tensor(i), torch.ones(()))
    return latents


@pytest.mark.parametrize("name", FUSED_SCHEDULERS)
def test_a_whole_loop_equals_diffusers(name: str) -> None:
    config = SD15 | {"timestep_spacing": "leading", "prediction_type": "v_prediction"}
    theirs = diffusers_scheduler(name, config, 20)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = noise * float(theirs.init_noise_sigma)
    for i, timestep in enumerate(theirs.timesteps):
        output = torch.tanh(theirs.scale_model_input(expected, timestep)) + 0.1 * i
        expected = theirs.step(output, timestep, expected).prev_sample
    torch.testing.assert_close(whole_loop(make_schedule(name, config, 20, CPU), noise), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "changes", "steps", "message"),
    [
        ("ddim", {}, 1001, "--num-inference-steps 1001 is more than the 1000"),
        ("ddim", {}, 1000, "lead past the 1000 steps"),
        ("dpmsolver++", {"timestep_spacing": "leading"}, 1000, "visit a noise level twice"),
        ("euler", {"timestep_spacing": "trailing"}, 61, "becomes 62 by rounding"),
        ("euler", {"timestep_spacing": "sideways"}, 10, "--scheduler euler cannot take .*sideways is not supported"),
        ("ddim", {"beta_schedule": "cubic"}, 10, "--scheduler ddim cannot take .*cubic"),
        ("ddim", {"prediction_type": "flow_prediction"}, 10, "--model predicts 'flow_prediction'; only epsilon"),
        ("ddim", {"clip_sample": True}, 10, "clip_sample=True"),
        ("dpmsolver++", {"thresholding": True}, 10, "thresholding=True"),
        ("dpmsolver++", {"use_flow_sigmas": True}, 10, "use_flow_sigmas=True"),
        ("dpmsolver++", {"solver_type": "heun"}, 10, "solver_type midpoint"),
        ("dpmsolver++", {"variance_type": "learned"}, 10, "variance_type"),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 10, "rescale_betas_zero_snr"),
    ],
)
def test_refuses_what_no_table_can_express(name: str, changes: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_schedule(name, SD15 | changes, steps, CPU)


def test_a_config_that_does_not_say_does_not_clip() -> None:
    """diffusers' own default clips x0 to -1..1: right for pixels, and never meant for latents."""
    config = {key: value for key, value in SD15.items() if key != "clip_sample"}
    assert torch.equal(make_schedule("ddim", config, 10, CPU).table, make_schedule("ddim", SD15, 10, CPU).table)


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
    first, second = (schedule.integrate(lambda x, _: torch.tanh(x), noise, lambda _: noise) for _ in range(2))
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
