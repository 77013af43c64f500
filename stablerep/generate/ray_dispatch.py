"""Many Ray workers at work: blocks go out, encoded samples come back, and this process alone writes them.

Back-pressure: a worker holds at most two blocks, one that it paints and one that it encodes or paints next, and a new
block goes out only where one has come back. While this process writes, nothing comes back, so nothing goes out.

A block whose worker died goes to another. Which of its two blocks a worker died of cannot be seen, so each of them is
tried again by a worker that has no other; one that fails MOST_FAILURES times is left out and named at the end.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.generate.ray_workers import (
    BlockResult,
    ClusterPlan,
    LogLine,
    RayWorker,
    WorkerInfo,
    join_cluster,
    ray,  # imported there: its settings come first, and where it is missing that is a UserError
)
from stablerep.generate.summary import RunProgress
from stablerep.generate.worker import Backends, Block, RunSpec, WriteBlock

BLOCKS_A_WORKER = 2
MOST_FAILURES = 3
WAIT_SECONDS = 1.0
POLL_SECONDS = 2.0
PATIENCE_SECONDS = 60.0  # without any worker, before a line says what we wait for
CUT_AT_ONCE = 10_000

log = logging.getLogger("stablerep.generate")


@contextmanager
def open_pool(config: GenerateConfig) -> Iterator[RayPool]:
    """Workers with the model open; they end with the block, and so does a cluster that was started for them.

    Raises:
        UserError: no cluster there, no room in it, a model that opens nowhere; and after the block: what was left out.
    """
    with join_cluster(config) as plan:
        pool = RayPool(config, plan)
        try:
            pool.open()
            yield pool
        finally:
            pool.close()
    if pool.left_out:
        raise UserError(
            f"left out, because {len(pool.left_out)} blocks ended their workers again and again: "
            f"{'; '.join(pool.left_out)}. All others are painted; the same command tries these again"
        )


@dataclass(eq=False)
class _WorkerHandle:
    """A worker as this process sees it."""

    actor: Any
    name: str
    info: WorkerInfo | None = None  # None: its model is not open yet
    blocks: list[Block] = field(default_factory=list)
    painted: dict[int, int] = field(default_factory=dict)  # pictures of its blocks, by shard


class _BlockQueue:
    """The blocks of a run that nobody has, those to be tried again first."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks: deque[Block] = deque()
        self._more = iter(blocks)  # one at a time: other processes may want some too
        self._failures: Counter[int] = Counter()  # by shard
        self._failed_in_a_row = 0
        self.left_out: list[str] = []

    def __bool__(self) -> bool:
        if not self._blocks:
            self._blocks.extend(itertools.islice(self._more, 1))
        return bool(self._blocks)

    def take(self, handle: _WorkerHandle) -> Block | None:
        """A block for a worker, if it has room for one: one that has failed wants a worker to itself."""
        if handle.info is None or not self:
            return None
        failed = any(self._failures[block.shard] for block in (self._blocks[0], *handle.blocks))
        return self._blocks.popleft() if len(handle.blocks) < (1 if failed else BLOCKS_A_WORKER) else None

    def put_back(self, blocks: Sequence[Block]) -> None:
        self._blocks.extendleft(reversed(blocks))

    def done(self, block: Block) -> None:
        self._failures.pop(block.shard, None)
        self._failed_in_a_row = 0

    def failed(self, blocks: Sequence[Block], reason: str) -> None:
        """Take back the blocks of a worker that died; one that died with it too often is left out.

        Raises:
            UserError: so many were left out in a row that it cannot be the blocks.
        """
        self._failures.update(block.shard for block in blocks)
        self.put_back([block for block in blocks if self._failures[block.shard] < MOST_FAILURES])
        for block in blocks:
            if self._failures[block.shard] < MOST_FAILURES:
                continue
            prompts = f"prompts {block.prompts[0].id} to {block.prompts[-1].id}"
            self.left_out.append(f"shard {block.shard} ({prompts}: {reason})")
            self._failed_in_a_row += 1
            if self._failed_in_a_row == MOST_FAILURES:
                raise UserError(f"--ray: {MOST_FAILURES} blocks in a row ended their workers, the last one: {reason}")


