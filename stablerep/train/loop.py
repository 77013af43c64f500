"""The training loop."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stablerep import distributed, ops
from stablerep.config import UserError
from stablerep.data.loader import LoaderConfig
from stablerep.data.mixing import TrainingData
from stablerep.data.online import OnlineGenerator, OnlineSource
from stablerep.data.sampling import Sampler, open_source, share_out, split_weight
from stablerep.models import IMAGENET_MEAN, IMAGENET_STD, InputTransform, ProjectionHead, create_encoder, save_exported
from stablerep.runlog import RunLog, progress
from stablerep.train import checkpoint, run_folder
from stablerep.train.config import TrainConfig
from stablerep.train.metrics import Metrics
from stablerep.train.objective import OBJECTIVES
from stablerep.train.optimiser import create_optimiser, update
from stablerep.train.schedule import learning_rate

OpenOnline = Callable[[torch.device], OnlineGenerator]


def train(config: TrainConfig, open_online: OpenOnline | None = None) -> Path:  # the exported encoder's folder
    """Train an encoder, or go on with the run in config.out; a finished run is returned at once.

    Under torchrun every rank calls this; the first one writes.

    Args:
        open_online: opens what config.online asks for on this rank's device.

    Raises:
        UserError: what the config asks for cannot be done, said in one line.
    """
    with distributed.start(config.device) as device:
        exported = Path(config.out) / "exported"
        # The data first: a mistake there must not leave a folder behind.
        data = None if exported.exists() else open_data(config, device, open_online)
        out = run_folder.claim(config, data.online.identity if data and data.online else None)
        if data:
            model, optimiser = build(config, device)
            run(config, out, data, model, optimiser, device)
            if distributed.rank() == 0:
                save_exported(model.get_submodule("encoder"), config.arch, InputTransform(config.image_size), exported)
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
        return TrainingData(Sampler(sources, groups, config.views, config.seed), None, groups)
    assert open_online is not None, "whoever sets config.online hands in what opens it"
    _, weight = split_weight(config.online, "--online")
    of_files = sum(source.weight for source in sources)
    painted = ranks * share_out(groups // ranks, [of_files, weight])[1] if sources else groups
    pool = config.pool_prompts, config.pool_uses
    online = OnlineSource(open_online(device), painted, config.views, config.seed, *pool)
    files = Sampler(sources, groups - painted, config.views, config.seed) if sources else None
    return TrainingData(files, online, groups)


def build(config: TrainConfig, device: torch.device) -> tuple[nn.Module, torch.optim.AdamW]:
    """Encoder and head with the weights the seed gives, and their optimiser."""
    torch.manual_seed(config.seed)
    encoder = create_encoder(config.arch, config.image_size)
    width: int = encoder.num_features  # type: ignore[assignment]
    head = ProjectionHead(width, config.head_hidden, config.head_out)
    model = nn.Sequential(OrderedDict(encoder=encoder, head=head))
    model = model.to(device).to(memory_format=torch.channels_last)
    return model, create_optimiser(model, config)


def run(
    config: TrainConfig,
    out: Path,
    data: TrainingData,
    model: nn.Module,
    optimiser: torch.optim.AdamW,
    device: torch.device,
) -> None:
    """Train from the newest checkpoint, or from the start, to the last step; the model then holds the result."""
    steps = config.steps or math.ceil(config.epochs * data.steps_per_epoch)
    first = restore(out, data, model, optimiser, device)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    forward = over_ranks(model, device)
    with ExitStack() as stack:
        is_first_rank = distributed.rank() == 0
        # Before the bar and the clock: filling a pool has its own.
        loader = stack.enter_context(data.batches(loader_config(config), device, first_step=first, last_step=steps))
        metrics = Metrics(device, config.batch_size)
        runlog = stack.enter_context(RunLog(out, first + 1)) if is_first_rank else None
        title, total, start = f"train {out.name}", steps * config.batch_size, first * config.batch_size
        bar = stack.enter_context(progress(title, total, "images", start=start, show=is_first_rank))

        for step, batch in enumerate(metrics.timed(loader), first):
            torch.manual_seed(_step_seed(config.seed, step))  # dropout and the like: resumed runs draw the same
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                features = forward(batch.images)
            loss = ops.multi_positive_loss(features, batch.labels, config.temperature, distributed.everyone())
            loss.backward()
            lr = learning_rate(step, peak=config.peak_lr, steps=steps, warmup_steps=round(config.warmup * steps))
            metrics.add(loss, *update(optimiser, lr))  # a non-finite update is skipped on the device

            done = step + 1
            if done % config.log_every == 0 or done == steps:
                means = metrics.drain() | data.drain()  # the only waits for the device, but for checkpoints
                if runlog:
                    runlog.write(done, lr=lr, epoch=done / data.steps_per_epoch, **means)
                _refuse_divergence(means, done, config)
                note = f"loss {means['loss']:.3f}, data wait {means['data_wait_share']:.1%}"
                note += f", paint share {means['paint_share']:.1%}" if data.online else ""
                bar.update(done * config.batch_size, note)
            if is_first_rank and (done % config.checkpoint_every == 0 or done == steps):
                state = {
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "data": data.fingerprint(),
                }
                checkpoint.save(out / "checkpoints", done, state, config.keep_checkpoints)


def restore(
    out: Path, data: TrainingData, model: nn.Module, optimiser: torch.optim.AdamW, device: torch.device
) -> int:  # the step to go on with
    state = checkpoint.load_newest(out / "checkpoints", device)
    distributed.barrier()  # every rank has read it before the first one writes again
    if state is None:
        return 0
    if state["data"] != data.fingerprint():
        raise UserError(
            f"--data holds other pictures than when {out} was begun; bring them back or choose another --out"
        )
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"]


def over_ranks(model: nn.Module, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def loader_config(config: TrainConfig) -> LoaderConfig:
    return LoaderConfig(
        image_size=config.image_size, augment=config.augment, mean=IMAGENET_MEAN, std=IMAGENET_STD, seed=config.seed
    )


def _step_seed(seed: int, step: int) -> int:
    """Another seed for each step and rank; large odd factors keep runs of neighbouring seeds apart."""
    return (seed * 1_000_003 + step * 65_537 + distributed.rank()) % 2**63


def _refuse_divergence(means: dict[str, float], step: int, config: TrainConfig) -> None:
    if math.isnan(means["loss"]):
        raise UserError(
            f"no gradient was finite in the {config.log_every} steps before step {step}; lower --base-lr "
            f"{config.base_lr:g} or raise --temperature {config.temperature:g}, or try --precision fp32"
        )
