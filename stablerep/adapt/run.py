"""One adaptation: photos and a model in, a LoRA or a pipeline out."""

from __future__ import annotations

import logging
import resource
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from stablerep import config as configs
from stablerep import run_folder
from stablerep.adapt import loop
from stablerep.adapt.config import AdaptConfig
from stablerep.adapt.inputs import Paint, cast_frozen, one_device, open_for_training, prepare
from stablerep.adapt.latents import OpenModel, thumbnail
from stablerep.adapt.memorised import SHOWN, Memorised, compare, write_grid
from stablerep.adapt.photos import open_photos
from stablerep.adapt.summary import RESULT, AdaptSummary
from stablerep.adapt.trained import check_peft, open_trained, save_lora, save_pipeline
from stablerep.runlog import as_bytes, as_number

FREE = (
    "out", "device", "gradient_checkpointing", "checkpoint_every", "log_every", "sample_every", "sample_prompts",
    "dry_run",
)  # fmt: skip
COMPARED = 64  # pictures painted in search of copies
WARM_STEPS, MEASURED_STEPS = 1, 3  # of a dry run
STATE_BYTES = 16  # of a weight in a checkpoint: float32, the best one, and AdamW's two means

log = logging.getLogger("stablerep.adapt")

Listening = Callable[[], AbstractContextManager[Any]]  # what it gives has .signal, 0 or the number of one


class Stopped(SystemExit):
    """A run that was asked to stop has saved what it has. SIGTERM leaves with 0: a scheduler is obeyed."""

    def __init__(self, by: int) -> None:
        super().__init__(0 if by == signal.SIGTERM else 128 + by)


def adapt(config: AdaptConfig, open_model: OpenModel, paint: Paint, listening: Listening) -> AdaptSummary:
    """Adapt a model, or go on with the run in config.out; a finished run is returned at once.

    Args:
        open_model: opens a pipeline of (model, device, dtype, model_config).
        paint: paints a picture of each prompt.
        listening: takes SIGINT and SIGTERM as a request to stop.

    Raises:
        UserError: what the config asks for cannot be done.
        Stopped: by Ctrl-C or SIGTERM, after a checkpoint; a SystemExit.
    """
    start, out = time.monotonic(), config.out
    begun = is_begun(config)
    if (out / RESULT).exists():
        return AdaptSummary.load(out)
    if not config.full:
        check_peft()
    photos = open_photos(config)
    photos.split(config.held_out_share, config.seed)  # too few of them: said before the model is opened

    def claim() -> None:
        out.mkdir(parents=True, exist_ok=True)
        if not begun:
            configs.save(config, out / run_folder.CONFIG)

    with one_device(config.device) as device, listening() as request:
        model = open_for_training(config, open_model, device)
        data = prepare(config, photos, model, paint, device, lambda: bool(request.signal), claim)
        if data is None:
            log.info("stopped while the VAE learned, which is saved; the same command goes on from there")
            raise Stopped(request.signal)
        cast_frozen(config, model, device)
        at_work = loop.Adaptation(config, data, model, open_trained(config, model), device)
        best, done = loop.run(at_work, paint, lambda: bool(request.signal))
        if not done.finished:
            log.info(
                "stopped after step %d of %d, which is saved; the same command goes on from there",
                done.step, config.steps,
            )  # fmt: skip
            raise Stopped(request.signal)
        at_work.trained.load(best)
        memorised = look_for_copies(at_work, paint)
        if config.full:
            weights = save_pipeline(model, out)
        else:
            about = {"base_model": config.model, "base_model_hash": model.weights_hash}
            weights = save_lora(at_work.trained, out, about)
    assert done.first_loss is not None and done.best_loss is not None
    summary = AdaptSummary(
        out=out, weights=weights, model=config.model, full=config.full, photos=len(data.training),
        held_out=len(data.held_out), steps=done.step, best_step=done.best_step, first_loss=done.first_loss,
        best_loss=done.best_loss, psnr=data.training.psnr, memorised=memorised, seconds=time.monotonic() - start,
    )  # fmt: skip
    summary.save()
    return summary


