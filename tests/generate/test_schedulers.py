"""diffusers' own schedulers are the oracle, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

from stablerep import ops
from stablerep.config import UserError
from stablerep.generate.config import FUSED_SCHEDULERS
from stablerep.generate.schedulers import make_schedule

CPU = torch.device("cpu")
SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
        "set_alpha_to_one": False, "clip_sample": False, "num_train_timesteps": 1000}  # fmt: skip


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
        told = theirs.scale_model_input(expected, timestep)
        torch.testing.assert_close(latents, told, rtol=2e-4, atol=2e-4)
        output = torch.randn(2, 4, 4, 4, generator=generator)  # any output will do: the update is an identity in it
        # From diffusers' own latents: what a step leaves of rounding does not add up.
        latents, x0 = ops.guided_step(told, output, x0, schedule.table, torch.tensor(i), torch.ones(()))
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
