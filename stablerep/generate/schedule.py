"""Denoising schedules as tables: every update is x <- a x + b x0 + c x0_before, with x0 read off the UNet's output.

DDIM (eta 0, Song et al. 2021) and DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) are both linear in what they know,
so a step is two fused multiply-adds with numbers made before the loop. diffusers' schedulers give timesteps and
noise levels, and are the oracle of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from stablerep.config import UserError

Row = tuple[float, float, float]


@dataclass(frozen=True)
class Schedule:
    """S steps; coefficients float32 on the device of the latents."""

    timesteps: Tensor  # [S] int64, what the UNet is told
    x0_of: Tensor  # [S, 2]: x0 = x0_of[0] x + x0_of[1] output
    update: Tensor  # [S, 3]: x <- update[0] x + update[1] x0 + update[2] x0 of the step before


def make_schedule(name: str, scheduler_config: dict[str, Any], steps: int, device: torch.device) -> Schedule:
    """Build the table of `ddim` or `dpmsolver++` for a pipeline's scheduler config.

    Raises:
        UserError: a prediction type other than epsilon and v_prediction, or more steps than the model has.
    """
    trained = scheduler_config.get("num_train_timesteps", 1000)
    if steps > trained:
        raise UserError(f"--num-inference-steps {steps} is more than the {trained} the model was trained with")
    kind = scheduler_config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(f"--model predicts {kind!r}; only epsilon and v_prediction are supported")
    rows = {"ddim": _ddim, "dpmsolver++": _dpm_solver}[name]
    timesteps, alphas, updates = rows(scheduler_config, steps)
    x0_of = []
    for alpha in alphas:  # alpha, sigma: signal and noise in x = alpha x0 + sigma noise
        sigma = (1 - alpha**2) ** 0.5
        x0_of.append((1 / alpha, -sigma / alpha) if kind == "epsilon" else (alpha, -sigma))
    return Schedule(
        timesteps=timesteps.to(device, torch.int64),
        x0_of=torch.tensor(x0_of, dtype=torch.float32, device=device),
        update=torch.tensor(updates, dtype=torch.float32, device=device),
    )


def _ddim(config: dict[str, Any], steps: int) -> tuple[Tensor, list[float], list[Row]]:
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    signal = scheduler.alphas_cumprod.double().sqrt()
    stride = scheduler.config.num_train_timesteps // steps
    alphas, updates = [], []
    for t in scheduler.timesteps.tolist():
        alpha = signal[t].item()
        after = signal[t - stride].item() if t >= stride else float(scheduler.final_alpha_cumprod) ** 0.5
        noise_kept = ((1 - after**2) / (1 - alpha**2)) ** 0.5
        alphas.append(alpha)
        updates.append((noise_kept, after - alpha * noise_kept, 0.0))
    return scheduler.timesteps, alphas, updates


def _dpm_solver(config: dict[str, Any], steps: int) -> tuple[Tensor, list[float], list[Row]]:
    scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)
    scheduler.set_timesteps(steps)
    ratio = scheduler.sigmas.double()  # sigma / alpha, one more than steps
    alpha = (1 / (ratio**2 + 1).sqrt()).tolist()
    log_snr = (-ratio.log()).tolist()  # infinite after the last step if that ends at zero noise
    sigma = [r * a for r, a in zip(ratio.tolist(), alpha, strict=True)]
    updates: list[Row] = []
    for i in range(len(scheduler.timesteps)):
        keep = sigma[i + 1] / sigma[i]
        h = log_snr[i + 1] - log_snr[i]
        gain = -alpha[i + 1] * torch.tensor(-h, dtype=torch.float64).expm1().item()
        is_last = i == steps - 1
        lower_last = is_last and (steps < 15 or ratio[-1] == 0 or scheduler.config.euler_at_final)
        if i == 0 or lower_last:
            updates.append((keep, gain, 0.0))
        else:
            half_ratio = h / (2 * (log_snr[i] - log_snr[i - 1]))  # 1 / (2 r) with r = h_before / h
            updates.append((keep, gain * (1 + half_ratio), -gain * half_ratio))
    return scheduler.timesteps, alpha[:-1], updates
