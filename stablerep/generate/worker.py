"""A worker paints and encodes blocks of prompts, alike in a single process and in each of many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from stablerep import shards
from stablerep.engines.module import DTYPES, dtype_name
from stablerep.generate import screen
from stablerep.generate.config import GenerateConfig
from stablerep.generate.encode import decide_encoder, to_file
from stablerep.generate.painter import PaintedPicture, open_painter, paint_shard
from stablerep.generate.pipeline import open_pipeline
from stablerep.generate.summary import RunProgress
from stablerep.prompts import Prompt, is_outside_latin

log = logging.getLogger("stablerep.generate")


@dataclass(frozen=True)
class Block:
    """The prompts of one shard: what a worker is given at once."""

    shard: int
    prompts: Sequence[Prompt]


@dataclass(frozen=True)
class RunSpec:
    """One run of a sweep, or the only one."""

    config: GenerateConfig  # with one guidance scale
    guided: bool  # any of its prompts
    origin: dict[str, str] | None = None  # in the JSON of each sample, beside how it is made; None: neither


@dataclass(frozen=True)
class Backends:
    """What a worker runs, where a run leaves it to `auto`."""

    engine: str
    jpeg_encoder: str


WriteBlock = Callable[[Block, list[shards.Sample]], None]


class Worker:
    """A model on one device, and the run it paints for."""

    def __init__(self, config: GenerateConfig, device: torch.device) -> None:
        self.device = device
        self.pipeline = open_pipeline(config.model, device, config.lora, DTYPES.get(config.dtype), config.model_config)

    def begin(self, run: RunSpec) -> Backends:
        """Get ready for a run.

        Raises:
            UserError: --engine, --scheduler or --jpeg-encoder cannot run here.
        """
        config = decide_encoder(run.config, self.device)
        self._origin = run.origin
        self.painter = open_painter(config, self.pipeline, self.device, guided=run.guided)
        return Backends(self.painter.engine.name, config.jpeg_encoder)

    def paint(self, block: Block, on_progress: Callable[[int], None]) -> list[list[PaintedPicture]]:
        """The pictures of each prompt; on_progress gets after each batch how many were painted, of those due."""
        due = self.painter.config.num_images_per_prompt * len(block.prompts)
        # New pictures in the place of those that were not kept bring the end no nearer.
        return paint_shard(self.painter, block.prompts, lambda painted: on_progress(min(painted, due)))

    def encode(self, block: Block, pictures: Sequence[Sequence[PaintedPicture]]) -> list[shards.Sample]:
        """The samples of a shard. May run beside paint."""
        config = self.painter.config
        row: dict[str, Any] = {
            "guidance_rescale": config.guidance_rescale,
            "num_inference_steps": config.num_inference_steps,
            "scheduler": config.scheduler,
            "model": self.pipeline.weights_hash,
            "engine": self.painter.engine.name,
        }
        recipe = self._recipe() if self._origin else {}
        samples = []
        for prompt, of_prompt in zip(block.prompts, pictures, strict=True):
            settings = asdict(config.settings_of(prompt))
            # Not in every row: the bytes of runs whose prompts have no labels stay as they are.
            label = {} if prompt.label is None else {"label": prompt.label}
            samples.append(
                shards.Sample(
                    prompt_id=prompt.id,
                    prompt=prompt.text,
                    ending=config.image_format,
                    pictures=[_shard_picture(picture, label | settings | row, config) for picture in of_prompt],
                    settings=label | settings | recipe,
                )
            )
        return samples

    def _recipe(self) -> dict[str, Any]:
        """With what every picture of the run is made: enough to paint one again from its sample alone."""
        config, lora = self.painter.config, [Path(each).name for each in self.painter.config.lora]
        recipe: dict[str, Any] = {
            "model_hash": self.pipeline.weights_hash,
            "engine": self.painter.engine.name,
            "dtype": dtype_name(self.pipeline.unet.dtype),
            "device": self.device.type,
            "scheduler": config.scheduler,
            "num_inference_steps": config.num_inference_steps,
            "guidance_rescale": config.guidance_rescale,
            "image_format": config.image_format,
        }
        recipe |= {"jpeg_encoder": config.jpeg_encoder} if config.image_format == "jpg" else {}
        recipe |= {"image_size": config.image_size} if config.image_size else {}
        recipe |= ({"lora": lora} if lora else {}) | ({"compile": True} if config.compile else {})
        return {**(self._origin or {}), **recipe}

    def count_cut(self, texts: Iterable[str]) -> int:
        """How many prompts are longer than the tokenizer takes."""
        return sum(self.pipeline.is_cut(text) for text in texts)

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type


def _shard_picture(picture: PaintedPicture, row: dict[str, Any], config: GenerateConfig) -> shards.Picture:
    file = None if picture.pixels is None else to_file(picture.pixels, config.image_format)
    row = row | {
        "width": 0 if file is None else file.width,
        "height": 0 if file is None else file.height,
        "reason": picture.reason,
    }
    row |= screen.columns(picture.quality, config)
    return shards.Picture(picture.index, b"" if file is None else file.data, row)


def warn_of_scripts(config: GenerateConfig, prompts: Sequence[Prompt], reads_latin_only: bool) -> None:
    """Say how many prompts are in a script that the model's text encoder does not know, if any are."""
    texts = [prompt.text for prompt in prompts if prompt.text]
    if reads_latin_only and (foreign := sum(map(is_outside_latin, texts))):
        log.warning(
            "--prompts %s: %d of %d prompts (%.0f %%) are not in Latin script, which is all that the text encoder of "
            "--model %s knows: their pictures will not show what they say; stablerep-prompts --translate %s --llm "
            "MODEL makes them English, or take a model of their language",
            config.prompts, foreign, len(texts), 100 * foreign / len(texts), config.model, config.prompts,
        )  # fmt: skip


