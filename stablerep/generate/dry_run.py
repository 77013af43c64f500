"""`stablerep-gen --dry-run`: what a run would make, take and cost, from one painted batch. Writes nothing."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stablerep import distributed
from stablerep.config import UserError
from stablerep.engines.module import DTYPES
from stablerep.generate.config import GenerateConfig
from stablerep.generate.encode import decide_encoder, to_file
from stablerep.generate.identity import check_folder, check_sweep_folder, resume_choices, resume_prompts
from stablerep.generate.painter import BatchSize, open_painter, paint_shard
from stablerep.generate.pipeline import Pipeline, open_pipeline
from stablerep.generate.shard_writer import read_done
from stablerep.generate.worker import warn_of_scripts
from stablerep.prompts import Prompt, read_prompts
from stablerep.runlog import as_bytes, as_number
from stablerep.storage import reach

MOST_SECONDS = 60.0  # for the batch that is measured, if one picture alone is slow
TAR_BLOCK = 512  # a member is a block of header and whole blocks of data; two of a prompt's JSON


@dataclass(frozen=True)
class Estimate:
    """What is to be expected of a run."""

    prompts: int
    images: int  # all of the run
    images_there: int  # in finished shards already
    image_bytes: float  # mean over the sample, in the tar
    sampled: int  # pictures painted for this
    batch_size: int
    images_per_second: float
    device: str
    usd_per_hour: float | None
    workers: int = 1  # that share the hours

    @property
    def hours(self) -> float:
        return (self.images - self.images_there) / self.images_per_second / 3600

    @property
    def bytes(self) -> float:
        return self.images * self.image_bytes + self.prompts * 3 * TAR_BLOCK

    def __str__(self) -> str:
        there = f", {self.images_there:,} of them there already" if self.images_there else ""
        kind = "CPU-hours" if self.device == "cpu" else "GPU-hours"
        lines = [
            f"prompts    {self.prompts:,}",
            f"images     {self.images:,}{there}",
            f"bytes      {as_bytes(self.bytes)}: {as_bytes(self.image_bytes)} a picture, mean of {self.sampled}",
            f"{kind}  {as_number(self.hours)}: {as_number(self.images_per_second)} images/s on {self.device} "
            f"in a batch of {self.batch_size}, without new pictures for those that screening drops",
        ]
        if self.workers > 1:
            lines.append(f"hours      {as_number(self.hours / self.workers)} on {self.workers} workers")
        if self.usd_per_hour is not None:
            lines.append(f"cost       ${self.hours * self.usd_per_hour:,.2f} at ${self.usd_per_hour:,.2f} an hour")
        return "\n".join(lines)


@dataclass(frozen=True)
class SweepEstimate:
    """What is to be expected of several guidance scales."""

    runs: dict[str, Estimate]  # by the name of the folder

    def __str__(self) -> str:
        each = list(self.runs.values())
        total = [
            f"images     {sum(run.images for run in each):,}",
            f"bytes      {as_bytes(sum(run.bytes for run in each))}",
            f"hours      {as_number(sum(run.hours / run.workers for run in each))}",
        ]
        if (usd := each[0].usd_per_hour) is not None:
            total.append(f"cost       ${usd * sum(run.hours for run in each):,.2f}")
        return "\n\n".join([*(f"{name}\n{run}" for name, run in self.runs.items()), "\n".join(["together", *total])])


def estimate(config: GenerateConfig) -> Estimate | SweepEstimate:
    """Paint one batch of prompts from the whole file, after one picture to warm up, and reckon up the run.

    Several guidance scales are measured one by one.

    Raises:
        UserError: what generate() would refuse.
    """
    prompts = read_prompts(Path(config.prompts), config.encoding, config.csv_plain)
    reach(config.folder)
    workers = _workers(config)
    runs = config.runs()
    with distributed.start(config.device) as device:
        pipeline = open_pipeline(config.model, device, config.lora, DTYPES.get(config.dtype), config.model_config)
        warn_of_scripts(config, prompts, pipeline.reads_latin_only)
        if len(runs) == 1:
            return _estimate(config, prompts, pipeline, device, workers)
        check_sweep_folder(config, prompts, pipeline.weights_hash)
        return SweepEstimate({run.folder.name: _estimate(run, prompts, pipeline, device, workers) for run in runs})


def _estimate(
    config: GenerateConfig, prompts: Sequence[Prompt], pipeline: Pipeline, device: torch.device, workers: int
) -> Estimate:
    config = decide_encoder(resume_choices(config), device)
    whole = open_painter(config, pipeline, device, guided=config.is_guided(prompts))
    check_folder(config, resume_prompts(config.folder, prompts), whole.engine.name, pipeline.weights_hash)

    def paint(count: int) -> tuple[list[int], float, int]:
        """Sizes of the encoded pictures, seconds a picture, and the batch that fitted."""
        chosen, k = _spread(prompts, count, config.num_images_per_prompt)
        sample = dataclasses.replace(config, num_images_per_prompt=k, screen_retries=0)
        painter = dataclasses.replace(whole, config=sample, batch_size=BatchSize(config.batch_size))
        start = time.perf_counter()
        painted = [picture for of_prompt in paint_shard(painter, chosen) for picture in of_prompt]
        middle = time.perf_counter()
        sizes = [len(to_file(each.pixels, config.image_format).data) for each in painted if each.pixels is not None]
        # A run encodes one shard while it paints the next: the slower of the two counts.
        seconds = max(middle - start, time.perf_counter() - middle) / len(painted)
        return sizes, seconds, min(len(painted), painter.batch_size.value)

    _, seconds, _ = paint(1)
    images = len(prompts) * config.num_images_per_prompt
    sizes, seconds, batch = paint(max(1, min(config.batch_size, images, int(MOST_SECONDS / seconds))))
    in_tar = [TAR_BLOCK * (1 + math.ceil(size / TAR_BLOCK)) for size in sizes]
    return Estimate(
        prompts=len(prompts),
        images=images,
        images_there=_there(config, len(prompts)),
        image_bytes=sum(in_tar) / max(len(in_tar), 1),
        sampled=len(sizes),
        batch_size=batch,
        images_per_second=1 / seconds,
        device=device.type,
        usd_per_hour=config.usd_per_hour,
        workers=workers,
    )


def _workers(config: GenerateConfig) -> int:
    """How many would paint; the sample is painted by one, in this process."""
    if not (config.ray or config.gpus):
        return 1
    from stablerep.generate import ray_workers  # an extra

    with ray_workers.join_cluster(config) as plan:
        if plan.device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "--dry-run paints its sample here, and only the Ray cluster has GPUs; run it on one of those"
            )
        return plan.count


def _spread(prompts: Sequence[Prompt], count: int, k: int) -> tuple[list[Prompt], int]:
    """About count pictures: prompts from the whole file, and how many of each."""
    paintable = [prompt for prompt in prompts if not prompt.problem]
    rows = min(count, len(paintable))
    return [paintable[i * len(paintable) // rows] for i in range(rows)], min(k, math.ceil(count / rows))


def _there(config: GenerateConfig, prompts: int) -> int:
    """Pictures of finished shards."""
    each, done_shards = config.prompts_per_shard, read_done(config.folder)
    done = [first for number, first in enumerate(range(0, prompts, each)) if number in done_shards]
    return config.num_images_per_prompt * sum(min(each, prompts - first) for first in done)
