"""Batches for training from files: mapped, decoded by DALI and augmented, in a thread beside the training loop."""

from __future__ import annotations

import mmap
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablerep import distributed
from stablerep.config import UserError
from stablerep.data.augment import AugmentConfig
from stablerep.data.sampling import Picks, Sampler, Source
from stablerep.ops import strong_augment

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

QUEUED = 2  # finished batches that wait for the model
PREFETCH = 2  # batches DALI works on ahead of the one handed out
OPEN_FILES = 256  # of each source; far below the usual limit of 1,024 a process


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
        self._fed: deque[tuple[Picks, Tensor]] = deque()  # batches that DALI still works on, and their keys
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


class EncodedPictures:
    """Views into the mapped files of all sources; nothing is copied and only what is used is read."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._indexes = [source.index for source in sources]
        self._map = lru_cache(OPEN_FILES * len(sources))(self._open)

    def read(self, picks: Picks) -> list[NDArray[np.uint8]]:
        return [self._view(s, i) for s, i in zip(picks.source.tolist(), picks.image.tolist(), strict=True)]

    def where(self, picks: Picks, row: int) -> str:
        """A picture of a batch in words, for an error."""
        index, image = self._indexes[picks.source[row]], picks.image[row]
        file = index.files[index.file[image]]
        if index.is_folder:
            return str(file)
        return f"{file} (prompt {index.group[image]}, {index.size[image]} bytes at {index.offset[image]})"

    def is_in_folder(self, picks: Picks, row: int) -> bool:
        return self._indexes[picks.source[row]].is_folder

    def _view(self, source: int, image: int) -> NDArray[np.uint8]:
        index = self._indexes[source]
        start = index.offset[image]
        return self._map(source, int(index.file[image]))[start : start + index.size[image]]

    def _open(self, source: int, file: int) -> NDArray[np.uint8]:
        with self._indexes[source].files[file].open("rb") as opened:
            try:
                return np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            except ValueError:  # mmap refuses an empty file; the decoder refuses it
                return np.zeros(0, np.uint8)


def decoding_pipeline(
    source: Callable[[], list[NDArray[np.uint8]]], *, batch_size: int, num_threads: int, device_id: int | None
) -> Pipeline:  # gives uint8 [H_i, W_i, 3], on the GPU device_id or on the CPU
    from nvidia.dali import fn, pipeline_def  # 1 s: pictures that are painted need no DALI

    @pipeline_def(
        batch_size=batch_size, num_threads=num_threads, device_id=device_id, prefetch_queue_depth=PREFETCH, seed=0
    )
    def build() -> Any:
        encoded = fn.external_source(source, batch=True)
        return fn.decoders.image(encoded, device="cpu" if device_id is None else "mixed")

    return build()


def first_damaged(pictures: Sequence[NDArray[np.uint8]]) -> int | None:
    """Which picture DALI cannot decode; its error does not say."""
    from nvidia.dali import fn, pipeline_def

    at = -1

    def next_picture() -> list[NDArray[np.uint8]]:
        nonlocal at
        at += 1
        if at == len(pictures):
            raise StopIteration
        return [pictures[at]]

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def build() -> Any:
        return fn.decoders.image(fn.external_source(next_picture, batch=True))

    pipeline = build()
    try:
        while True:
            pipeline.run()
    except StopIteration:
        return None
    except RuntimeError:
        return at


def _threads(device: torch.device) -> int:
    cores = len(os.sched_getaffinity(0))
    if device.type == "cuda":
        return max(1, cores // min(distributed.world_size(), torch.cuda.device_count()))
    # One thread makes far more pictures of 32 x 32 a second than a ResNet-10 takes from a core.
    return max(1, cores // 4 // distributed.world_size())
