"""One guided step: native against the reference, torch.compile of it, diffusers in eager torch, and a copy."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from benchmarks.record import Bench, Case, Work
from stablerep import native
from stablerep.ops import guided_step
from stablerep.ops.guided_step import reference

SHAPES = {"sd15": (16, 4, 64, 64), "fashion": (64, 8, 8, 8)}
STEPS = 12


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_guided_step(bench: Bench, device: str, name: str, dtype: torch.dtype) -> None:
    shape = (2, 4, 8, 8) if bench.quick else SHAPES[name]
    latents, x0 = torch.randn((2, *shape), device=device)  # float32 also beside a half precision UNet
    output = torch.randn(2 * shape[0], *shape[1:], device=device).to(dtype)
    table = torch.tensor([[0.98, -0.2, 0.85, 0.9, -0.75]] * STEPS, device=device)
    step, scale = torch.tensor(5, device=device), torch.tensor(2.0, device=device)
    inputs = (latents, output, x0, table, step, scale)

    scheduler = DPMSolverMultistepScheduler(prediction_type="v_prediction")
    scheduler.set_timesteps(STEPS)

    def diffusers() -> torch.Tensor:
        without, with_text = output.chunk(2)
        guided = without + 2.0 * (with_text - without)
        scheduler.set_begin_index(5)
        scheduler._step_index = 5
        scheduler.model_outputs = [x0, x0]
        scheduler.lower_order_nums = 1
        return scheduler.step(guided, scheduler.timesteps[5], latents, return_dict=False)[0]

    def copy() -> tuple[torch.Tensor, ...]:  # half of the bytes read are written: 2 of 4 tensors
        return latents.clone(), x0.clone(), output.clone()

    def native_step() -> tuple[torch.Tensor, torch.Tensor]:
        return guided_step(*inputs, impl="native")

    expected = reference(*inputs)
    impls: dict[str, Case] = {"reference": lambda: reference(*inputs)}
    if native.why_not(device) is None:
        torch.testing.assert_close(native_step(), expected, rtol=1e-5, atol=1e-5)
        impls = {"native": native_step, **impls}
    if not bench.quick:
        compiled = torch.compile(reference)
        torch.testing.assert_close(compiled(*inputs), expected, rtol=1e-5, atol=1e-5)
        impls["torch.compile"] = lambda: compiled(*inputs)
    impls |= {"diffusers": diffusers, "copy of as many bytes": copy}
    with torch.inference_mode():
        work = Work(bytes=4 * latents.nbytes + output.nbytes)
        bench.compare(f"guided_step {name} {'x'.join(map(str, shape))} UNet {dtype}", device, impls, work)
