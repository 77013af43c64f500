"""What is done to a block of prompts, alike in a single process and in each of many: paint it, encode it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch

from stablerep import shards
from stablerep.generate import screen
from stablerep.generate.config import GenerateConfig
from stablerep.generate.encode import as_file, decide_encoder
from stablerep.generate.paint import Painted, paint_shard
from stablerep.generate.painter import open_painter
from stablerep.generate.pipeline import DTYPES, open_pipeline
from stablerep.generate.settings import settings_of
from stablerep.generate.tally import Tally
from stablerep.prompts import Prompt


@dataclass(frozen=True)
class Block:
    """The prompts of one shard: what a worker is given at once."""

    shard: int
    prompts: Sequence[Prompt]


class Choice(NamedTuple):
    """What a worker runs, where a run leaves it to `auto`."""

    engine: str
    jpeg_encoder: str


Write = Callable[[Block, list[shards.Sample]], None]


class Worker:
    """A model on one device, and the run it paints for."""

    def __init__(self, config: GenerateConfig, device: torch.device) -> None:
        self.device = device
        self.pipeline = open_pipeline(config.model, device, config.lora, DTYPES.get(config.dtype))

    def begin(self, config: GenerateConfig, guided: bool) -> Choice:
        """Get ready for a run with one guidance scale.

        Raises:
            UserError: --engine, --scheduler or --jpeg-encoder cannot run here.
        """
        config = decide_encoder(config, self.device)
        self.painter = open_painter(config, self.pipeline, self.device, guided=guided)
        return Choice(self.painter.engine.name, config.jpeg_encoder)

    def paint(self, block: Block, told: Callable[[int], None]) -> list[list[Painted]]:
        """The pictures of each prompt; told hears after each batch how many were painted, of those that are due."""
        due = self.painter.config.num_images_per_prompt * len(block.prompts)
        # New pictures in the place of those that were not kept bring the end no nearer.
        return paint_shard(self.painter, block.prompts, lambda painted: told(min(painted, due)))

    def encode(self, block: Block, pictures: Sequence[Sequence[Painted]]) -> list[shards.Sample]:
        """The samples of a shard. May run beside paint."""
        config = self.painter.config
        row: dict[str, Any] = {
            "guidance_rescale": config.guidance_rescale,
            "num_inference_steps": config.num_inference_steps,
            "scheduler": config.scheduler,
            "model": self.pipeline.weights_hash,
            "engine": self.painter.engine.name,
        }
        samples = []
        for prompt, of_prompt in zip(block.prompts, pictures, strict=True):
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
        return samples

    def count_cut(self, texts: Iterable[str]) -> int:
        """How many prompts are longer than the tokenizer takes."""
        return sum(self.pipeline.is_cut(text) for text in texts)

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type


class Crew(Protocol):
    """Who paints: this process alone, or dispatch.Dispatcher."""

    @property
    def weights_hash(self) -> str: ...

    @property
    def device_name(self) -> str: ...

    @property
    def batch_size(self) -> int:
        """The largest that has fitted everywhere."""

    def begin(self, config: GenerateConfig, guided: bool) -> Choice:
        """As Worker.begin."""

    def paint(self, blocks: Iterable[Block], write: Write, tally: Tally) -> None:
        """Paint, encode and write every block. Only one block at a time is written, in this process."""

    def count_cut(self, texts: Sequence[str]) -> int:
        """As Worker.count_cut."""


class Alone:
    """One worker, in this process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.begin, self.count_cut = worker.begin, worker.count_cut
        self.weights_hash, self.device_name = worker.pipeline.weights_hash, worker.device_name

    @property
    def batch_size(self) -> int:
        return self._worker.painter.batch_size.value

    def paint(self, blocks: Iterable[Block], write: Write, tally: Tally) -> None:
        def finish(block: Block, pictures: Sequence[Sequence[Painted]]) -> None:
            write(block, self._worker.encode(block, pictures))

        # One thread encodes and writes a block while the next is painted; more than one would only pile up memory.
        with ThreadPoolExecutor(1) as writer:
            writing = None
            for block in blocks:
                pictures = self._worker.paint(block, tally.show)
                tally.painted(len(block.prompts))
                with tally.waiting():
                    if writing is not None:
                        writing.result()  # what stopped it, a full disk for instance, surfaces before more work is done
                writing = writer.submit(finish, block, pictures)
            with tally.waiting():
                if writing is not None:
                    writing.result()


def _picture(painted: Painted, row: dict[str, Any], config: GenerateConfig) -> shards.Picture:
    file, mark = None if painted.pixels is None else as_file(painted.pixels, config.image_format), painted.mark
    row = row | {
        "width": 0 if file is None else file.width,
        "height": 0 if file is None else file.height,
        "reason": painted.reason,
    }
    row |= screen.columns(mark, config)
    return shards.Picture(painted.index, b"" if file is None else file.data, row)
