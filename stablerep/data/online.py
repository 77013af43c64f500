"""Batches of pictures that are painted while the model trains: a generator fills a pool, batches are drawn from it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablerep import distributed
from stablerep.config import UserError, fingerprint
from stablerep.data.loader import Batch, LoaderConfig
from stablerep.data.pool import EMPTY, ImagePool
from stablerep.data.sampling import PROMPT_ORDER, random_stream
from stablerep.ops import strong_augment
from stablerep.runlog import progress


@dataclass(frozen=True)
class OnlineGenerator:
    """Paints for the trainer, which gets it handed in: training knows nothing of diffusion."""

    prompt_ids: Sequence[int]  # of the prompts that can be painted
    images_per_prompt: int  # K
    prompts_per_batch: int  # how many are best painted at once
    identity: Mapping[str, Any]  # all that decides the pictures, in plain YAML types
    paint: Callable[[Sequence[int], Sequence[int]], tuple[Tensor, Tensor]]
    """(prompt ids [n], rounds [n]) to pictures [n, K, H, W, 3] uint8 and whether each is good [n, K] bool, on the
    device. A pure function; each round has K other pictures of a prompt."""
    labels: Mapping[int, int] = field(default_factory=dict)
    """Of prompts whose caption an earlier one has, the id of that: their pictures are positives of each other."""


@dataclass(frozen=True)
class Block:
    """Some prompts that were painted at once."""

    prompt_ids: Sequence[int]  # [n]
    pictures: Tensor  # [n, K, H, W, 3] uint8
    good: Tensor  # [n, K] bool


@dataclass(frozen=True)
class Plan:
    """What one rank's pool holds at each step: arithmetic alone, so that the pool can be made again at any step.

    Prompts enter it numbered 0, 1, ...: each of the file once (round 0), then each once more with other pictures
    (round 1), every round in an order of its own. Blocks of them are painted at once.
    """

    prompt_ids: Sequence[int]  # this rank's
    slots: int
    block: int  # prompts
    prompts_per_step: int
    uses: int  # how often a prompt is shown before it leaves
    seed: int
    rank: int

    def blocks_due(self, step: int) -> int:
        """How many blocks have been put before a step draws; the first of them fill the pool."""
        return -(-self.slots // self.block) + step * self.prompts_per_step // (self.uses * self.block)

    def first_block(self, step: int) -> int:
        """The oldest block of which the pool still holds something at a step."""
        return max(0, self.blocks_due(step) * self.block - self.slots) // self.block

    def members(self, block: int) -> tuple[list[int], list[int]]:
        """Prompt ids and rounds of a block."""
        number = range(block * self.block, (block + 1) * self.block)
        rounds, places = zip(*(divmod(n, len(self.prompt_ids)) for n in number), strict=True)
        at = (_order(self.seed, r, self.rank, len(self.prompt_ids))[i] for r, i in zip(rounds, places, strict=True))
        return [self.prompt_ids[i] for i in at], list(rounds)


@lru_cache(2)  # a block may begin a round; of ten million prompts an order costs half a second
def _order(seed: int, number: int, rank: int, prompts: int) -> NDArray[np.int64]:
    return random_stream(seed, PROMPT_ORDER, number, rank).permutation(prompts)


class OnlineSource:
    """This rank's share of the prompts, its pool, and the batches drawn from it."""

    def __init__(
        self, generator: OnlineGenerator, prompts_per_step: int, views: int, seed: int, pool_prompts: int, uses: int
    ) -> None:
        """prompts_per_step and pool_prompts are over all ranks; a pool_prompts of 0 is four batches, or all prompts.

        Raises:
            UserError: fewer pictures a prompt than views, fewer prompts than ranks, or more new prompts than slots.
        """
        ranks, rank, total = distributed.world_size(), distributed.rank(), len(generator.prompt_ids)
        if generator.images_per_prompt < views:
            raise UserError(
                f"--online paints {generator.images_per_prompt} pictures a prompt, fewer than --views-per-prompt "
                f"{views}; lower --views-per-prompt or raise num_images_per_prompt in its file"
            )
        if total < ranks:
            raise UserError(f"--online has {total} prompts for {ranks} ranks; give at least one prompt a rank")
        wanted = pool_prompts or min(4 * prompts_per_step, total)
        slots = -(-wanted // ranks)
        if prompts_per_step // ranks > slots * uses:
            raise UserError(
                f"--pool-uses {uses} would paint {prompts_per_step // uses} new prompts a step for a pool of "
                f"{slots * ranks}, most of them never shown; raise --pool-uses or --pool-prompts"
            )
        self.plan = Plan(
            prompt_ids=generator.prompt_ids[rank::ranks],  # no picture is painted twice
            slots=slots,
            block=min(generator.prompts_per_batch, slots),
            prompts_per_step=prompts_per_step // ranks,
            uses=uses,
            seed=seed,
            rank=rank,
        )
        self._generator, self._views = generator, views
        self._pool: ImagePool | None = None
        self._clock = _Clock()
        self._drained = 0  # rejected pictures that drain has reported

    @property
    def num_groups(self) -> int:
        return len(self._generator.prompt_ids)

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the painted pictures, in plain YAML types."""
        return dict(self._generator.identity)

    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @contextmanager
    def batches(
        self, config: LoaderConfig, device: torch.device, *, first_step: int, last_step: int
    ) -> Iterator[Iterator[Batch]]:
        """This rank's batches of steps first_step to last_step - 1, after the pool was filled as it is at first_step.

        Raises:
            UserError: no picture of all these prompts is good.
        """
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())  # the generator's weights were copied on that one
        self._fill(first_step, stream)
        yield self._draw(config, stream, first_step, last_step)

    def drain(self) -> dict[str, float]:
        """Since the last drain: the share of time that painting took (on a GPU beside training), and how many pictures
        were painted and not good. Waits for the device.

        Raises:
            UserError: the pool has run empty.
        """
        rejected = self._count_rejected() - self._drained
        self._drained += rejected
        return {**self._clock.drain(), "rejected": rejected}

    def _fill(self, step: int, stream: torch.cuda.Stream | None) -> None:
        blocks = range(self.plan.first_block(step), self.plan.blocks_due(step))
        each = self.plan.block * self._generator.images_per_prompt
        with progress("fill the pool", len(blocks) * each, "images", show=distributed.rank() == 0) as bar:
            for number, block in enumerate(blocks):
                painted = self._paint(block, stream)
                if number == 0:
                    self._pool = self._make_pool(painted.pictures, blocks.start * self.plan.block)
                self._put(painted, stream)
                if stream is not None:
                    stream.synchronize()  # else minutes of painting would queue up before the first line
                bar.update((number + 1) * each)
        self._drained = self._count_rejected()
        self._clock = _Clock()

    def _make_pool(self, pictures: Tensor, num_put: int) -> ImagePool:
        _, k, height, width, _ = pictures.shape
        slots, device = self.plan.slots, pictures.device
        try:
            return ImagePool.empty(slots, k, height, width, device, num_put)
        except RuntimeError as error:  # of the CPU; torch.OutOfMemoryError, of a GPU, is one too
            size = slots * k * height * width * 3 / 1e9
            raise UserError(
                f"--pool-prompts: {slots} prompts of {k} pictures are {size:.1f} GB, more than {device} has left; "
                "lower it, or set a smaller image_size or num_images_per_prompt in the file of --online"
            ) from error

    def _draw(
        self, config: LoaderConfig, stream: torch.cuda.Stream | None, first_step: int, last_step: int
    ) -> Iterator[Batch]:
        assert self._pool is not None
        spec = config.augment.spec(config.image_size, config.mean, config.std, config.seed)
        painted: list[Block] = []
        for step in range(first_step, last_step):
            for block in painted:
                self._put(block, stream)
            drawn = self._pool.draw(self.plan.seed, step, self.plan.prompts_per_step, self._views, self.plan.rank)
            images = strong_augment(drawn.pictures, drawn.keys, spec, memory_format=torch.channels_last)
            # Asked for now, used by the next step: on a GPU it is painted beside this step's training.
            due = range(self.plan.blocks_due(step), self.plan.blocks_due(step + 1) if step + 1 < last_step else 0)
            painted = [self._paint(block, stream) for block in due]
            yield Batch(images, drawn.labels)

    def _paint(self, block: int, stream: torch.cuda.Stream | None) -> Block:
        ids, rounds = self.plan.members(block)
        with self._clock.painting(stream, len(ids) * self._generator.images_per_prompt):
            return Block(ids, *self._generator.paint(ids, rounds))

    def _put(self, painted: Block, stream: torch.cuda.Stream | None) -> None:
        assert self._pool is not None
        if stream is not None:  # the device waits, not the host
            torch.cuda.current_stream().wait_stream(stream)
            for tensor in (painted.pictures, painted.good):
                tensor.record_stream(torch.cuda.current_stream())
        labels = [self._generator.labels.get(prompt, prompt) for prompt in painted.prompt_ids]
        self._pool.put(labels, painted.pictures, painted.good)

    def _count_rejected(self) -> int:
        """How many pictures were rejected so far, seen that some are left; the one place that waits for the device."""
        assert self._pool is not None
        rejected, filled = torch.stack([self._pool.rejected, (self._pool.prompt_ids != EMPTY).sum()]).tolist()
        if not filled:
            raise UserError(
                f"--online: none of the {self.plan.slots} prompts painted last gave a picture that is a number and not "
                "flat; look at what stablerep-gen makes of them, or set screen: keep in its file"
            )
        return rejected


@dataclass
class _Clock:
    """How long painting took: seconds of this process on the CPU, of its stream on a GPU."""

    seconds: float = 0.0
    images: int = 0
    events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=deque)
    start: float = field(default_factory=time.perf_counter)

    @contextmanager
    def painting(self, stream: torch.cuda.Stream | None, images: int) -> Iterator[None]:
        start = time.perf_counter()
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            if stream is None:
                yield
                self.seconds += time.perf_counter() - start
            else:
                events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                events[0].record(stream)
                yield
                events[1].record(stream)
                self.events.append(events)
        self.images += images

    def drain(self) -> dict[str, float]:
        while self.events and self.events[0][1].query():  # what is still being painted counts the next time
            start, end = self.events.popleft()
            self.seconds += start.elapsed_time(end) / 1000
        now = time.perf_counter()
        result = {"paint_share": self.seconds / (now - self.start), "painted": self.images}
        self.seconds, self.images, self.start = 0.0, 0, now
        return result
