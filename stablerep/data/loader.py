"""Batches for training from files: mapped, decoded by DALI and augmented, in a thread beside the training loop."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablerep import distributed
from stablerep.config import UserError
from stablerep.data.augment import AugmentConfig
from stablerep.data.bit_range import BitRange
from stablerep.data.damaged import DamagedPictures, stand_ins
from stablerep.data.decode import decode_one, decoded
from stablerep.data.encoded import Encoded, EncodedPictures, read_all, read_in_chunks, resolve_bit_range
from stablerep.data.masking import masked_patches
from stablerep.data.sampling import Picks, Sampler
from stablerep.data.shard_cache import ShardCache
from stablerep.ops import AugmentSpec, strong_augment

QUEUED = 2  # finished batches that wait for the model
MOST_AT_ONCE = 256  # pictures that DALI decodes together


@dataclass(frozen=True)
class Batch:
    images: Tensor  # [B, 3, S, S] float32, channels_last, normalised
    labels: Tensor  # [B] int64, equal = positives of each other
    texts: Tensor | None = None  # [T, L] int64 tokens of the captions, each different one once; where asked for
    text_of: Tensor | None = None  # [B] int64 which of them is a picture's
    small_images: Tensor | None = None  # [B, V, 3, s, s] as images: small crops of the same pictures
    masked: Tensor | None = None  # [M] int64 flat indices into [B, patches]: what is hidden from the student

    def to(self, device: torch.device) -> Batch:
        parts: list[Any] = [part if part is None else part.to(device) for part in self._parts()]
        return Batch(*parts)

    def clone(self) -> Batch:
        parts: list[Any] = [part if part is None else part.clone() for part in self._parts()]
        return Batch(*parts)

    def copy_(self, other: Batch) -> None:
        """Take over another batch of the same shapes, in place."""
        for mine, theirs in zip(self._parts(), other._parts(), strict=True):
            if mine is not None:
                assert theirs is not None and theirs.shape == mine.shape
                mine.copy_(theirs)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """It was made on another stream: its memory must outlive the work queued on this one."""
        for part in self._parts():
            if part is not None:
                part.record_stream(stream)

    def _parts(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    image_size: int
    augment: AugmentConfig
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    seed: int
    tokenize: Callable[[Sequence[str]], Tensor] | None = None
    """Texts to their tokens [T, L]; batches then carry the captions of their pictures."""
    small_crops: int = 0
    """Small crops of each picture beside the large one."""
    small_size: int = 96
    small_scale: tuple[float, float] = (0.05, 0.32)
    """What part of a picture's area a small crop keeps: DINO's."""
    mask_grid: tuple[int, int] | None = None
    """Patches of a picture by height and width, where some are to be masked."""
    num_threads: int = 0
    """To decode, and on the CPU to augment; 0: this rank's share of the cores, a quarter of it where the model needs
    them too."""


@dataclass(frozen=True)
class PictureSources:
    """The pictures of a sampler's sources, and which of them are known to be damaged."""

    encoded: list[EncodedPictures]
    damaged: DamagedPictures


def open_pictures(
    sampler: Sampler,
    *,
    bit_range: str = "auto",
    known_ranges: Sequence[BitRange | None] | None = None,
    cache: ShardCache | None = None,
    record: Path | None = None,
    most_damaged: float = 1.0,
) -> PictureSources:
    """The pictures of a sampler's sources.

    Args:
        bit_range: what becomes black and white of pictures with more than 8 bits; see resolve_bit_range.
        known_ranges: of each source as an earlier part of the run has measured it.
        cache: of sources behind a URL.
        record: a file that names damaged pictures, a line each.
        most_damaged: the share of all pictures that may be.
    """
    indexes = [source.index for source in sampler.sources]
    ranges = known_ranges or [resolve_bit_range(bit_range, index, cache) for index in indexes]
    encoded = [EncodedPictures(index, found, cache) for index, found in zip(indexes, ranges, strict=True)]
    return PictureSources(encoded, DamagedPictures(record, sum(map(len, indexes)), most_damaged))


@contextmanager
def batches(
    sampler: Sampler,
    config: LoaderConfig,
    device: torch.device,
    pictures: PictureSources | None = None,
    *,
    first_step: int,
    last_step: int,
) -> Iterator[Iterator[Batch]]:
    """This rank's batches of steps first_step to last_step - 1; a batch depends on the seed and its step alone.

    A picture that cannot be decoded, or whose file has gone, is noted and another one takes its place.

    Args:
        pictures: by default as open_pictures gives them.

    Raises (from the iterator):
        UserError: more pictures are damaged than pictures.damaged allows, or none of a source can be decoded.
    """
    worker = _Worker(sampler, config, device, pictures or open_pictures(sampler), range(first_step, last_step))
    worker.start()
    try:
        yield worker.results()
    finally:
        worker.stop()


@dataclass(frozen=True)
class _Due:
    """Pictures of a batch that were read and not yet decoded."""

    step: int
    picks: Picks  # of all ranks
    rows: range  # those of them
    is_last: bool  # of this rank's share of the batch


Views = tuple[Tensor, Tensor | None]  # [b, 3, S, S] and small ones [b, C, 3, s, s] of pictures decoded together


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if len(tensors) > 1 else next(iter(tensors), None)


