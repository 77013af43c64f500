"""The job: prompts to shards, resumable shard by shard."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stablerep import distributed, shards
from stablerep.config import to_dict
from stablerep.generate.config import GenerateConfig
from stablerep.generate.engines.torch import TorchEngine
from stablerep.generate.pipeline import Pipeline, open_pipeline
from stablerep.generate.sampler import sample
from stablerep.generate.schedule import Schedule, make_schedule
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


def generate(config: GenerateConfig, again: Collection[int] = ()) -> GenerateSummary:
    """Paint K pictures of every prompt into shards; whatever is already there is kept, but for the shards in again.

    Raises:
        UserError: bad prompts or model, or a folder that holds another run.
    """
    prompts = read_prompts(Path(config.prompts))
    with distributed.start(config.device) as device:
        return _generate(config, prompts, open_pipeline(config.model, device), device, again)


def _generate(
    config: GenerateConfig,
    prompts: Sequence[Prompt],
    pipeline: Pipeline,
    device: torch.device,
    again: Collection[int],
) -> GenerateSummary:
    out = Path(config.out)
    schedule = make_schedule(config.scheduler, pipeline.scheduler_config, config.num_inference_steps, device)
    identity = {
        **config.picture_fields(),
        "prompts": _hash_prompts(prompts),
        "model": pipeline.weights_hash,
    }
    shards.start_dataset(out, identity, {"num_prompts": len(prompts), "flags": _flags(config)})

    blocks = [prompts[i : i + config.prompts_per_shard] for i in range(0, len(prompts), config.prompts_per_shard)]
    missing = [number for number in range(len(blocks)) if number in again or not shards.is_done(out, number)]
    total = config.num_images_per_prompt * len(prompts)
    before = total - config.num_images_per_prompt * sum(len(blocks[number]) for number in missing)
    start = time.perf_counter()
    made = 0
    # One thread encodes and writes a shard while the next is painted; more than one would only pile up memory.
    with progress("generate", total, "images", start=before) as bar, ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for number in missing:
            pictures = []
            for batch in _paint(pipeline, schedule, blocks[number], config):
                pictures.append(batch)
                made += len(batch)
                bar.update(before + made)
            if writing is not None:
                writing.result()  # a full disk surfaces here, before more work is done
            painted = torch.cat(pictures)
            writing = writer.submit(_write, out, number, blocks[number], painted, config, identity["model"])
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
    pipeline: Pipeline, schedule: Schedule, prompts: Sequence[Prompt], config: GenerateConfig
) -> Iterator[Tensor]:
    """Yield the pictures of these prompts in order, a batch [B, H, W, 3] uint8 on the host at a time."""
    k = config.num_images_per_prompt
    device = schedule.timesteps.device
    embeddings = pipeline.encode([prompt.text for prompt in prompts])
    negative = pipeline.encode([config.negative_prompt])
    row = torch.arange(len(prompts)).repeat_interleave(k)
    prompt_ids = torch.tensor([prompt.id for prompt in prompts])[row]
    indices = torch.arange(k).repeat(len(prompts))
    engine = TorchEngine(pipeline)
    for take in torch.arange(len(row)).split(config.batch_size):
        images = sample(
            engine,
            schedule,
            embeddings[row[take].to(device)],
            negative,
            prompt_ids[take],
            indices[take],
            latent_shape=pipeline.latent_shape,
            guidance_scale=config.guidance_scale,
            seed=config.seed,
            image_size=config.image_size,
        )
        yield images.cpu()


def _write(
    out: Path, shard: int, prompts: Sequence[Prompt], images: Tensor, config: GenerateConfig, weights_hash: str
) -> None:
    """Encode the pictures [P * K, H, W, 3] of one shard and write it."""
    k = config.num_images_per_prompt
    row: dict[str, Any] = {
        "seed": config.seed,
        "guidance_scale": config.guidance_scale,
        "num_inference_steps": config.num_inference_steps,
        "scheduler": config.scheduler,
        "model": weights_hash,
        "engine": config.engine,
        "width": images.shape[2],
        "height": images.shape[1],
    }
    samples = [
        shards.Sample(
            prompt_id=prompt.id,
            prompt=prompt.text,
            ending=config.image_format,
            pictures=[shards.Picture(i, _encode(images[p * k + i], config.image_format), row) for i in range(k)],
        )
        for p, prompt in enumerate(prompts)
    ]
    shards.write_shard(out, shard, samples)


def _encode(image: Tensor, image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(
        buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[image_format], quality=JPEG_QUALITY
    )
    return buffer.getvalue()


def _flags(config: GenerateConfig) -> dict[str, Any]:
    """The fields that --repair needs to paint a shard again."""
    return {name: value for name, value in to_dict(config).items() if name != "out"}


def _hash_prompts(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256("\n".join(prompt.text for prompt in prompts).encode()).hexdigest()[:12]
