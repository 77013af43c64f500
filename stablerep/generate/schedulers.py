"""From the name of a scheduler and the model's scheduler config to a schedule that denoises.

DDIM (eta 0, Song et al. 2021), DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) and Euler (Karras et al. 2022) are all
linear in what they know, so five numbers a step, made before the loop, are the whole solver (`denoise.FusedSchedule`).
diffusers' schedulers give timesteps and noise levels, and are the oracle of the tests. What no such table can express
runs through diffusers' own objects (`denoise.DiffusersSchedule`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

from stablerep.config import UserError
from stablerep.generate.config import FUSED_SCHEDULERS
from stablerep.generate.denoise import DiffusersSchedule, FusedSchedule, Schedule

Level = tuple[float, float]  # alpha, sigma: signal and noise in x = alpha x0 + sigma noise
Row = tuple[float, float, float]  # c, d, e

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
# What is not linear in x and output, or needs another output than a picture's latents.
UNSUPPORTED = {"clip_sample": True, "thresholding": True, "use_flow_sigmas": True}
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


def open_schedule(name: str, scheduler_config: dict[str, Any], steps: int, device: torch.device) -> Schedule:
    """The fused table of a scheduler that has one, else diffusers' scheduler object.

    Raises:
        UserError: the model's scheduler config or this number of steps does not go with it.
    """
    if name in FUSED_SCHEDULERS:
        return make_schedule(name, scheduler_config, steps, device)
    kind, changes = KINDS[name]
    _check_steps(scheduler_config, steps)
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
    return on_cpu.integrate(lambda latents, _: latents / 2, noise * schedule.init_scale, lambda _: noise)


@dataclass(frozen=True)
class _Solver:
    timesteps: Tensor  # [S]
    levels: list[Level]  # where each step starts
    rows: list[Row]
    init_scale: float = 1.0


def make_schedule(name: str, scheduler_config: dict[str, Any], steps: int, device: torch.device) -> FusedSchedule:
    """Build the table of `ddim`, `dpmsolver++` or `euler` for a pipeline's scheduler config.

    Raises:
        UserError: a scheduler config that no such table can express, or more steps than the model has.
    """
    _check_steps(scheduler_config, steps)
    kind = scheduler_config.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        raise UserError(f"--model predicts {kind!r}; only {', '.join(PREDICTION_TYPES)} are supported")
    for key, value in UNSUPPORTED.items():
        if scheduler_config.get(key) == value:
            raise UserError(f"--model has {key}={value} in its scheduler config, which is not supported")
    solver = {"ddim": _ddim, "dpmsolver++": _dpm_solver, "euler": _euler}[name](scheduler_config, steps)
    if kind == "epsilon" and any(alpha == 0 for alpha, _ in solver.levels):
        raise UserError(
            f"--scheduler {name} with rescale_betas_zero_snr starts without signal, where epsilon says nothing; "
            "take --scheduler euler or dpmsolver++"
        )
    x0_of = {
        "epsilon": lambda alpha, sigma: (1 / alpha, -sigma / alpha),
        "v_prediction": lambda alpha, sigma: (alpha, -sigma),
        "sample": lambda alpha, sigma: (0.0, 1.0),
    }[kind]
    table = [(*x0_of(*level), *row) for level, row in zip(solver.levels, solver.rows, strict=True)]
    return FusedSchedule(
        timesteps=solver.timesteps.to(device, torch.float32),
        table=torch.tensor(table, dtype=torch.float64).to(device, torch.float32),
        steps=torch.arange(steps, device=device),
        init_scale=solver.init_scale,
    )


def _check_steps(scheduler_config: dict[str, Any], steps: int) -> None:
    trained = scheduler_config.get("num_train_timesteps", 1000)
    if steps > trained:
        raise UserError(f"--num-inference-steps {steps} is more than the {trained} the model was trained with")


def _first_order(at: Level, after: Level) -> Row:
    """Keep the noise that x holds, at its new level: DDIM, Euler and first-order DPM-Solver++ in one."""
    keep = after[1] / at[1]
    return keep, after[0] - at[0] * keep, 0.0


def _set_timesteps(kind: type, name: str, config: dict[str, Any], steps: int, **changes: Any) -> Any:
    try:
        scheduler = kind.from_config(config, **changes)  # type: ignore[attr-defined]
        scheduler.set_timesteps(steps)
    except (ValueError, NotImplementedError, ImportError) as error:  # its own words name the field
        reason = " ".join(str(error).split())
        raise UserError(f"--scheduler {name} cannot take the model's scheduler config: {reason}") from error
    if len(scheduler.timesteps) != steps:  # diffusers' trailing spacing rounds 61 steps to 62, the last one at -1
        became = len(scheduler.timesteps)
        raise UserError(f"--num-inference-steps {steps} becomes {became} by rounding in {name}; take another number")
    return scheduler


def _ddim(config: dict[str, Any], steps: int) -> _Solver:
    # A config that does not say comes from a latent model; diffusers' default, True, is for pixels.
    scheduler = _set_timesteps(DDIMScheduler, "ddim", config, steps, clip_sample=False)
    trained = scheduler.config.num_train_timesteps
    stride = trained // steps
    if scheduler.timesteps.max() >= trained:
        raise UserError(f"--num-inference-steps {steps} and steps_offset lead past the {trained} steps of the model")

    def level(signal_power: Tensor) -> Level:
        return float(signal_power) ** 0.5, (1 - float(signal_power)) ** 0.5

    levels, rows = [], []
    for t in scheduler.timesteps.tolist():
        after = scheduler.alphas_cumprod[t - stride] if t >= stride else scheduler.final_alpha_cumprod
        levels.append(level(scheduler.alphas_cumprod[t]))
        rows.append(_first_order(levels[-1], level(after)))
    return _Solver(scheduler.timesteps, levels, rows)


def _levels(ratios: Tensor) -> list[Level]:
    """Variance-preserving levels from sigma / alpha."""
    alphas = (1 / (ratios.double() ** 2 + 1).sqrt()).tolist()
    return [(alpha, ratio * alpha) for ratio, alpha in zip(ratios.tolist(), alphas, strict=True)]


def _dpm_solver(config: dict[str, Any], steps: int) -> _Solver:
    changes = {"algorithm_type": "dpmsolver++", "solver_order": 2}
    scheduler = _set_timesteps(DPMSolverMultistepScheduler, "dpmsolver++", config, steps, **changes)
    if scheduler.config.solver_type != "midpoint" or scheduler.config.variance_type is not None:
        raise UserError("--scheduler dpmsolver++ needs solver_type midpoint and no variance_type in the model's config")
    levels = _levels(scheduler.sigmas)  # one more than steps
    log_snr = (-scheduler.sigmas.double().log()).tolist()  # infinite after the last step if that ends at zero noise
    if len(set(log_snr[:-1])) < steps:
        raise UserError(f"--num-inference-steps {steps} makes dpmsolver++ visit a noise level twice; take fewer")
    first_order_last = (
        scheduler.config.euler_at_final
        or (scheduler.config.lower_order_final and steps < 15)
        or scheduler.config.final_sigmas_type == "zero"
    )
    rows = []
    for i in range(steps):
        keep, gain, _ = _first_order(levels[i], levels[i + 1])
        if i == 0 or (i == steps - 1 and first_order_last):
            rows.append((keep, gain, 0.0))
        else:  # extrapolate x0 along the log signal-to-noise ratio to the middle of the step
            ahead = (log_snr[i + 1] - log_snr[i]) / (2 * (log_snr[i] - log_snr[i - 1]))
            rows.append((keep, gain * (1 + ahead), -gain * ahead))
    return _Solver(scheduler.timesteps, levels[:-1], rows)


def _euler(config: dict[str, Any], steps: int) -> _Solver:
    """Euler in x / sqrt(sigma^2 + 1), which is what the UNet is given; the last step goes back to x."""
    scheduler = _set_timesteps(EulerDiscreteScheduler, "euler", config, steps)
    levels = _levels(scheduler.sigmas)
    levels[steps] = (1.0, float(scheduler.sigmas[steps]))
    rows = [_first_order(levels[i], levels[i + 1]) for i in range(steps)]
    return _Solver(scheduler.timesteps, levels[:steps], rows, float(scheduler.init_noise_sigma) * levels[0][0])