class _Worker(threading.Thread):
    """Runs DALI, which decodes, and strong_augment; neither costs the training loop time of its own."""

    def __init__(
        self, sampler: Sampler, config: LoaderConfig, device: torch.device, pictures: PictureSources, steps: range
    ) -> None:
        super().__init__(name="stablerep-data", daemon=True)
        self._sampler, self._config, self._device, self._steps = sampler, config, device, steps
        self._encoded, self._damaged = pictures.encoded, pictures.damaged
        self._deep = any(each.bit_range for each in self._encoded)
        self._num_threads = config.num_threads or _threads(device)
        self._pillow = ThreadPoolExecutor(self._num_threads, thread_name_prefix="stablerep-pillow")
        self._spec = config.augment.spec(config.image_size, config.mean, config.std, config.seed)
        small = config.augment.spec(config.small_size, config.mean, config.std, config.seed)
        self._small_spec = replace(small, scale=config.small_scale)
        self._due: deque[_Due] = deque()  # what DALI still works on
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(QUEUED)
        self._stopping = threading.Event()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def results(self) -> Iterator[Batch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if item.images.is_cuda:
                item.record_stream(torch.cuda.current_stream())
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
        rows = self._sampler.images_per_step // distributed.world_size()
        views: list[Views] = []
        with self._pillow:
            for pictures in decoded(
                self._encoded_chunks(rows),
                batch_size=min(rows, MOST_AT_ONCE),
                num_threads=self._num_threads,
                device=self._device,
                deep=self._deep,
            ):
                if self._stopping.is_set():
                    return
                due = self._due.popleft()
                whole = [
                    self._stand_in(due, row) if picture is None else picture
                    for row, picture in zip(due.rows, pictures, strict=True)
                ]
                views.append(self._views(whole, due))
                if due.is_last:
                    self._put(self._to_batch(views, due, rows))
                    views = []

    def _encoded_chunks(self, rows: int) -> Iterator[list[Encoded | None]]:
        """This rank's pictures of each step, as many at once as may be held decoded; they are due from then on."""
        first = distributed.rank() * rows
        for step in self._steps:
            picks = self._sampler.picks(step)
            mine = slice(first, first + rows)
            sources, images = picks.source[mine].tolist(), picks.image[mine].tolist()
            pictures = ((self._encoded[source], image) for source, image in zip(sources, images, strict=True))
            start = first
            for chunk in read_in_chunks(pictures, self._pillow, MOST_AT_ONCE):
                end = start + len(chunk)
                self._due.append(_Due(step, picks, range(start, end), is_last=end == first + rows))
                yield chunk
                start = end

    def _stand_in(self, due: _Due, row: int) -> Tensor:  # [H, W, 3] uint8
        """What takes the place of a row's picture, which cannot be decoded."""
        number = int(due.picks.source[row])
        source = self._encoded[number]
        self._damaged.add(source.index.where(int(due.picks.image[row])))
        for image, group in stand_ins(self._sampler, due.picks, row, due.step):
            where = source.index.where(image)
            if where in self._damaged:
                continue
            (encoded,) = read_all([(source, image)], self._pillow)
            if encoded and (picture := decode_one(encoded, self._device)) is not None:
                due.picks.image[row] = image  # no other row of its group takes it too
                due.picks.label[row] = self._sampler.labels_of(number, np.array([group]))[0]
                return picture
            self._damaged.add(where)
        raise UserError(f"--data: no picture can be decoded, {source.index.where(0)} and all others of it")

    def _views(self, pictures: list[Tensor], due: _Due) -> Views:
        # Rows count over all ranks: the batch of a step does not depend on how many share it.
        rows = np.arange(due.rows.start, due.rows.stop)
        image = due.picks.image[rows]
        keys = torch.from_numpy(np.stack([np.full_like(image, due.step), image, rows], axis=1))
        with self._on_stream():
            images = self._augment(pictures, keys, self._spec)
            return images, self._small_images(pictures, keys, len(due.picks.image))

    def _small_images(self, pictures: list[Tensor], keys: Tensor, rows: int) -> Tensor | None:
        """Each crop has the row that it would have if the batch were so many times as long: draws of its own."""
        shift = torch.tensor([0, 0, rows])
        crops = range(1, self._config.small_crops + 1)
        small = [self._augment(pictures, keys + crop * shift, self._small_spec) for crop in crops]
        return torch.stack(small, dim=1) if small else None

    def _augment(self, pictures: list[Tensor], keys: Tensor, spec: AugmentSpec) -> Tensor:
        return strong_augment(pictures, keys, spec, memory_format=torch.channels_last, threads=self._num_threads)

    def _to_batch(self, views: list[Views], due: _Due, rows: int) -> Batch:
        mine = range(distributed.rank() * rows, (distributed.rank() + 1) * rows)
        labels = torch.from_numpy(due.picks.label[mine.start : mine.stop])
        texts, masked = self._texts(due, mine), self._masked(due, mine)
        with self._on_stream():
            images, small = (_joined(column) for column in zip(*views, strict=True))
            assert images is not None
            return Batch(images, labels, *texts, small, masked).to(self._device)

    def _masked(self, due: _Due, rows: range) -> Tensor | None:
        if self._config.mask_grid is None:
            return None
        return torch.from_numpy(masked_patches(self._config.seed, due.step, rows, self._config.mask_grid))

    def _texts(self, due: _Due, rows: range) -> tuple[Tensor | None, Tensor | None]:
        if self._config.tokenize is None:
            return None, None
        mine = slice(rows.start, rows.stop)
        number: dict[str, int] = {}
        text_of = [
            number.setdefault(self._sampler.sources[source].text(image), len(number))
            for source, image in zip(due.picks.source[mine].tolist(), due.picks.image[mine].tolist(), strict=True)
        ]
        return self._config.tokenize(list(number)), torch.tensor(text_of)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream):  # nothing where it is None
            yield
        if self._stream is not None:
            self._stream.synchronize()  # DALI uses its buffers again; this thread waits, not the training loop

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
