"""diffusers' own schedulers are the oracle, step by step."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from stablerep.config import UserError
from stablerep.generate.schedule import make_schedule

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
        "set_alpha_to_one": False, "clip_sample": False, "num_train_timesteps": 1000}  # fmt: skip


def diffusers_scheduler(name: str, config: dict):
    if name == "ddim":
        return DDIMScheduler.from_config(config)
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("steps", [1, 2, 12, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_every_step_equals_diffusers(name: str, prediction_type: str, steps: int, spacing: str) -> None:
    config = SD15 | {"prediction_type": prediction_type, "timestep_spacing": spacing}
    theirs = diffusers_scheduler(name, config)
    theirs.set_timesteps(steps)
    schedule = make_schedule(name, config, steps, torch.device("cpu"))
    assert schedule.timesteps.tolist() == theirs.timesteps.tolist()

    torch.manual_seed(0)
    ours = expected = torch.randn(2, 4, 8, 8)
    before = torch.zeros_like(ours)
    for i, timestep in enumerate(theirs.timesteps):
        output = torch.randn(2, 4, 8, 8)  # any output will do: the update is an identity in it
        expected = theirs.step(output, timestep, expected).prev_sample
        x0 = schedule.x0_of[i, 0] * ours + schedule.x0_of[i, 1] * output
        ours = schedule.update[i, 0] * ours + schedule.update[i, 1] * x0 + schedule.update[i, 2] * before
        before = x0
        torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-4)


def test_refuses_what_it_does_not_know() -> None:
    with pytest.raises(UserError, match="sample"):
        make_schedule("ddim", SD15 | {"prediction_type": "sample"}, 10, torch.device("cpu"))
    with pytest.raises(UserError, match="1001"):
        make_schedule("ddim", SD15, 1001, torch.device("cpu"))
