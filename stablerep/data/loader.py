"""Batches for training, made in a thread of their own while the model works."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablerep import distributed
from stablerep.config import UserError
from stablerep.data.augment import AugmentConfig
from stablerep.data.encoded import EncodedPictures
from stablerep.data.sampling import Picks, Sampler
from stablerep.ops import strong_augment

QUEUED = 2  # finished batches that wait for the model


@dataclass(frozen=True)
class Batch:
    images: Tensor  # [B, 3, S, S] float32, channels_last, normalised
    labels: Tensor  # [B] int64, equal = positives of each other


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    image_size: int
    augment: AugmentConfig
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    seed: int
    num_threads: int = 0
    """To decode, and on the CPU to augment; 0: this rank's share of the cores, a quarter of it where the model needs
    them too."""


@contextmanager
def batches(
    sampler: Sampler, config: LoaderConfig, device: torch.device, *, first_step: int, last_step: int
) -> Iterator[Iterator[Batch]]:
    """This rank's batches of steps first_step to last_step - 1; a batch depends on the seed and its step alone.

    Raises (from the iterator):
        UserError: a picture cannot be decoded, or its file went away.
    """
    worker = _Worker(sampler, config, device, first_step, last_step)
    worker.start()
    try:
        yield worker.results()
    finally:
        worker.stop()


class _Worker(threading.Thread):
    """Runs DALI, which decodes, and strong_augment; neither costs the training loop time of its own."""

    def __init__(
        self, sampler: Sampler, config: LoaderConfig, device: torch.device, first_step: int, last_step: int
    ) -> None:
        super().__init__(name="stablerep-data", daemon=True)
        self._sampler, self._config, self._device = sampler, config, device
        self._steps = iter(range(first_step, last_step))
        self._encoded = EncodedPictures(sampler.sources)
        self._num_threads = config.num_threads or _threads(device)
        self._spec = config.augment.spec(config.image_size, config.mean, config.std, config.seed)
        self._fed: deque[tuple[Picks, Tensor]] = deque()  # what DALI has got and not yet given back, and its keys
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(QUEUED)
        self._stopping = threading.Event()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def results(self) -> Iterator[Batch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if item.images.is_cuda:  # it was made on another stream: its memory must outlive the work queued here
                item.images.record_stream(torch.cuda.current_stream())
                item.labels.record_stream(torch.cuda.current_stream())
            yield item

    def stop(self) -> None:
        self._stopping.set()
        while self.is_alive():
            with suppress(queue.Empty):  # room for what the thread is about to put
                self._ready.get(timeout=0.05)
        self.join()

    def run(self) -> None:
        try:
            self._make_all()
            self._put(None)
        except BaseException as error:  # handed to the loop, which raises it
            self._put(error)

    def _make_all(self) -> None:
        from stablerep.data.pipeline import decoding_pipeline  # DALI takes a second to load

        pipeline = decoding_pipeline(
            self._next_encoded,
            batch_size=self._sampler.images_per_step // distributed.world_size(),
            num_threads=self._num_threads,
            device_id=self._device.index if self._device.type == "cuda" else None,
        )
        while not self._stopping.is_set():
            try:
                (images,) = pipeline.run()
            except StopIteration:
                return
            except RuntimeError as error:
                raise self._name_the_damaged(error) from error
            self._put(self._to_batch(images, *self._fed.popleft()))

    def _next_encoded(self) -> list[NDArray[np.uint8]]:
        """What DALI's external source asks for, once a batch."""
        step = next(self._steps)  # StopIteration ends the pipeline
        picks = self._sampler.picks(step)
        rows = len(picks.label) // distributed.world_size()
        mine = slice(distributed.rank() * rows, (distributed.rank() + 1) * rows)
        # Rows count over all ranks: the batch of a step does not depend on how many share it.
        keys = np.stack([np.full_like(picks.image, step), picks.image, np.arange(len(picks.image))], axis=1)
        picks = Picks(picks.source[mine], picks.image[mine], picks.label[mine])
        self._fed.append((picks, torch.from_numpy(keys[mine])))
        return self._encoded.read(picks)

    def _to_batch(self, decoded: Any, picks: Picks, keys: Tensor) -> Batch:
        labels = torch.from_numpy(picks.label)
        if self._stream is None:
            return Batch(self._augment(decoded, keys), labels)
        with torch.cuda.stream(self._stream):
            images = self._augment(decoded, keys)
            labels = labels.to(self._device)
        self._stream.synchronize()  # DALI uses its buffers again; this thread waits, not the training loop
        return Batch(images, labels)

    def _augment(self, decoded: Any, keys: Tensor) -> Tensor:
        pictures = [torch.from_dlpack(decoded[row]) for row in range(len(decoded))]  # no copies
        return strong_augment(pictures, keys, self._spec, memory_format=torch.channels_last, threads=self._num_threads)

    def _name_the_damaged(self, error: RuntimeError) -> BaseException:
        from stablerep.data.pipeline import first_damaged

        for picks, _ in self._fed:
            row = first_damaged(self._encoded.read(picks))
            if row is not None:
                remake = "delete that shard's _stats.json and run the same stablerep-gen again"
                mend = "remove it" if self._encoded.is_in_folder(picks, row) else remake
                return UserError(f"--data: {self._encoded.where(picks, row)} cannot be decoded; {mend}, then go on")
        return error

    def _put(self, item: Batch | BaseException | None) -> None:
        while not self._stopping.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue


def _threads(device: torch.device) -> int:
    cores = len(os.sched_getaffinity(0))
    if device.type == "cuda":
        return max(1, cores // min(distributed.world_size(), torch.cuda.device_count()))
    # One thread makes far more pictures of 32 x 32 a second than a ResNet-10 takes from a core.
    return max(1, cores // 4 // distributed.world_size())
