"""Pictures for training as they are painted: whole prompts, on the device, no files.

The one door between painting and training: what comes out is data.online.OnlineGenerator, which the trainer is handed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from stablerep import config as configs
from stablerep.config import UserError
from stablerep.data.index import split_weight
from stablerep.data.online import OnlineGenerator
from stablerep.engines.module import DTYPES
from stablerep.generate import screen
from stablerep.generate.config import GenerateConfig
from stablerep.generate.denoise import MOST_INDICES
from stablerep.generate.identity import identity_of
from stablerep.generate.painter import Painter, PictureId, encode_prompts, fitting_batches, open_painter, paint_batch
from stablerep.generate.pipeline import open_pipeline
from stablerep.generate.worker import warn_of_scripts
from stablerep.prompts import Prompt, caption_key, read_prompts, without_labels

# What concerns files alone, or what is done on the host with all pictures of a prompt before them.
UNUSED = ("image_format", "prompts_per_shard", "screen_retries", "duplicate_within")

log = logging.getLogger("stablerep.generate")


def opener(online: str, out: Path) -> Callable[[torch.device], OnlineGenerator]:
    """Read --online, PATH or PATH:WEIGHT of a YAML file of GenerateConfig's fields; the model waits for the device.

    Args:
        out: what stands for the fields' own --out, to which nothing is written.

    Raises:
        UserError: no such file, or fields that make no single run.
    """
    path, _ = split_weight(online, "--online")
    if not isinstance(path, Path) or not path.is_file():
        raise UserError(f"--online {path} does not exist; give a YAML file of stablerep-gen's flags (prompts: FILE)")
    argv = ["--config", str(path), "--out", str(out)]
    config = configs.parse(GenerateConfig, argv, f"stablerep-train --online {path}")
    if not isinstance(config.guidance_scale, float):
        raise UserError(f"--online {path} takes one guidance_scale, got {config.guidance_scale}")
    for name in ("dry_run", "ray", "gpus"):
        if getattr(config, name):
            raise UserError(f"--online {path} sets {name}; leave it out to train")
    return lambda device: open_online(config, device)


def open_online(config: GenerateConfig, device: torch.device) -> OnlineGenerator:
    """A generator of whole prompts on a device, whatever config.device says.

    Its pictures are those that generate() stores, before encoding: round r of a prompt are its pictures with indices
    r K to r K + K - 1. One that is not finite is not good, nor, unless config.screen is `keep`, one that is flat or
    beyond the limits of its scores; near-duplicates are not looked for.

    Raises:
        UserError: bad prompts or model.
    """
    # Labels reach no pixel, and trainings begun before they were read go on.
    read = without_labels(read_prompts(Path(config.prompts), config.encoding, config.csv_plain))
    prompts = {prompt.id: prompt for prompt in read}
    paintable = [prompt.id for prompt in prompts.values() if not prompt.problem]
    if left_out := len(prompts) - len(paintable):
        log.warning("--prompts %s: %d of %d rows hold no text and are left out", config.prompts, left_out, len(prompts))
    pipeline = open_pipeline(config.model, device, config.lora, DTYPES.get(config.dtype), config.model_config)
    warn_of_scripts(config, read, pipeline.reads_latin_only)
    painter = open_painter(config, pipeline, device, guided=config.is_guided(prompts.values()))
    identity = identity_of(config, list(prompts.values()), pipeline.weights_hash)
    identity = {name: value for name, value in identity.items() if name not in UNUSED}

    def paint(prompt_ids: Sequence[int], rounds: Sequence[int]) -> tuple[Tensor, Tensor]:
        return paint_prompts(painter, [prompts[number] for number in prompt_ids], rounds)

    return OnlineGenerator(
        prompt_ids=paintable,
        images_per_prompt=config.num_images_per_prompt,
        prompts_per_batch=max(1, config.batch_size // config.num_images_per_prompt),
        # batch_size decides which prompts are painted together, and with that when they enter the pool
        identity=identity | {"engine": painter.engine.name, "batch_size": config.batch_size},
        paint=paint,
        labels=_first_of_caption([prompts[number] for number in paintable]),
    )


def _first_of_caption(prompts: Sequence[Prompt]) -> dict[int, int]:
    """Of each prompt with the caption of an earlier one, the id of the first such."""
    first: dict[str, int] = {}
    found = {prompt.id: first.setdefault(caption_key(prompt.text), prompt.id) for prompt in prompts if prompt.text}
    return {prompt: earliest for prompt, earliest in found.items() if prompt != earliest}


def paint_prompts(
    painter: Painter, prompts: Sequence[Prompt], rounds: Sequence[int]
) -> tuple[Tensor, Tensor]:  # [n, K, H, W, 3] uint8 and whether each is good [n, K] bool, on the device
    """The K pictures that each prompt has in its round."""
    config, k = painter.config, painter.config.num_images_per_prompt
    encoded = encode_prompts(painter, prompts)
    # Indices end at 2^20; after so many pictures of a prompt its first ones come again.
    first = [number % (MOST_INDICES // k) * k for number in rounds]
    wanted = [PictureId(row, first[row] + i) for row in range(len(prompts)) for i in range(k)]
    batches = list(fitting_batches(painter, partial(paint_batch, painter, encoded), wanted))
    limits = screen.limits_of(config)
    good = torch.cat([screen.are_good(batch.quality, limits) for batch in batches]).unflatten(0, (len(prompts), k))
    for row in encoded.problems:
        good[row] = False
    return torch.cat([batch.pixels for batch in batches]).unflatten(0, (len(prompts), k)), good
