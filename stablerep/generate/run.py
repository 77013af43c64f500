"""The job: prompts to shards, resumable shard by shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stablerep import distributed, shards
from stablerep.config import UserError
from stablerep.generate import sweep
from stablerep.generate.config import GenerateConfig
from stablerep.generate.denoise import is_guided
from stablerep.generate.identity import as_begun, start_dataset
from stablerep.generate.settings import settings_of
from stablerep.generate.shard_writer import open_writer
from stablerep.generate.summary import UNREADABLE, GenerateSummary, SweepSummary, mean_scores, reasons_in
from stablerep.generate.tally import Tally
from stablerep.generate.worker import Alone, Block, Crew, Worker
from stablerep.prompts import Prompt, read_prompts
from stablerep.runlog import progress
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
    with _start(config) as crew:
        runs = sweep.runs_of(config)
        if len(runs) == 1:
            return _generate(config, prompts, crew, again)
        sweep.check_folder(config.folder, sweep.shared_identity(config, prompts, crew.weights_hash))
        return SweepSummary(tuple(_generate(run, prompts, crew, ()) for run in runs))


@contextmanager
def _start(config: GenerateConfig) -> Iterator[Crew]:
    """Open the model: here, or with --ray or --gpus in many processes."""
    if config.ray or config.gpus:
        from stablerep.generate import ray_workers as cluster  # an extra

        with cluster.start(config) as actors:
            yield actors
    else:
        with distributed.start(config.device) as device:
            yield Alone(Worker(config, device))


def _generate(config: GenerateConfig, prompts: Sequence[Prompt], crew: Crew, again: Collection[int]) -> GenerateSummary:
    out, per_shard, k = config.folder, config.prompts_per_shard, config.num_images_per_prompt
    guided = is_guided([settings_of(prompt, config).guidance_scale for prompt in prompts])
    choice = crew.begin(as_begun(config), guided)
    config = dataclasses.replace(config, jpeg_encoder=choice.jpeg_encoder)
    start_dataset(config, prompts, choice.engine, crew.weights_hash)

    with open_writer(out, config.staging) as writer:
        missing = writer.missing(-(-len(prompts) // per_shard), again)
        blocks = [Block(number, prompts[number * per_shard : (number + 1) * per_shard]) for number in missing]
        total = k * len(prompts)
        there = total - k * sum(len(block.prompts) for block in blocks)
        with progress("generate", total, "images", start=there) as bar:
            tally = Tally(bar, k, completed=there)

            def take(block: Block, samples: list[shards.Sample]) -> None:
                writer.write(block.shard, samples, images_per_prompt=k)
                tally.written(samples)

            crew.paint(blocks, take, tally)
            with tally.waiting():
                writer.flush()
        seconds, wait_share = tally.seconds, tally.wait_share
    stats = list(writer.done.values())
    reasons = reasons_in(stats)
    summary = GenerateSummary(
        out=out,
        images=sum(each["images"] for each in stats),
        images_made=tally.kept,
        seconds=seconds,
        wait_share=wait_share,
        prompts=len(prompts),
        prompts_empty=sum(not prompt.text and not prompt.problem for prompt in prompts),
        prompts_cut=crew.count_cut([prompt.text for prompt in prompts]),
        prompts_unreadable=reasons.pop(UNREADABLE, 0) // k,
        prompts_short=sum(each["short"] for each in stats),
        screen=config.screen,
        screened=dict(sorted(reasons.items())),
        scores=mean_scores(stats),
        device=crew.device_name,
        engine=choice.engine,
        batch_size=crew.batch_size,
        workers=tally.of_workers,
    )
    if missing or not (out / "summary.json").exists():
        write(out / "summary.json", summary.as_json())
    return summary
