"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stablerep.adapt import checkpoint
from stablerep.adapt.checkpoint import CHECKPOINT, Progress
from stablerep.adapt.config import AdaptConfig
from stablerep.adapt.denoising import Denoiser, batch_losses, draw_batch, held_out_loss
from stablerep.adapt.inputs import Data, Paint, is_bf16
from stablerep.adapt.latents import Latents, Model
from stablerep.adapt.memorised import write_grid
from stablerep.adapt.trained import Trained
from stablerep.config import UserError
from stablerep.engines.torch import torch_out_of_memory
from stablerep.runlog import RunLog, progress

SAMPLED = 8  # pictures of a look
PRIOR_STREAM, PRIOR_IDS = 2, 2**31  # of draws and of noise; photos have stream 0 and ids from 0


class Adaptation:
    """A model, what of it learns, and from what."""

    def __init__(self, config: AdaptConfig, data: Data, model: Model, trained: Trained, device: torch.device) -> None:
        self.config, self.data, self.model, self.trained, self.device = config, data, model, trained, device
        self.denoiser = Denoiser(model, config.min_snr_gamma)
        self.optimiser = torch.optim.AdamW(
            trained.weights.values(), lr=config.rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )

    def step(self, step: int) -> Tensor:  # [] the loss
        """Take one step; a function of the weights, the seed and the step.

        Raises:
            UserError: it does not fit into memory.
        """
        config = self.config
        try:
            with torch_out_of_memory(), self._autocast():
                loss = self._loss(self.data.training, step, 0, 0)
                if self.data.prior is not None:
                    loss = loss + config.prior_weight * self._loss(self.data.prior, step, PRIOR_STREAM, PRIOR_IDS)
                loss.backward()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"--batch-size {config.batch_size} does not fit into the memory of {self.device}; take a smaller one, "
                "or --gradient-checkpointing"
            ) from error
        torch.nn.utils.clip_grad_norm_(self.trained.weights.values(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(step)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    def rate(self, step: int) -> float:
        return self.config.rate * checkpoint.rate_at(step, self.config.steps, self.config.warmup)

    def look(self) -> float:
        """The loss of the photos held out."""
        with self._autocast():
            return held_out_loss(self.denoiser, self.data.held_out, self.data.captions, self.config.seed, self.device)

    def _loss(self, latents: Latents, step: int, stream: int, first_id: int) -> Tensor:
        config = self.config
        draw = draw_batch(
            step, config.batch_size, config.seed, len(latents), latents.mean.shape[1], self.denoiser.num_timesteps,
            config.caption_dropout, stream,
        )  # fmt: skip
        losses = batch_losses(
            self.denoiser, latents, self.data.captions, draw, config.seed, step, first_id, self.device
        )
        return losses.mean()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16(self.config, self.device))


def run(at_work: Adaptation, paint: Paint, stopped: Callable[[], bool]) -> tuple[dict[str, Tensor], Progress]:
    """Train from the checkpoint, or from the start, until the steps or the patience end, or until stopped.

    Returns:
        The best weights, and how far the run is; it is not finished where it was stopped.

    Raises:
        UserError: other photos or another model than the run was begun with, or a loss that is not finite.
    """
    config, data, trained = at_work.config, at_work.data, at_work.trained
    path, count = config.out / CHECKPOINT, config.batch_size
    best: dict[str, Tensor] = {}
    at = checkpoint.restore(path, trained.weights, at_work.optimiser, at_work.device, best)
    _check_same(config, at, data.fingerprint, at_work.model.weights_hash)
    if at.finished:
        return best, at
    at.photos, at.model = data.fingerprint, at_work.model.weights_hash
    with (
        RunLog(config.out, at.step + 1 if at.step else 0) as log,
        progress(f"adapt {config.out.name}", config.steps * count, "photos", start=at.step * count) as bar,
    ):
        if at.step == 0:
            at.first_loss = at.best_loss = at_work.look()
            best = trained.state()
            log.write(0, held_out_loss=at.first_loss)
            paint_samples(at_work, paint, 0)
        since = [torch.tensor(loss, device=at_work.device) for loss in at.losses]
        while not at.finished:
            since.append(at_work.step(at.step))
            at.step += 1
            is_last = at.step == config.steps
            numbers: dict[str, float] = {}
            if at.step % config.log_every == 0 or is_last:
                numbers |= {"loss": torch.stack(since).mean().item(), "lr": at_work.rate(at.step - 1)}
                since = []
                _refuse_divergence(numbers["loss"], at.step)
            if at.step % config.validate_every == 0 or is_last:
                numbers["held_out_loss"] = at_work.look()
                if _is_better(at, numbers["held_out_loss"]):
                    best = trained.state()
                at.finished = is_last or 0 < config.patience <= at.looks_since_best
            if numbers:
                log.write(at.step, **numbers)
                bar.update(at.step * count, _note(numbers, at))
            if config.sample_every and (at.step % config.sample_every == 0 or at.finished):
                paint_samples(at_work, paint, at.step)
            leaves = stopped()
            if at.step % config.checkpoint_every == 0 or at.finished or leaves:
                at.losses = [loss.item() for loss in since]
                checkpoint.save(path, at, trained.weights, at_work.optimiser, best)
            if leaves:
                break
    return best, at


def paint_samples(at_work: Adaptation, paint: Paint, step: int) -> None:
    """Paint a few pictures with the weights of this step into OUT/samples, of the same prompts and noise each time."""
    config = at_work.config
    if not config.sample_every:
        return
    prompts = config.sample_prompts or spread(list(dict.fromkeys(at_work.data.training.captions)), SAMPLED)
    painted = paint(
        at_work.model, prompts, seed=config.seed, guidance_scale=config.guidance_scale,
        num_inference_steps=config.num_inference_steps,
    ).numpy()  # fmt: skip
    across = min(len(painted), 4)
    rows = [list(painted[first : first + across]) for first in range(0, len(painted), across)]
    write_grid(sample_file(config.out, step), rows)


def sample_file(out: Path, step: int) -> Path:
    return out / "samples" / f"{step:06}.png"


def spread(items: list[str], count: int) -> list[str]:
    """At most count of them, evenly from first to last."""
    return [items[number * len(items) // count] for number in range(count)] if len(items) > count else items


def _is_better(at: Progress, loss: float) -> bool:
    assert at.best_loss is not None
    if loss < at.best_loss:
        at.best_loss, at.best_step, at.looks_since_best = loss, at.step, 0
        return True
    at.looks_since_best += 1
    return False


def _note(numbers: dict[str, float], at: Progress) -> str:
    loss = f"loss {numbers['loss']:.4f}, " if "loss" in numbers else ""
    return f"{loss}held out {at.best_loss:.4f} at best, step {at.best_step}"


def _check_same(config: AdaptConfig, at: Progress, photos: str, model: str) -> None:
    for flag, earlier, now in (("--photos", at.photos, photos), ("--model", at.model, model)):
        if earlier and earlier != now:
            raise UserError(
                f"{flag} holds something else than when {config.out} was begun; bring it back or choose another --out"
            )


def _refuse_divergence(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is no number any more at step {step}; give a lower --learning-rate and another --out"
        )