def is_begun(config: AdaptConfig) -> bool:
    """Whether --out holds this run already.

    Raises:
        UserError: it is another run's, or holds files that are no run's.
    """
    earlier = run_folder.read_config(AdaptConfig, config.out, "adaptation")
    run_folder.check_same_run(config.out, earlier, config, FREE)
    if earlier is None:
        run_folder.refuse_foreign_files(config.out, [path.name for path in config.out.glob("*")])
    return earlier is not None


def look_for_copies(at_work: loop.Adaptation, paint: Paint) -> Memorised:
    """Paint captions of training photos with the weights as they are, and write pairs that are as good as copies."""
    config, data = at_work.config, at_work.data
    captions = [data.training.captions[number * len(data.training) // COMPARED] for number in range(COMPARED)]
    painted = paint(
        at_work.model, captions, seed=config.seed + 1, guidance_scale=config.guidance_scale,
        num_inference_steps=config.num_inference_steps,
    )  # fmt: skip
    thumbnails = thumbnail(painted.permute(0, 3, 1, 2))
    found, distances, of_photo = compare(thumbnails, data.training.thumbnails, data.held_out.thumbnails)
    order = [number for number in distances.argsort().tolist() if distances[number] < found.threshold][:SHOWN]
    shown = (data.training.thumbnails * 255).round().byte()
    side = tuple(painted.shape[1:3])
    enlarged = torch.nn.functional.interpolate(shown.float(), side, mode="nearest").byte().permute(0, 2, 3, 1)
    write_grid(config.out / "memorised.png", [[painted[n].numpy(), enlarged[int(of_photo[n])].numpy()] for n in order])
    return found


@dataclass(frozen=True)
class Estimate:
    """What is to be expected of a run."""

    config: AdaptConfig
    photos: int
    held_out: int
    weights: int
    step_seconds: float
    memory_bytes: float
    device: str

    def __str__(self) -> str:
        steps, count = self.config.steps, self.config.batch_size
        return "\n".join(
            [
                f"photos     {self.photos:,} to learn from, {self.held_out:,} held out",
                f"steps      {steps:,} of {count:,} photos at most: each is seen "
                f"{as_number(steps * count / self.photos)} times",
                f"weights    {self.weights / 1e6:,.2f} million learn, "
                f"{as_bytes(STATE_BYTES * self.weights)} of checkpoint",
                f"memory     {as_bytes(self.memory_bytes)} on {self.device}",
                f"step       {as_number(self.step_seconds)} s, {as_number(count / self.step_seconds)} photos/s",
                f"hours      {as_number(steps * self.step_seconds / 3600)}, without looks, samples"
                + (" and the VAE's steps" if self.config.vae_steps else ""),
            ]
        )


def estimate(config: AdaptConfig, open_model: OpenModel, paint: Paint) -> Estimate:
    """Take a few steps, the median of the last three counts. Writes nothing.

    Raises:
        UserError: what adapt() would refuse.
    """
    is_begun(config)
    if not config.full:
        check_peft()
    photos = open_photos(config)
    photos.split(config.held_out_share, config.seed)
    brief = replace(
        config, vae_steps=min(config.vae_steps, 1), prior_images=min(config.prior_images, config.batch_size)
    )
    with one_device(config.device) as device:
        model = open_for_training(brief, open_model, device)
        data = prepare(brief, photos, model, paint, device, lambda: False, lambda: None, writes=False)
        assert data is not None
        cast_frozen(config, model, device)
        at_work = loop.Adaptation(config, data, model, open_trained(config, model), device)
        seconds = []
        for step in range(WARM_STEPS + MEASURED_STEPS):
            since = time.perf_counter()
            at_work.step(step).item()
            seconds.append(time.perf_counter() - since)
        if device.type == "cuda":
            memory = float(torch.cuda.max_memory_allocated(device))
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    weights = sum(weight.numel() for weight in at_work.trained.weights.values())
    return Estimate(
        config, len(data.training), len(data.held_out), weights, statistics.median(seconds[WARM_STEPS:]), memory,
        str(device),
    )  # fmt: skip