class RayPool:
    """The workers of a Ray cluster; worker.WorkerPool says what its calls mean."""

    def __init__(self, config: GenerateConfig, plan: ClusterPlan) -> None:
        self._config, self._plan = config, plan
        self._handles: list[_WorkerHandle] = []
        self._first: WorkerInfo | None = None
        self._added = 0
        self._failed_to_open = 0  # died while they opened the model, since one last could
        self._unusable: list[str] = []  # why workers were dismissed; logged once another is at work
        self._calls: dict[Any, tuple[_WorkerHandle, Block | None]] = {}  # by reference; no block: it opens its model
        self._polls: dict[Any, _WorkerHandle] = {}
        self._polled_at = self._ready_at = time.monotonic()
        self._logged: set[str] = set()
        self._queue = _BlockQueue([])
        self._batch_sizes: list[int] = []
        self.left_out: list[str] = []

    def open(self) -> None:
        """Start the workers; back as soon as one has its model open.

        Raises:
            UserError: none of them can, and why.
        """
        log.info("painting on %s", self._plan)
        for _ in range(self._plan.count):
            self._add_worker()
        self._ready_worker()
        assert self._first is not None
        self.weights_hash, self.device_name = self._first.weights_hash, self._first.device_name
        self.reads_latin_only = self._first.reads_latin_only

    def close(self) -> None:
        """End all workers, whatever they are at."""
        for handle in self._handles:
            ray.kill(handle.actor)

    @property
    def batch_size(self) -> int:
        return min(self._batch_sizes, default=self._config.batch_size)

    def begin(self, run: RunSpec) -> Backends:
        backends: Backends = self._call_one("begin", run)
        config = dataclasses.replace(run.config, **dataclasses.asdict(backends))  # what one chose, the others follow
        self._run = dataclasses.replace(run, config=config)
        return backends

    def count_cut(self, texts: Sequence[str]) -> int:
        chunks = [texts[start : start + CUT_AT_ONCE] for start in range(0, len(texts), CUT_AT_ONCE)]
        return sum(self._call_one("count_cut", chunk) for chunk in chunks)

    def paint(self, blocks: Iterable[Block], write: WriteBlock, progress: RunProgress) -> None:
        self._queue = _BlockQueue(blocks)
        self._batch_sizes = []
        progress.most_workers = self._plan.count
        done: tuple[Block, BlockResult] | None = None
        while True:
            self._submit_blocks()
            if done is not None:  # the next block is on its way already
                block, result = done
                write(block, result.samples)
            elif not self._queue and not any(handle.blocks for handle in self._handles):
                break
            done = self._next_result()
            if done is not None:
                block, result = done
                self._batch_sizes.append(result.batch_size)
                progress.waited += result.idle
                progress.add_painted(len(block.prompts))
            progress.workers = sum(handle.info is not None for handle in self._handles)
            progress.show(sum(handle.painted.get(b.shard, 0) for handle in self._handles for b in handle.blocks))
        self.left_out += self._queue.left_out

    def _submit_blocks(self) -> None:
        for handle in self._handles:
            while (block := self._queue.take(handle)) is not None:
                handle.blocks.append(block)
                self._calls[handle.actor.paint.remote(self._run, block)] = handle, block

    def _next_result(self) -> tuple[Block, BlockResult] | None:
        """A block that is done, if one comes back within a moment."""
        self._poll_progress()
        if any(handle.info for handle in self._handles):
            self._ready_at = time.monotonic()
        elif time.monotonic() - self._ready_at > PATIENCE_SECONDS:
            self._ready_at = time.monotonic()
            free = ray.available_resources()
            log.warning(
                "still waiting for a worker to start and open the model; free in the Ray cluster: %g GPUs, %g CPUs",
                free.get("GPU", 0), free.get("CPU", 0),
            )  # fmt: skip
        ready, _ = ray.wait(list(self._calls), timeout=WAIT_SECONDS)
        if not ready:
            return None
        handle, block = self._calls.pop(ready[0])
        try:
            value = ray.get(ready[0])
        except ray.exceptions.RayError as error:
            self._lost(handle, error)
            return None
        self._log_lines(handle, value.log_lines)
        if block is None:
            self._opened(handle, value)
            return None
        handle.blocks.remove(block)
        self._queue.done(block)
        return block, value

    def _poll_progress(self) -> None:
        """How many pictures of the blocks at work are painted; what comes late is no loss."""
        if not self._polls and time.monotonic() - self._polled_at >= POLL_SECONDS:
            self._polls = {handle.actor.painted.remote(): handle for handle in self._handles if handle.blocks}
            self._polled_at = time.monotonic()
        if not self._polls:
            return
        for ref in ray.wait(list(self._polls), num_returns=len(self._polls), timeout=0)[0]:
            handle = self._polls.pop(ref)
            try:
                handle.painted |= ray.get(ref)
            except ray.exceptions.RayError:
                handle.painted = {}  # it is dead: the call for its block says so too, and that one is acted on

    def _call_one(self, method: str, *args: Any) -> Any:
        """Call a method of one of the workers, and of another if that one dies of it."""
        for attempt in range(1, MOST_FAILURES + 1):
            handle = self._ready_worker()
            try:
                return ray.get(getattr(handle.actor, method).remote(*args))
            except ray.exceptions.RayError as error:
                self._lost(handle, error)
                if attempt == MOST_FAILURES:
                    raise
        raise AssertionError

    def _ready_worker(self) -> _WorkerHandle:
        while True:
            for handle in self._handles:
                if handle.info is not None:
                    return handle
            self._next_result()

    def _add_worker(self) -> None:
        plan = self._plan
        resources = {"num_gpus": 1} if plan.device == "cuda" else {"num_cpus": plan.threads}
        # At once: its blocks, and a poll of their progress. Ray itself would try a deadly block for ever.
        actor = ray.remote(RayWorker).options(max_concurrency=BLOCKS_A_WORKER + 1, max_restarts=0, **resources).remote()
        handle = _WorkerHandle(actor, f"worker {self._added}")
        self._added += 1
        self._handles.append(handle)
        self._calls[actor.open.remote(self._config, plan.device, plan.threads)] = handle, None

    def _opened(self, handle: _WorkerHandle, info: WorkerInfo) -> None:
        first = self._first = self._first or info
        handle.name += f" on {info.host}"
        if info.weights_hash != first.weights_hash:
            reason = f"its --model {self._config.model} holds other weights than that of {first.host}"
            self._dismiss(handle, UserError(f"{handle.name}: {reason}"))
            return
        handle.info = info
        self._failed_to_open = 0
        self._log_lines(handle, [])
        if info.arithmetic != first.arithmetic:
            log.warning(
                "%s computes with %s, others with %s: single pixels may be a grey level off what one process paints",
                handle.name, info.arithmetic, first.arithmetic,
            )  # fmt: skip

    def _lost(self, handle: _WorkerHandle, error: ray.exceptions.RayError) -> None:
        """A worker died, or something in it went wrong: its blocks go to others, and a new one takes its place.

        Raises:
            UserError: there is none left, or it is not the blocks.
        """
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, UserError):
            self._dismiss(handle, cause)
            return
        self._remove(handle)
        reason = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[-1][:200]}"
        log.warning("%s is lost: %s", handle.name, reason)
        # Nothing died: where it happened matters.
        if isinstance(error, ray.exceptions.RayTaskError) and reason not in self._logged:
            self._logged.add(reason)
            log.error("%s", error)
        self._queue.failed(handle.blocks, reason)
        self._failed_to_open += handle.info is None
        if self._failed_to_open < MOST_FAILURES:
            self._add_worker()
        elif not self._handles:
            raise UserError(f"--ray: no worker could open --model {self._config.model}: {reason}") from error

    def _dismiss(self, handle: _WorkerHandle, reason: UserError) -> None:
        """A worker that cannot work for a reason that would be the same the next time."""
        self._remove(handle)
        self._queue.put_back(handle.blocks)
        if not self._handles:
            where = "" if self._plan.one_machine else " (on a machine of the Ray cluster, where --model must lie too)"
            raise UserError(f"{reason}{where}") from reason
        self._unusable.append(f"{handle.name} cannot work: {reason}")
        self._log_lines(handle, [])

    def _remove(self, handle: _WorkerHandle) -> None:
        self._handles.remove(handle)
        self._calls = {ref: call for ref, call in self._calls.items() if call[0] is not handle}
        self._polls = {ref: other for ref, other in self._polls.items() if other is not handle}
        ray.kill(handle.actor)

    def _log_lines(self, handle: _WorkerHandle, lines: Sequence[LogLine]) -> None:
        """Log what was logged in a worker, but nothing twice."""
        if any(other.info for other in self._handles):
            lines = [*((logging.WARNING, reason) for reason in self._unusable), *lines]
        for level, text in lines:
            if text not in self._logged:
                self._logged.add(text)
                log.log(level, "%s: %s", handle.name, text)
