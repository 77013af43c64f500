"""Schedulers that no table of five numbers a step can express, through diffusers' own objects.

Slower than the fused step by a dozen small operations a step, which a UNet of any size hides. Those that add noise on
the way get it from our counters: each torch.randn of their step() is answered with the noise of (seed, prompt id,
index, number of the draw). So no global generator is read, and a picture still does not depend on its batch.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stablerep.config import UserError
from stablerep.generate.config import FUSED_SCHEDULERS
from stablerep.generate.schedulers import Schedule, make_schedule

# Name -> class, and what we change in the model's scheduler config. Left out: those that draw from a generator of
# their own (dpmsolver_sde's Brownian tree) and those of other kinds of models (flow matching, EDM).
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis", "solver_type": "logrho"}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmsolver_singlestep": (
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "dpmsolver++", "lower_order_final": True},
    ),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "sde-dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
# Where the model's config is silent. diffusers' own defaults are for pixels: x0 clipped to -1..1, and Runge-Kutta
# steps before the linear ones of PNDM, which Stable Diffusion leaves out (PLMS).
LATENT_DEFAULTS = {"ddpm": {"clip_sample": False}, "pndm": {"skip_prk_steps": True}}
RANDOM = (torch.randn_like, torch.rand, torch.rand_like, torch.randint, torch.normal, torch.bernoulli)

Draw = Callable[[int], Tensor]  # number of the draw, from 1 -> noise [B, C, h, w]


@dataclass(frozen=True)
class DiffusersSchedule:
    """A scheduler whose timesteps are set. It lies on the CPU: its numbers are then known without asking the device."""

    timesteps: Tensor  # [S] float32 on the device of the latents, what the UNet is told
    init_scale: float  # of the noise that the first step starts from
    template: Any  # never stepped: each batch steps a copy

    def denoise(self, predict: Callable[[Tensor, Tensor], Tensor], latents: Tensor, draw: Draw) -> Tensor:
        """The whole loop: predict takes latents [B, C, h, w] and a timestep [] and gives the guided output, float32."""
        scheduler = copy.deepcopy(self.template)
        # As diffusers' pipelines do: what TCD calls eta is 0 unless it is asked for.
        options = {"eta": 0.0} if "eta" in inspect.signature(scheduler.step).parameters else {}
        with _Draws(draw):
            for at, timestep in zip(scheduler.timesteps, self.timesteps, strict=True):
                output = predict(scheduler.scale_model_input(latents, at), timestep)
                latents = scheduler.step(output, at, latents, **options, return_dict=False)[0]
        return latents


def open_schedule(
    name: str, scheduler_config: dict[str, Any], steps: int, device: torch.device
) -> Schedule | DiffusersSchedule:
    """The fused table of a scheduler that has one, else diffusers' scheduler object.

    Raises:
        UserError: the model's scheduler config or this number of steps does not go with it.
    """
    if name in FUSED_SCHEDULERS:
        return make_schedule(name, scheduler_config, steps, device)
    kind, changes = KINDS[name]
    trained = scheduler_config.get("num_train_timesteps", 1000)
    if steps > trained:
        raise UserError(f"--num-inference-steps {steps} is more than the {trained} the model was trained with")
    try:
        scheduler = getattr(diffusers, kind).from_config(LATENT_DEFAULTS.get(name, {}) | scheduler_config | changes)
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # as pipelines do; else a step looks its number up, which waits for the device
        schedule = DiffusersSchedule(
            timesteps=scheduler.timesteps.to(device, torch.float32),
            init_scale=float(scheduler.init_noise_sigma),
            template=scheduler,
        )
        end = _rehearse(schedule)
    except (ValueError, NotImplementedError, ImportError, IndexError) as error:  # its own words name the field
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--scheduler {name} cannot take the model's scheduler config in {steps} steps: {reason}"
        ) from error
    if not end.isfinite().all():
        raise UserError(f"--scheduler {name} divides by zero in {steps} steps; take another --num-inference-steps")
    return schedule


def _rehearse(schedule: DiffusersSchedule) -> Tensor:
    """One picture of two by two, on the CPU: what a scheduler refuses it refuses in step(), after minutes of work."""
    on_cpu = DiffusersSchedule(schedule.timesteps.cpu(), schedule.init_scale, schedule.template)
    noise = torch.linspace(-1, 1, 4).reshape(1, 1, 2, 2)
    return on_cpu.denoise(lambda latents, _: latents / 2, noise * schedule.init_scale, lambda _: noise)


class _Draws(TorchFunctionMode):
    """Answers torch.randn."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self._draw, self._count = draw, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.randn:
            self._count += 1
            noise = self._draw(self._count)
            assert tuple(noise.shape) == tuple(args[0]), f"a scheduler asks for noise of shape {args[0]}"
            return noise.to(kwargs.get("dtype") or noise.dtype)
        assert function not in RANDOM, f"a scheduler draws from {function.__name__}, which no seed of ours reaches"
        return function(*args, **kwargs)
