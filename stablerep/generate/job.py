"""The job: prompts to shards, resumable shard by shard."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stablerep import distributed, shards
from stablerep.generate import sweep
from stablerep.generate.config import GenerateConfig
from stablerep.generate.diffusers_schedule import DiffusersSchedule, open_schedule
from stablerep.generate.engines import Engine
from stablerep.generate.engines.opening import open_engine
from stablerep.generate.engines.store import store_at
from stablerep.generate.pipeline import Pipeline, open_pipeline
from stablerep.generate.sampler import is_guided, sample
from stablerep.generate.schedule import Schedule
from stablerep.generate.settings import settings_of
from stablerep.prompts import Prompt, read_prompts
from stablerep.runlog import progress

JPEG_QUALITY = 95


@dataclass(frozen=True)
class GenerateSummary:
    """What one call of generate() did."""

    out: Path
    images: int  # in the folder now
    images_made: int  # by this call
    seconds: float  # from the first prompt to the last shard, without opening the model
    prompts_empty: int
    prompts_cut: int  # longer than the tokenizer takes

    def __str__(self) -> str:
        made = f"{self.images_made} made"
        if self.images_made:
            made += f" in {self.seconds:.1f} s, {self.images_made / self.seconds:.1f} images/s"
        notes = [
            f"{count} prompts {what}"
            for count, what in (
                (self.prompts_empty, "empty, painted without text"),
                (self.prompts_cut, "longer than the tokenizer takes, cut"),
            )
            if count
        ]
        return "; ".join([f"{self.images} images in {self.out} ({made})", *notes])


@dataclass(frozen=True)
class SweepSummary:
    """What one call of generate() did with several guidance scales."""

    runs: tuple[GenerateSummary, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.runs))


def generate(config: GenerateConfig) -> GenerateSummary | SweepSummary:
    """Paint K pictures of every prompt into shards; whatever is already there is kept.

    Several guidance scales make a run of each, in a folder of its own below out; then the result is a SweepSummary.

    Raises:
        UserError: bad prompts or model, or a folder that holds another run.
    """
    prompts = read_prompts(Path(config.prompts))
    with distributed.start(config.device) as device:
        pipeline = open_pipeline(config.model, device, config.lora)
        runs = sweep.runs_of(config)
        if len(runs) == 1:
            return _generate(config, prompts, pipeline, device)
        shared = _identity(config, prompts, pipeline)
        for name in ("guidance_scale", "engine"):  # an engine that chooses itself has its name in dataset.json
            del shared[name]
        sweep.check_folder(Path(config.out), shared)
        return SweepSummary(tuple(_generate(run, prompts, pipeline, device) for run in runs))


def _identity(config: GenerateConfig, prompts: Sequence[Prompt], pipeline: Pipeline) -> dict[str, Any]:
    """What makes a run this one and no other, as its dataset.json holds it."""
    return {**config.picture_fields(), "prompts": _hash_prompts(prompts), "model": pipeline.weights_hash}


def _generate(
    config: GenerateConfig, prompts: Sequence[Prompt], pipeline: Pipeline, device: torch.device
) -> GenerateSummary:
    out = Path(config.out)
    schedule = open_schedule(config.scheduler, pipeline.scheduler_config, config.num_inference_steps, device)
    guided = is_guided([settings_of(prompt, config).guidance_scale for prompt in prompts])
    engine = open_engine(config.engine, pipeline, store_at(config.engine_dir), config.batch_size, guided=guided)
    identity = _identity(config, prompts, pipeline) | {"engine": engine.name}
    shards.start_dataset(out, identity)

    blocks = [prompts[i : i + config.prompts_per_shard] for i in range(0, len(prompts), config.prompts_per_shard)]
    missing = [number for number in range(len(blocks)) if not shards.is_done(out, number)]
    total = config.num_images_per_prompt * len(prompts)
    before = total - config.num_images_per_prompt * sum(len(blocks[number]) for number in missing)
    start = time.perf_counter()
    made = 0
    # One thread encodes and writes a shard while the next is painted; more than one would only pile up memory.
    with progress("generate", total, "images", start=before) as bar, ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for number in missing:
            pictures = []
            for batch in _paint(pipeline, engine, schedule, blocks[number], config):
                pictures.append(batch)
                made += len(batch)
                bar.update(before + made)
            if writing is not None:
                writing.result()  # a full disk surfaces here, before more work is done
            painted = torch.cat(pictures)
            writing = writer.submit(_write, out, number, blocks[number], painted, config, identity)
        if writing is not None:
            writing.result()
    return GenerateSummary(
        out=out,
        images=total,
        images_made=made,
        seconds=time.perf_counter() - start,
        prompts_empty=sum(not prompt.text for prompt in prompts),
        prompts_cut=sum(pipeline.is_cut(prompt.text) for prompt in prompts),
    )


def _paint(
    pipeline: Pipeline,
    engine: Engine,
    schedule: Schedule | DiffusersSchedule,
    prompts: Sequence[Prompt],
    config: GenerateConfig,
) -> Iterator[Tensor]:
    """Yield the pictures of these prompts in order, a batch [B, H, W, 3] uint8 on the host at a time."""
    k = config.num_images_per_prompt
    device = schedule.timesteps.device
    embeddings = pipeline.encode([prompt.text for prompt in prompts])
    settings = [settings_of(prompt, config) for prompt in prompts]
    negative, negative_row = _encode_negatives(pipeline, [own.negative_prompt for own in settings])
    row = torch.arange(len(prompts)).repeat_interleave(k)
    prompt_ids = torch.tensor([prompt.id for prompt in prompts])[row]
    indices = torch.arange(k).repeat(len(prompts))
    for take in torch.arange(len(row)).split(config.batch_size):
        own = [settings[number] for number in row[take].tolist()]
        images = sample(
            engine,
            schedule,
            embeddings[row[take].to(device)],
            negative[negative_row[row[take]].to(device)],
            prompt_ids[take],
            indices[take],
            latent_shape=pipeline.latent_shape,
            guidance_scale=[each.guidance_scale for each in own],
            seed=[each.seed for each in own],
            guidance_rescale=config.guidance_rescale,
            image_size=config.image_size,
        )
        yield images.cpu()


def _encode_negatives(pipeline: Pipeline, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Embeddings [N, T, D] of the different texts, and the row in them of each text [len(texts)] on the host."""
    different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return pipeline.encode(list(different)), torch.tensor([different[text] for text in texts])


