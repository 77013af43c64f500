"""The job: prompts to shards, resumable shard by shard."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stablerep import distributed, shards
from stablerep.config import UserError
from stablerep.generate import screen, sweep
from stablerep.generate.batch import Painter, open_painter
from stablerep.generate.config import GenerateConfig
from stablerep.generate.encode import as_file, decide_encoder, encoder_as_begun
from stablerep.generate.origin import identity_of, start_dataset
from stablerep.generate.paint import Painted, paint_shard
from stablerep.generate.pipeline import Pipeline, open_pipeline
from stablerep.generate.publish import ShardWriter, open_writer
from stablerep.generate.sampler import is_guided
from stablerep.generate.settings import settings_of
from stablerep.generate.summary import UNREADABLE, GenerateSummary, SweepSummary, mean_scores, reasons_in
from stablerep.prompts import Prompt, read_prompts
from stablerep.runlog import Progress, progress
from stablerep.storage import reach, write


def generate(config: GenerateConfig, again: Collection[int] = ()) -> GenerateSummary | SweepSummary:
    """Paint K pictures of every prompt into shards; whatever is already there is kept, but for the shards in again.

    Several guidance scales make a run of each, in a folder of its own below out; then the result is a SweepSummary.

    Raises:
        UserError: bad prompts or model, or a folder that holds another run.
    """
    if config.dry_run:
        raise UserError("--dry-run paints no shards; in Python call stablerep.generate.dry_run.estimate(config)")
    prompts = read_prompts(Path(config.prompts))
    reach(config.folder)
    with distributed.start(config.device) as device:
        pipeline = open_pipeline(config.model, device, config.lora)
        runs = sweep.runs_of(config)
        if len(runs) == 1:
            return _generate(config, prompts, pipeline, device, again)
        shared = identity_of(config, prompts, pipeline.weights_hash)
        for name in ("guidance_scale", "engine", "jpeg_encoder"):  # what chooses itself has its name in dataset.json
            shared.pop(name, None)
        sweep.check_folder(config.folder, shared)
        return SweepSummary(tuple(_generate(run, prompts, pipeline, device, ()) for run in runs))


def _generate(
    config: GenerateConfig,
    prompts: Sequence[Prompt],
    pipeline: Pipeline,
    device: torch.device,
    again: Collection[int],
) -> GenerateSummary:
    out, config = config.folder, decide_encoder(encoder_as_begun(config), device)
    guided = is_guided([settings_of(prompt, config).guidance_scale for prompt in prompts])
    painter = open_painter(config, pipeline, device, guided=guided)
    start_dataset(config, prompts, painter.engine.name, pipeline.weights_hash)

    blocks = [prompts[i : i + config.prompts_per_shard] for i in range(0, len(prompts), config.prompts_per_shard)]
    with open_writer(out, config.staging) as writer:
        missing = writer.missing(len(blocks), again)
        tally = _Tally()
        _paint_missing(painter, blocks, missing, tally, writer)
    stats = list(writer.done.values())
    reasons = reasons_in(stats)
    summary = GenerateSummary(
        out=out,
        images=sum(each["images"] for each in stats),
        images_made=tally.kept,
        seconds=tally.seconds,
        wait_share=tally.wait_share,
        prompts=len(prompts),
        prompts_empty=sum(not prompt.text and not prompt.problem for prompt in prompts),
        prompts_cut=sum(pipeline.is_cut(prompt.text) for prompt in prompts),
        prompts_unreadable=reasons.pop(UNREADABLE, 0) // config.num_images_per_prompt,
        prompts_short=sum(each["short"] for each in stats),
        screen=config.screen,
        screened=dict(sorted(reasons.items())),
        scores=mean_scores(stats),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        engine=painter.engine.name,
        batch_size=painter.batch_size.value,
    )
    if missing or not (out / "summary.json").exists():
        write(out / "summary.json", summary.as_json())
    return summary


@dataclass
class _Tally:
    """What has happened so far, for the progress line and the summary."""

    kept: int = 0
    rejected: int = 0
    waited: float = 0.0  # seconds that painting stood still for the writer
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def wait_share(self) -> float:
        return self.waited / max(self.seconds, 1e-9)

    @property
    def note(self) -> str:
        rejected = f"{self.rejected} not kept" if self.rejected else ""
        waited = f"{self.wait_share:.0%} waiting for writing" if self.wait_share >= 0.01 else ""
        return ", ".join(filter(None, (rejected, waited)))

    def wait(self, writing: Future[None]) -> None:
        """Let the writer finish; what stopped it, a full disk for instance, surfaces here before more work is done."""
        start = time.perf_counter()
        writing.result()
        self.waited += time.perf_counter() - start


def _paint_missing(
    painter: Painter,
    blocks: Sequence[Sequence[Prompt]],
    missing: Sequence[int],
    tally: _Tally,
    shard_writer: ShardWriter,
) -> None:
    k = painter.config.num_images_per_prompt
    total = k * sum(map(len, blocks))
    completed = total - k * sum(len(blocks[number]) for number in missing)
    # One thread encodes and writes a shard while the next is painted; more than one would only pile up memory.
    with progress("generate", total, "images", start=completed) as bar, ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for number in missing:
            due = k * len(blocks[number])
            told = partial(_tell, bar, tally, completed, due)
            pictures = paint_shard(painter, blocks[number], told)
            completed += due
            kept = sum(picture.pixels is not None for of_prompt in pictures for picture in of_prompt)
            tally.kept += kept
            tally.rejected += sum(map(len, pictures)) - kept
            bar.update(completed, tally.note)
            if writing is not None:
                tally.wait(writing)
            writing = writer.submit(_write, shard_writer, number, blocks[number], pictures, painter)
        if writing is not None:
            tally.wait(writing)
        tally.wait(writer.submit(shard_writer.flush))


def _tell(bar: Progress, tally: _Tally, completed: int, due: int, painted: int) -> None:
    # New pictures in the place of those that were not kept bring the end no nearer.
    bar.update(completed + min(painted, due), tally.note)


def _write(
    writer: ShardWriter,
    shard: int,
    prompts: Sequence[Prompt],
    pictures: Sequence[Sequence[Painted]],  # of each prompt
    painter: Painter,
) -> None:
    """Encode the pictures of one shard and write it."""
    config = painter.config
    row: dict[str, Any] = {
        "guidance_rescale": config.guidance_rescale,
        "num_inference_steps": config.num_inference_steps,
        "scheduler": config.scheduler,
        "model": painter.pipeline.weights_hash,
        "engine": painter.engine.name,
    }
    samples = []
    for prompt, of_prompt in zip(prompts, pictures, strict=True):
        own = asdict(settings_of(prompt, config))
        samples.append(
            shards.Sample(
                prompt_id=prompt.id,
                prompt=prompt.text,
                ending=config.image_format,
                pictures=[_picture(picture, own | row, config) for picture in of_prompt],
                settings=own,
            )
        )
    writer.write(shard, samples, images_per_prompt=config.num_images_per_prompt)


def _picture(painted: Painted, row: dict[str, Any], config: GenerateConfig) -> shards.Picture:
    file, mark = None if painted.pixels is None else as_file(painted.pixels, config.image_format), painted.mark
    row = row | {
        "width": 0 if file is None else file.width,
        "height": 0 if file is None else file.height,
        "reason": painted.reason,
    }
    row |= screen.columns(mark, config)
    return shards.Picture(painted.index, b"" if file is None else file.data, row)
