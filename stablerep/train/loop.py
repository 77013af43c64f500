"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stablerep import distributed
from stablerep.config import UserError, parse_share
from stablerep.data.index import split_weight
from stablerep.data.loader import LoaderConfig, PictureSources, open_pictures
from stablerep.data.mixing import TrainingData
from stablerep.data.online import OnlineGenerator, OnlineSource
from stablerep.data.sampling import Sampler, open_source, share_out
from stablerep.data.shard_cache import ShardCache
from stablerep.models import create_encoder, save_exported
from stablerep.runlog import RunLog, progress
from stablerep.train import checkpoint, summary
from stablerep.train.config import OBJECTIVES, TrainConfig
from stablerep.train.initial import Initial, load_initial, refuse_tag
from stablerep.train.metrics import metrics_of, progress_note, refuse_divergence
from stablerep.train.objectives import create_objective
from stablerep.train.optimiser import create_optimiser, learning_rate, update
from stablerep.train.trackers import check_installed, open_trackers
from stablerep.train.watch import OpenWatch, Watch

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
        has_weights = bool(checkpoint.steps(out / checkpoint.CHECKPOINTS))
        initial = Initial.load(out) if has_weights else load_initial(config, model)
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
        run(config, out, data, model, optimiser, device, initial, watch)
        if distributed.rank() == 0:
            encoder, name = model.get_submodule("encoder"), initial.initialized_from
            save_exported(encoder, config.arch, transform, exported, name)
        distributed.barrier()
        return exported


def open_data(config: TrainConfig, device: torch.device, open_online: OpenOnline | None = None) -> TrainingData:
    ranks = distributed.world_size()
    if config.batch_size % (config.views * ranks):
        raise UserError(
            f"--batch-size {config.batch_size} is no multiple of {config.views} views x {ranks} ranks; "
            f"use a multiple of {config.views * ranks}"
        )
    groups = config.batch_size // config.views
    sources = [open_source(data, OBJECTIVES[config.objective].group_by, config.views) for data in config.data]
    if not config.online:
        files = Sampler(sources, groups, config.views, config.seed)
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
    return TrainingData(files, online, groups, pictures_of(config, files))


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
    encoder = create_encoder(config.arch, config.image_size)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    model = create_objective(encoder, config, bf16=bf16)
    model = model.to(device).to(memory_format=torch.channels_last)
    return model, create_optimiser(model, config)


def run(
    config: TrainConfig,
    out: Path,
    data: TrainingData,
    model: nn.Module,
    optimiser: torch.optim.AdamW,
    device: torch.device,
    initial: Initial,
    watch: Watch | None = None,
) -> None:
    """Train from the newest checkpoint, or from the start, to the last step; the model then holds the result."""
    steps = config.steps or math.ceil(config.epochs * data.steps_per_epoch)
    warmup_steps = round(config.warmup * steps)
    first = checkpoint.restore(out, data, model, optimiser, device)
    forward = over_ranks(model, device)
    size, is_first_rank = config.batch_size, distributed.rank() == 0
    with (
        # First, before the bar and the clock: filling a pool has its own.
        data.batches(loader_config(config, initial), device, first_step=first, last_step=steps) as batches,
        RunLog(out, first + 1, enabled=is_first_rank, trackers=open_trackers(config) if is_first_rank else ()) as log,
        progress(f"train {out.name}", steps * size, "images", start=first * size, show=is_first_rank) as bar,
    ):
        metrics = metrics_of(config, model, device)
        for step, batch in enumerate(metrics.timed(batches), first):
            torch.manual_seed(_step_seed(config.seed, step))  # dropout and the like: resumed runs draw the same
            loss = forward(batch)
            loss.backward()
            lr = learning_rate(step, peak=config.peak_lr, steps=steps, warmup_steps=warmup_steps)
            metrics.add(loss, update(optimiser, lr))  # a non-finite update is skipped on the device

            done = step + 1
            if done % config.log_every == 0 or done == steps:
                means = metrics.drain(batch.labels) | data.drain()  # the only waits for the device, but for checkpoints
                log.write(done, lr=lr, epoch=done / data.steps_per_epoch, **means)
                refuse_divergence(means, done, config)
                bar.update(done * size, progress_note(means))
            if watch and (done % config.watch_every == 0 or done == steps):
                with metrics.paused():
                    log.write(done, **watch.look(done, model.get_submodule("encoder")))
            if is_first_rank and (done % config.checkpoint_every == 0 or done == steps):
                state = checkpoint.state_of(data, model, optimiser)
                checkpoint.save(out / checkpoint.CHECKPOINTS, done, state, config.keep_checkpoints)


def over_ranks(model: nn.Module, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def loader_config(config: TrainConfig, initial: Initial) -> LoaderConfig:
    return LoaderConfig(
        image_size=config.image_size, augment=config.augment, mean=initial.mean, std=initial.std, seed=config.seed
    )


def _step_seed(seed: int, step: int) -> int:
    """Another seed for each step and rank; large odd factors keep runs of neighbouring seeds apart."""
    return (seed * 1_000_003 + step * 65_537 + distributed.rank()) % 2**63
