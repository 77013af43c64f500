"""One call of `stablerep-gen`: prompts to shards, resumable shard by shard; a run for each guidance scale."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stablerep import distributed, shards
from stablerep.config import UserError
from stablerep.generate.claims import Claims, SoleClaims, open_claims
from stablerep.generate.config import GenerateConfig
from stablerep.generate.identity import (
    begin_or_resume,
    check_sweep_folder,
    origin_of,
    resume_choices,
    resume_prompts,
)
from stablerep.generate.shard_queue import ShardQueue
from stablerep.generate.shard_writer import open_writer
from stablerep.generate.summary import (
    UNREADABLE,
    GenerateSummary,
    RunProgress,
    SweepSummary,
    mean_scores,
    reasons_in,
)
from stablerep.generate.worker import Backends, Block, LocalPool, RunSpec, Worker, WorkerPool, warn_of_scripts
from stablerep.prompts import Prompt, caption_key, read_prompts
from stablerep.runlog import progress
from stablerep.storage import reach, write

log = logging.getLogger("stablerep.generate")


def generate(config: GenerateConfig, repaint: Collection[int] = ()) -> GenerateSummary | SweepSummary:
    """Paint K pictures of every prompt into shards; whatever is there already is kept, but for the shards in repaint.

    Several guidance scales make a run of each, in a folder of its own below out; then the result is a SweepSummary.
    Any number of processes and machines may do this in the same folder at once: each shard is painted by one of them,
    and each returns when all shards are done. Where nothing was kept, or more was lost than max_rejected allows, the
    shards stay, and the summary's `problem` says so: the command ends with exit code 3 then.

    Raises:
        UserError: bad prompts or model, or a folder that holds another run.
    """
    if config.dry_run:
        raise UserError("--dry-run paints no shards; in Python call stablerep.generate.dry_run.estimate(config)")
    prompts = read_prompts(Path(config.prompts), config.encoding, config.csv_plain)
    reach(config.folder)
    with _open_pool(config) as pool:
        warn_of_scripts(config, prompts, pool.reads_latin_only)
        runs = config.runs()
        if len(runs) == 1:
            return _generate(config, prompts, pool, repaint)
        check_sweep_folder(config, prompts, pool.weights_hash)
        return SweepSummary(tuple(_generate(run, prompts, pool, ()) for run in runs))


@contextmanager
def _open_pool(config: GenerateConfig) -> Iterator[WorkerPool]:
    """Open the model: here, or with --ray or --gpus in many processes."""
    if config.ray or config.gpus:
        from stablerep.generate import ray_dispatch  # an extra

        with ray_dispatch.open_pool(config) as pool:
            yield pool
    else:
        with distributed.start(config.device) as device:
            yield LocalPool(Worker(config, device))


def _generate(
    config: GenerateConfig, prompts: Sequence[Prompt], pool: WorkerPool, repaint: Collection[int]
) -> GenerateSummary:
    with open_claims(config.folder) as claims:
        return _generate_claimed(config, prompts, pool, repaint, claims)


def _generate_claimed(
    config: GenerateConfig,
    prompts: Sequence[Prompt],
    pool: WorkerPool,
    repaint: Collection[int],
    claims: Claims | SoleClaims,
) -> GenerateSummary:
    per_shard, k = config.prompts_per_shard, config.num_images_per_prompt
    if (as_begun := resume_prompts(config.folder, prompts)) is not prompts:
        log.info("--out %s was begun without the labels of --prompts, and goes on without", config.folder)
        prompts = as_begun
    # One at a time, as long as there is no dataset.json: another process may choose another engine for a new folder.
    begun = shards.read_dataset(config.folder) is not None
    with contextlib.nullcontext() if begun else claims.alone("begin"):
        origin = origin_of(config)
        backends = pool.begin(RunSpec(resume_choices(config), config.is_guided(prompts), origin))
        config = dataclasses.replace(config, jpeg_encoder=backends.jpeg_encoder)
        begin_or_resume(config, prompts, backends.engine, pool.weights_hash, origin)

    with open_writer(config.folder, config.staging) as writer:
        missing = writer.missing(-(-len(prompts) // per_shard), repaint)
        blocks = [Block(shard, prompts[shard * per_shard : (shard + 1) * per_shard]) for shard in missing]
        total = k * len(prompts)
        there = total - k * sum(len(block.prompts) for block in blocks)
        with progress("generate", total, "images", start=there) as bar:
            run_progress = RunProgress(bar, k, completed=there)
            queue = ShardQueue(blocks, claims, writer, run_progress, frozenset(repaint))
            while queue:
                if (first := next(queue, None)) is not None:
                    pool.paint(itertools.chain([first], queue), queue.write, run_progress)
                else:
                    queue.wait()
            with run_progress.waiting():
                writer.flush()
        summary = _summarise(config, prompts, pool, backends, run_progress, list(writer.done.values()))
    if missing or not (config.folder / "summary.json").exists():
        with claims.alone("summary"):
            write(config.folder / "summary.json", summary.as_json())
    return summary


def _summarise(
    config: GenerateConfig,
    prompts: Sequence[Prompt],
    pool: WorkerPool,
    backends: Backends,
    run_progress: RunProgress,
    stats: list[dict[str, Any]],
) -> GenerateSummary:
    reasons = reasons_in(stats)
    return GenerateSummary(
        out=config.folder,
        images=sum(each["images"] for each in stats),
        images_made=run_progress.kept,
        seconds=run_progress.seconds,
        wait_share=run_progress.wait_share,
        prompts=len(prompts),
        prompts_empty=sum(not prompt.text and not prompt.problem for prompt in prompts),
        prompts_repeated=_count_repeated(prompts),
        prompts_cut=pool.count_cut([prompt.text for prompt in prompts]),
        prompts_unreadable=reasons.pop(UNREADABLE, 0) // config.num_images_per_prompt,
        prompts_short=sum(each["short"] for each in stats),
        screen=config.screen,
        screened=dict(sorted(reasons.items())),
        scores=mean_scores(stats),
        device=pool.device_name,
        engine=backends.engine,
        batch_size=pool.batch_size,
        workers=run_progress.most_workers,
        max_rejected=float(config.max_rejected),
        images_due=config.num_images_per_prompt * len(prompts),
    )


def _count_repeated(prompts: Sequence[Prompt]) -> int:
    # Their hashes: the keys of 12 million prompts would take gigabytes.
    return sum(bool(prompt.text) for prompt in prompts) - len({hash(caption_key(p.text)) for p in prompts if p.text})
