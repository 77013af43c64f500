"""`stablerep-train --dry-run`: what a run would show, take and cost, from its first few steps. Writes nothing.

The steps are the run's own loop, on its own data, in a folder that is thrown away.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from stablerep import distributed
from stablerep.data.loader import Batch, LoaderConfig
from stablerep.data.mixing import TrainingData
from stablerep.runlog import as_bytes, as_number
from stablerep.train import checkpoint, loop, memory
from stablerep.train.config import TrainConfig
from stablerep.train.initial import load_initial, refuse_tag
from stablerep.train.metrics import metrics_of
from stablerep.train.step import WARM_UP as GRAPH_AFTER

WARM_STEPS, MEASURED_STEPS = 2, 3
STATE_BYTES = 12  # of a weight in a checkpoint: float32, and AdamW's two means


@dataclass(frozen=True)
class Estimate:
    """What is to be expected of a run."""

    pictures: int  # in files; 0: all are painted
    steps_per_epoch: float
    steps: int
    steps_done: int
    batch_size: int  # over all ranks
    step_seconds: float
    data_wait_share: float
    weights: int  # of encoder and all else that is trained
    memory_bytes: float  # of a rank
    memory_limit: float
    checkpoint_bytes: float  # of all that are kept
    device: str
    ranks: int
    usd_per_hour: float | None

    @property
    def hours(self) -> float:
        return (self.steps - self.steps_done) * self.step_seconds / 3600

    def __str__(self) -> str:
        done = f", {self.steps_done:,} of them done already" if self.steps_done else ""
        epochs = self.steps / self.steps_per_epoch
        per_second = self.batch_size / self.step_seconds
        where = f"{self.ranks} x {self.device}" if self.ranks > 1 else self.device
        wait = f", {self.data_wait_share:.0%} of it waiting for data" if self.data_wait_share >= 0.01 else ""
        lines = [
            f"pictures   {self.pictures:,} in files" if self.pictures else "pictures   painted for the run",
            f"steps      {self.steps:,} of {self.batch_size:,} pictures{done}",
            f"epochs     {as_number(epochs)}: {self.steps * self.batch_size:,} views of pictures are shown",
            f"weights    {self.weights / 1e6:,.1f} million, {as_bytes(self.checkpoint_bytes)} of checkpoints are kept",
            f"memory     {as_bytes(self.memory_bytes)} of {as_bytes(self.memory_limit)} on {self.device}",
            f"step       {as_number(self.step_seconds)} s, {as_number(per_second)} images/s on {where}{wait}",
            f"hours      {as_number(self.hours)}",
        ]
        if self.usd_per_hour is not None:
            cost = self.hours * self.ranks * self.usd_per_hour
            lines.append(f"cost       ${cost:,.2f} at ${self.usd_per_hour:,.2f} an hour of a device")
        return "\n".join(lines)


def estimate(config: TrainConfig, open_online: loop.OpenOnline | None = None) -> Estimate:
    """Take the first steps of a run, the median of the last three counts, and reckon up the whole.

    Under torchrun every rank calls this.

    Raises:
        UserError: what train() would refuse.
    """
    with distributed.start(config.device) as device, tempfile.TemporaryDirectory() as folder:
        if not checkpoint.is_begun(config):
            refuse_tag(config)
        done = max(checkpoint.steps(Path(config.out) / checkpoint.CHECKPOINTS), default=0)
        out = Path(folder, "dry-run")
        out.mkdir()
        # A log line a step, and none of what a run leaves behind: not even a note of pictures that are damaged.
        trial = replace(config, out=out, log_every=1, checkpoint_every=10**9, watch=None, track=())
        data = loop.open_data(trial, device, open_online)
        model, optimiser = loop.build(trial, device)
        initial = load_initial(trial, model)
        metrics = metrics_of(trial, model, device)
        warm_steps = GRAPH_AFTER + 1 if config.cuda_graph else WARM_STEPS  # one is the capture
        first = _FirstBatches(**vars(data), warm_steps=warm_steps)
        loop.run(trial, first, model, optimiser, device, initial, metrics)
        seconds, wait = _measured(out, config.batch_size) if distributed.rank() == 0 else (math.nan, math.nan)
        weights = sum(weight.numel() for weight in model.parameters())
        taken, limit = _memory(device)
        return Estimate(
            pictures=sum(len(each.index) for each in data.pictures.encoded) if data.pictures else 0,
            steps_per_epoch=data.steps_per_epoch,
            steps=config.steps or math.ceil(config.epochs * data.steps_per_epoch),
            steps_done=done,
            batch_size=config.batch_size,
            step_seconds=seconds,
            data_wait_share=wait,
            weights=weights,
            memory_bytes=taken,
            memory_limit=limit,
            checkpoint_bytes=STATE_BYTES * weights * config.keep_checkpoints,
            device=device.type,
            ranks=distributed.world_size(),
            usd_per_hour=config.usd_per_hour,
        )


@dataclass(frozen=True)
class _FirstBatches(TrainingData):
    warm_steps: int = WARM_STEPS

    @contextmanager
    def batches(
        self, config: LoaderConfig, device: torch.device, *, first_step: int, last_step: int
    ) -> Iterator[Iterator[Batch]]:
        few = self.warm_steps + MEASURED_STEPS
        with super().batches(config, device, first_step=0, last_step=max(few, last_step)) as all_of_them:
            yield islice(all_of_them, few)


def _measured(out: Path, batch_size: int) -> tuple[float, float]:
    """Seconds of a step and the share of it that is spent on data, by the run's own metrics."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-MEASURED_STEPS:]
    rate = statistics.median(line["images_per_second"] for line in lines)
    return batch_size / rate, statistics.median(line["data_wait_share"] for line in lines)


def _memory(device: torch.device) -> tuple[float, float]:
    """Bytes: the most that was taken, and what there is."""
    taken = memory.peak_gb(device) * 1e9
    if device.type == "cuda":
        return taken, torch.cuda.get_device_properties(device).total_memory
    return taken, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
