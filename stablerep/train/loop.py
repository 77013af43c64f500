"""The training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stablerep import distributed
from stablerep.config import UserError, parse_share
from stablerep.data.index import split_weight
from stablerep.data.loader import LoaderConfig, PictureSources, open_pictures
from stablerep.data.mixing import TrainingData
from stablerep.data.online import OnlineGenerator, OnlineSource
from stablerep.data.sampling import Sampler, open_source, share_out, warn_of_same_files
from stablerep.data.shard_cache import ShardCache
from stablerep.models import create_encoder, save_exported, set_activation_checkpointing
from stablerep.runlog import RunLog, progress
from stablerep.train import checkpoint, gradient_cache, memory, parallel, summary
from stablerep.train.acceleration import choose_precision, compile_model
from stablerep.train.backward import Backward
from stablerep.train.config import OBJECTIVES, TrainConfig
from stablerep.train.initial import Initial, load_initial, refuse_tag
from stablerep.train.metrics import Metrics, metrics_of, progress_note, refuse_divergence
from stablerep.train.objectives import create_objective
from stablerep.train.optimiser import create_optimiser, learning_rate
from stablerep.train.step import open_step
from stablerep.train.stopping import Stopped, listening
from stablerep.train.trackers import check_installed, open_trackers
from stablerep.train.watch import OpenWatch, Watch

log = logging.getLogger("stablerep.train")

OpenOnline = Callable[[torch.device], OnlineGenerator]


def train(
    config: TrainConfig, open_online: OpenOnline | None = None, open_watch: OpenWatch | None = None
) -> Path:  # the exported encoder's folder
    """Train an encoder, or go on with the run in config.out; a finished run is returned at once.

    Under torchrun every rank calls this; the first one writes.

    Args:
        open_online: opens what config.online asks for on this rank's device.
        open_watch: opens what config.watch asks for there.

    Raises:
        UserError: what the config asks for cannot be done.
        Stopped: by Ctrl-C or SIGTERM, after a checkpoint; a SystemExit. Only the main thread can be asked.
    """
    with distributed.start(config.device) as device:
        out = Path(config.out)
        exported = out / "exported"
        begun = checkpoint.is_begun(config)
        if exported.exists():
            return exported
        if not begun:  # before there was --pretrained, a tag meant nothing; such a run goes on
            refuse_tag(config)
        check_installed(config)
        # Data and weights before the folder: a mistake there must not leave one behind.
        data = open_data(config, device, open_online)
        model, optimiser = build(config, device)
        metrics = metrics_of(config, model, device)  # before weights are shared out: their arithmetic is counted whole
        has_weights = bool(checkpoint.steps(out / checkpoint.CHECKPOINTS))
        initial = Initial.load(out) if has_weights else load_initial(config, model)
        if config.parallel == "fsdp" and distributed.world_size() > 1:
            optimiser = parallel.shard(model, config, device)
        checkpoint.claim_folder(config, data.online.identity if data.online else None)
        if distributed.rank() == 0 and not has_weights:
            initial.save(out)
        if distributed.rank() == 0 and data.pictures:
            summary.write_data(out, config.data, data.pictures)
        transform = replace(initial.transform(config.image_size), bit_range=summary.bit_range_of(data.pictures))
        watch = None
        if config.watch:
            assert open_watch is not None, "config.watch needs open_watch"
            watch = Watch(config, open_watch(device), transform, initial.initialized_from)
        run(config, data, model, optimiser, device, initial, metrics, watch)
        encoder = parallel.whole_encoder(model, config)
        if distributed.rank() == 0:
            name = initial.initialized_from
            save_exported(encoder, config.arch, transform, exported, name, getattr(model, "save_beside", None))
        distributed.barrier()
        return exported


def open_data(config: TrainConfig, device: torch.device, open_online: OpenOnline | None = None) -> TrainingData:
    ranks = distributed.world_size()
    if config.batch_size % (config.views * ranks):
        raise UserError(
            f"--batch-size {config.batch_size} is no multiple of {config.views} views x {ranks} ranks; "
            f"use a multiple of {config.views * ranks}"
        )
    gradient_cache.check_divides(config.micro_batch_size, config.batch_size, ranks)
    groups = config.batch_size // config.views
    asked = OBJECTIVES[config.objective]
    sources = [open_source(data, asked.group_by, config.views, texts=asked.reads_text) for data in config.data]
    if len(sources) > 1:
        warn_of_same_files(config.data, sources)
    if not config.online:
        files = Sampler(sources, groups, config.views, config.seed)
        say_repeats(config, files)
        return TrainingData(files, None, groups, pictures_of(config, files))
    assert open_online is not None, "config.online needs open_online"
    _, weight = split_weight(config.online, "--online")
    of_files = sum(source.weight for source in sources)
    painted = ranks * share_out(groups // ranks, [of_files, weight])[1] if sources else groups
    pool = config.pool_prompts, config.pool_uses
    online = OnlineSource(open_online(device), painted, config.views, config.seed, *pool)
    if not sources:
        return TrainingData(None, online, groups)
    files = Sampler(sources, groups - painted, config.views, config.seed)
    say_repeats(config, files)
    return TrainingData(files, online, groups, pictures_of(config, files))


def say_repeats(config: TrainConfig, files: Sampler) -> None:
    """Say of a --data that a batch holds more groups of it than it has: they come up more than once in each."""
    what = "prompts" if OBJECTIVES[config.objective].group_by == "prompt" else "pictures"
    shares = share_out(files.images_per_step // config.views, [source.weight for source in files.sources])
    for name, source, share in zip(config.data, files.sources, shares, strict=True):
        if share > len(source.count) and distributed.rank() == 0:
            step = config.views * distributed.world_size()
            most = config.batch_size * len(source.count) // share // step * step
            log.info(
                "--data %s has %d %s and a batch holds %d: each comes up more than once in it, as positives of itself; "
                "a --batch-size of %d shows each once",
                name, len(source.count), what, share, most,
            )  # fmt: skip


def pictures_of(config: TrainConfig, files: Sampler) -> PictureSources:
    return open_pictures(
        files,
        bit_range=config.bit_range,
        known_ranges=summary.read_bit_ranges(config.out),
        cache=ShardCache(config.cache_dir, round(config.cache_gb * 1e9)),
        record=summary.damaged_record(config.out),
        most_damaged=parse_share("--max-damaged", config.max_damaged),
    )


def build(config: TrainConfig, device: torch.device) -> tuple[nn.Module, torch.optim.AdamW]:
    """Objective and encoder with the random weights that the seed gives, and their optimiser."""
    torch.manual_seed(config.seed)
    small_size = config.synclr.local_crop_size if config.synclr.local_crops else None
    encoder = create_encoder(config.arch, config.image_size, small_size)
    if config.activation_checkpointing:
        set_activation_checkpointing(encoder, config.arch)
    model = create_objective(encoder, config, bf16=choose_precision(config, device))
    gradient_cache.check_can_split(model, config.arch, config.micro_batch_size)
    # Of a plain ViT that is the patch embedding alone, where it makes no difference, in time or in bits.
    model = model.to(device).to(memory_format=torch.channels_last)
    compile_model(model, config, device)
    return model, create_optimiser(model, config)


def run(
    config: TrainConfig,
    data: TrainingData,
    model: nn.Module,
    optimiser: torch.optim.AdamW,
    device: torch.device,
    initial: Initial,
    metrics: Metrics,
    watch: Watch | None = None,
) -> None:
    """Train from the newest checkpoint, or from the start, to the last step; the model then holds the result."""
    out = Path(config.out)
    steps = config.steps or math.ceil(config.epochs * data.steps_per_epoch)
    warmup_steps = round(config.warmup * steps)
    first = checkpoint.restore(out, data, model, optimiser, device)
    take_step = open_step(config, Backward(model, device, config.micro_batch_size, out), optimiser, device)
    size, is_first_rank = config.batch_size, distributed.rank() == 0
    update_teacher = getattr(model, "update_teacher", lambda progress: None)
    if first == 0:
        update_teacher(None)  # pretrained weights are the teacher's too
    with (
        # First, before the bar and the clock: filling a pool has its own.
        data.batches(loader_config(config, initial, model), device, first_step=first, last_step=steps) as batches,
        RunLog(out, first + 1, enabled=is_first_rank, trackers=open_trackers(config) if is_first_rank else ()) as log,
        progress(f"train {out.name}", steps * size, "images", start=first * size, show=is_first_rank) as bar,
        listening() as request,
        checkpoint.Saver(out / checkpoint.CHECKPOINTS, config.keep_checkpoints, device, enabled=is_first_rank) as saver,
    ):
        for step, batch in enumerate(metrics.timed(batches), first):
            torch.manual_seed(_step_seed(config.seed, step))  # dropout and the like: resumed runs draw the same
            lr = learning_rate(step, peak=config.peak_lr, steps=steps, warmup_steps=warmup_steps)
            metrics.add(*take_step(batch, lr))  # a non-finite update is skipped on the device

            done = step + 1
            update_teacher(done / steps)
            if done % config.log_every == 0 or done == steps:
                means = metrics.drain(batch.labels) | data.drain()  # the only waits for the device
                peak = memory.peak_gb(device)
                log.write(done, lr=lr, epoch=done / data.steps_per_epoch, peak_memory_gb=peak, **means)
                refuse_divergence(means, done, config)
                bar.update(done * size, progress_note(means))
            if watch and (done % config.watch_every == 0 or done == steps):
                with metrics.paused():
                    log.write(done, **watch.look(done, parallel.whole_encoder(model, config)))
            stopped_by = request.agreed_on()
            if done % config.checkpoint_every == 0 or done == steps or stopped_by:
                saver.save(done, checkpoint.state_of(data, model, optimiser))  # every rank: it gathers what is sharded
            if stopped_by and done < steps:
                saver.wait()
                checkpoint.say_saved(done, steps)
                raise Stopped(stopped_by, done)


def loader_config(config: TrainConfig, initial: Initial, model: nn.Module) -> LoaderConfig:
    text_tower, asked = getattr(model, "text_tower", None), config.synclr
    vit: Any = model.get_submodule("encoder")
    return LoaderConfig(
        image_size=config.image_size, augment=config.augment, mean=initial.mean, std=initial.std, seed=config.seed,
        tokenize=text_tower.tokenizer if text_tower else None,
        small_crops=asked.local_crops, small_size=asked.local_crop_size,
        mask_grid=vit.patch_embed.grid_size if asked.ibot_weight else None,
    )  # fmt: skip


def _step_seed(seed: int, step: int) -> int:
    """Another seed for each step and rank; large odd factors keep runs of neighbouring seeds apart."""
    return (seed * 1_000_003 + step * 65_537 + distributed.rank()) % 2**63
