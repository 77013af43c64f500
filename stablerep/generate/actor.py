"""What runs in the process of a Ray actor: a worker that paints one block while it encodes another."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from stablerep import shards
from stablerep.generate.config import GenerateConfig
from stablerep.generate.paint import Painted
from stablerep.generate.worker import Block, Choice, Worker

Line = tuple[int, str]  # level and text of what was logged

log = logging.getLogger("stablerep.generate")


@dataclass(frozen=True)
class About:
    """An actor whose model is open."""

    host: str
    device_name: str
    arithmetic: str  # actors that differ in this may round differently
    weights_hash: str
    said: list[Line]


@dataclass(frozen=True)
class Result:
    """A block that is done."""

    samples: list[shards.Sample]
    idle: float  # seconds that painting stood still before it
    batch_size: int  # that fitted in the end
    said: list[Line]


class Actor:
    """Ray calls from several threads, so that one block is encoded beside another.

    What touches the device happens in one thread: the number of torch's threads, CUDA's current device and the stream
    of ONNX Runtime belong to a thread.
    """

    def __init__(self) -> None:
        self._device_thread = ThreadPoolExecutor(1)
        self._begun: tuple[GenerateConfig, bool] | None = None
        self._painted: dict[int, int] = {}  # pictures by shard, of blocks at work
        self._rested: float | None = None  # since when there is nothing to paint
        self._ears = _Ears()
        log.addHandler(self._ears)
        log.setLevel(logging.INFO)

    def open(self, config: GenerateConfig, device: str, threads: int | None) -> About:
        """Open the model on cuda or cpu; threads are torch's."""
        return self._device_thread.submit(self._open, config, device, threads).result()

    def begin(self, config: GenerateConfig, guided: bool) -> Choice:
        """As Worker.begin; paint does it by itself."""
        return self._device_thread.submit(self._begin, config, guided).result()

    def paint(self, config: GenerateConfig, guided: bool, block: Block) -> Result:
        """Paint and encode one block of a run."""
        pictures, idle = self._device_thread.submit(self._paint, config, guided, block).result()
        samples = self._worker.encode(block, pictures)
        self._painted.pop(block.shard, None)  # absent where no prompt could be read
        return Result(samples, idle, self._worker.painter.batch_size.value, self._ears.empty())

    def painted(self) -> dict[int, int]:
        """How many pictures of the blocks at work are painted, by shard."""
        return dict(self._painted)

    def count_cut(self, texts: Sequence[str]) -> int:
        return self._worker.count_cut(texts)

    def _open(self, config: GenerateConfig, device: str, threads: int | None) -> About:
        if threads is not None:
            torch.set_num_threads(threads)  # Ray sets OMP_NUM_THREADS to 1 or so: products would round otherwise
        self._worker = worker = Worker(config, torch.device(device))
        arithmetic = f"{worker.device_name}, torch {torch.__version__}"
        if device == "cpu":
            arithmetic += f", {torch.backends.cpu.get_cpu_capability()}"
        return About(platform.node(), worker.device_name, arithmetic, worker.pipeline.weights_hash, self._ears.empty())

    def _begin(self, config: GenerateConfig, guided: bool) -> Choice:
        self._begun, self._rested = None, None
        choice = self._worker.begin(config, guided)
        self._begun = config, guided
        return choice

    def _paint(self, config: GenerateConfig, guided: bool, block: Block) -> tuple[list[list[Painted]], float]:
        if self._begun != (config, guided):
            self._begin(config, guided)
        idle = 0.0 if self._rested is None else time.perf_counter() - self._rested
        pictures = self._worker.paint(block, lambda painted: self._painted.update({block.shard: painted}))
        self._rested = time.perf_counter()
        return pictures, idle


class _Ears(logging.Handler):
    """Keeps what is logged here, for the driver to say."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[Line] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.getMessage()))

    def empty(self) -> list[Line]:
        lines, self._lines = self._lines, []
        return lines