def _write(
    out: Path, shard: int, prompts: Sequence[Prompt], images: Tensor, config: GenerateConfig, identity: dict[str, Any]
) -> None:
    """Encode the pictures [P * K, H, W, 3] of one shard and write it."""
    k = config.num_images_per_prompt
    row: dict[str, Any] = {
        "guidance_rescale": config.guidance_rescale,
        "num_inference_steps": config.num_inference_steps,
        "scheduler": config.scheduler,
        "model": identity["model"],
        "engine": identity["engine"],
        "width": images.shape[2],
        "height": images.shape[1],
    }
    samples = []
    for p, prompt in enumerate(prompts):
        own = asdict(settings_of(prompt, config))
        encoded = [_encode(images[p * k + i], config.image_format) for i in range(k)]
        samples.append(
            shards.Sample(
                prompt_id=prompt.id,
                prompt=prompt.text,
                ending=config.image_format,
                pictures=[shards.Picture(i, data, own | row) for i, data in enumerate(encoded)],
                settings=own,
            )
        )
    shards.write_shard(out, shard, samples)


def _encode(image: Tensor, image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(
        buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[image_format], quality=JPEG_QUALITY
    )
    return buffer.getvalue()


def _hash_prompts(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256("\n".join(prompt.text for prompt in prompts).encode())
    own = [(prompt.guidance_scale, prompt.negative_prompt, prompt.seed) for prompt in prompts]
    if any(value is not None for values in own for value in values):
        digest.update(b"\0" + json.dumps(own).encode())
    return digest.hexdigest()[:12]