class WorkerPool(Protocol):
    """The workers of a call: LocalPool, or ray_dispatch.RayPool."""

    @property
    def weights_hash(self) -> str: ...

    @property
    def device_name(self) -> str: ...

    @property
    def batch_size(self) -> int:
        """The largest that has fitted everywhere."""

    @property
    def reads_latin_only(self) -> bool:
        """As Pipeline.reads_latin_only."""

    def begin(self, run: RunSpec) -> Backends:
        """As Worker.begin."""

    def paint(self, blocks: Iterable[Block], write: WriteBlock, progress: RunProgress) -> None:
        """Paint, encode and write every block. Only one block at a time is written, in this process."""

    def count_cut(self, texts: Sequence[str]) -> int:
        """As Worker.count_cut."""


class LocalPool:
    """One worker, in this process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @property
    def weights_hash(self) -> str:
        return self._worker.pipeline.weights_hash

    @property
    def device_name(self) -> str:
        return self._worker.device_name

    @property
    def batch_size(self) -> int:
        return self._worker.painter.batch_size.value

    @property
    def reads_latin_only(self) -> bool:
        return self._worker.pipeline.reads_latin_only

    def begin(self, run: RunSpec) -> Backends:
        return self._worker.begin(run)

    def paint(self, blocks: Iterable[Block], write: WriteBlock, progress: RunProgress) -> None:
        # One thread encodes and writes a block while the next is painted; more than one would only pile up memory.
        with ThreadPoolExecutor(1) as writer:
            writing = None
            for block in blocks:
                pictures = self._worker.paint(block, progress.show)
                progress.add_painted(len(block.prompts))
                with progress.waiting():
                    if writing is not None:
                        writing.result()  # what stopped it, a full disk for instance, surfaces before more work is done
                writing = writer.submit(self._encode_and_write, block, pictures, write)
            with progress.waiting():
                if writing is not None:
                    writing.result()

    def count_cut(self, texts: Sequence[str]) -> int:
        return self._worker.count_cut(texts)

    def _encode_and_write(self, block: Block, pictures: Sequence[Sequence[PaintedPicture]], write: WriteBlock) -> None:
        write(block, self._worker.encode(block, pictures))
