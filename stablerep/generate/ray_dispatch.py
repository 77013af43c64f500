"""Many actors at work: blocks go out, encoded samples come back, and this process alone writes them.

Back-pressure: an actor holds at most two blocks, one that it paints and one that it encodes or paints next, and a new
block goes out only where one has come back. While this process writes, nothing comes back, so nothing goes out.

A block whose actor died goes to another. Which of its two blocks an actor died of cannot be seen, so each of them is
tried again by an actor that has no other; one that fails MOST_FAILURES times is left out and named at the end.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from stablerep.config import UserError
from stablerep.generate.actor import About, Actor, Line, Result
from stablerep.generate.config import GenerateConfig
from stablerep.generate.tally import Tally
from stablerep.generate.worker import Block, Choice, Write

BLOCKS_AN_ACTOR = 2
MOST_FAILURES = 3
WAIT_SECONDS = 1.0
NEWS_SECONDS = 2.0
PATIENCE_SECONDS = 60.0  # without any worker, before we say what we wait for
CUT_AT_ONCE = 10_000

log = logging.getLogger("stablerep.generate")


@dataclass(frozen=True)
class Plan:
    """How many actors, and what each has."""

    count: int
    device: str  # cuda or cpu
    threads: int | None  # of torch, on the CPU
    one_machine: bool

    def __str__(self) -> str:
        workers = f"{self.count} worker{'s' * (self.count > 1)}"
        if self.device == "cuda":
            return f"{workers}, a GPU each"
        return f"{workers}, {self.threads} thread{'s' * (self.threads != 1)} each (OMP_NUM_THREADS)"


@dataclass(eq=False)
class _Member:
    """An actor as this process sees it."""

    actor: Any
    name: str
    about: About | None = None  # None: its model is not open yet
    blocks: list[Block] = field(default_factory=list)
    painted: dict[int, int] = field(default_factory=dict)  # pictures of its blocks, by shard


class _Todo:
    """The blocks of a run that nobody has, those to be tried again first."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = deque(blocks)
        self._failures: Counter[int] = Counter()  # by shard
        self._failed_in_a_row = 0
        self.left_out: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def take(self, member: _Member) -> Block | None:
        """A block for an actor, if it has room for one: one that has failed wants an actor to itself."""
        if not self._blocks or member.about is None:
            return None
        failed = any(self._failures[block.shard] for block in (self._blocks[0], *member.blocks))
        return self._blocks.popleft() if len(member.blocks) < (1 if failed else BLOCKS_AN_ACTOR) else None

    def give_back(self, blocks: Sequence[Block]) -> None:
        self._blocks.extendleft(reversed(blocks))

    def done(self, block: Block) -> None:
        self._failures.pop(block.shard, None)
        self._failed_in_a_row = 0

    def failed(self, blocks: Sequence[Block], reason: str) -> None:
        """Take back the blocks of an actor that died; one that died with it too often is left out.

        Raises:
            UserError: so many were left out in a row that it cannot be the blocks.
        """
        self._failures.update(block.shard for block in blocks)
        self.give_back([block for block in blocks if self._failures[block.shard] < MOST_FAILURES])
        for block in blocks:
            if self._failures[block.shard] < MOST_FAILURES:
                continue
            prompts = f"prompts {block.prompts[0].id} to {block.prompts[-1].id}"
            self.left_out.append(f"shard {block.shard} ({prompts}: {reason})")
            self._failed_in_a_row += 1
            if self._failed_in_a_row == MOST_FAILURES:
                raise UserError(f"--ray: {MOST_FAILURES} blocks in a row ended their workers, the last one: {reason}")


class Dispatcher:
    """The crew of a cluster; work.Crew says what its calls mean."""

    def __init__(self, config: GenerateConfig, plan: Plan) -> None:
        self._config, self._plan = config, plan
        self._members: list[_Member] = []
        self._first: About | None = None
        self._added = 0
        self._stillborn = 0  # died while they opened the model, since one last could
        self._unusable: list[str] = []  # why actors were sent away; said once another is at work
        self._calls: dict[Any, tuple[_Member, Block | None]] = {}  # by reference; without a block: it opens its model
        self._news: dict[Any, _Member] = {}
        self._news_at = self._ready_at = time.monotonic()
        self._said: set[str] = set()
        self._todo = _Todo([])
        self._batch_sizes: list[int] = []
        self.left_out: list[str] = []

    def open(self) -> None:
        """Start the actors; back as soon as one has its model open.

        Raises:
            UserError: none of them can, and why.
        """
        log.info("painting on %s", self._plan)
        for _ in range(self._plan.count):
            self._add_member()
        self._ready_member()
        assert self._first is not None
        self.weights_hash, self.device_name = self._first.weights_hash, self._first.device_name

    def close(self) -> None:
        """End all actors, whatever they are at."""
        for member in self._members:
            ray.kill(member.actor)

    @property
    def batch_size(self) -> int:
        return min(self._batch_sizes, default=self._config.batch_size)

    def begin(self, config: GenerateConfig, guided: bool) -> Choice:
        choice: Choice = self._ask("begin", config, guided)
        self._run = dataclasses.replace(config, **choice._asdict()), guided  # what one has chosen, the others follow
        return choice

    def count_cut(self, texts: Sequence[str]) -> int:
        parts = [texts[start : start + CUT_AT_ONCE] for start in range(0, len(texts), CUT_AT_ONCE)]
        return sum(self._ask("count_cut", part) for part in parts)

    def paint(self, blocks: Iterable[Block], write: Write, tally: Tally) -> None:
        self._todo = _Todo(blocks)
        self._batch_sizes = []
        tally.of_workers = self._plan.count
        done: tuple[Block, Result] | None = None
        while True:
            self._hand_out()
            if done is not None:  # the next block is on its way already
                block, result = done
                write(block, result.samples)
            elif not self._todo and not any(member.blocks for member in self._members):
                break
            done = self._come_back()
            if done is not None:
                block, result = done
                self._batch_sizes.append(result.batch_size)
                tally.waited += result.idle
                tally.painted(len(block.prompts))
            tally.workers = sum(member.about is not None for member in self._members)
            tally.show(sum(member.painted.get(b.shard, 0) for member in self._members for b in member.blocks))
        self.left_out += self._todo.left_out

    def _hand_out(self) -> None:
        for member in self._members:
            while (block := self._todo.take(member)) is not None:
                member.blocks.append(block)
                self._calls[member.actor.paint.remote(*self._run, block)] = member, block

    def _come_back(self) -> tuple[Block, Result] | None:
        """A block that is done, if one comes back within a moment."""
        self._ask_for_news()
        if any(member.about for member in self._members):
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
        member, block = self._calls.pop(ready[0])
        try:
            value = ray.get(ready[0])
        except RayError as error:
            self._lost(member, error)
            return None
        self._say(member, value.said)
        if block is None:
            self._opened(member, value)
            return None
        member.blocks.remove(block)
        self._todo.done(block)
        return block, value

    def _ask_for_news(self) -> None:
        """How many pictures of the blocks at work are painted; what comes late is no loss."""
        if not self._news and time.monotonic() - self._news_at >= NEWS_SECONDS:
            self._news = {member.actor.painted.remote(): member for member in self._members if member.blocks}
            self._news_at = time.monotonic()
        if not self._news:
            return
        for ref in ray.wait(list(self._news), num_returns=len(self._news), timeout=0)[0]:
            member = self._news.pop(ref)
            try:
                member.painted |= ray.get(ref)
            except RayError:
                member.painted = {}  # it is dead: the call for its block says so too, and that one is acted on

    def _ask(self, method: str, *args: Any) -> Any:
        """What one of the actors answers; another is asked if it dies over the question."""
        for attempt in range(1, MOST_FAILURES + 1):
            member = self._ready_member()
            try:
                return ray.get(getattr(member.actor, method).remote(*args))
            except RayError as error:
                self._lost(member, error)
                if attempt == MOST_FAILURES:
                    raise
        raise AssertionError

    def _ready_member(self) -> _Member:
        while True:
            for member in self._members:
                if member.about is not None:
                    return member
            self._come_back()

    def _add_member(self) -> None:
        plan = self._plan
        resources = {"num_gpus": 1} if plan.device == "cuda" else {"num_cpus": plan.threads}
        # At once: its blocks, and a question after their progress. Ray itself would try a deadly block for ever.
        actor = ray.remote(Actor).options(max_concurrency=BLOCKS_AN_ACTOR + 1, max_restarts=0, **resources).remote()
        member = _Member(actor, f"worker {self._added}")
        self._added += 1
        self._members.append(member)
        self._calls[actor.open.remote(self._config, plan.device, plan.threads)] = member, None

    def _opened(self, member: _Member, about: About) -> None:
        first = self._first = self._first or about
        member.name += f" on {about.host}"
        if about.weights_hash != first.weights_hash:
            reason = f"its --model {self._config.model} holds other weights than that of {first.host}"
            self._send_away(member, UserError(f"{member.name}: {reason}"))
            return
        member.about = about
        self._stillborn = 0
        self._say(member, [])
        if about.arithmetic != first.arithmetic:
            log.warning(
                "%s computes with %s, others with %s: single pixels may be a grey level off what one process paints",
                member.name, about.arithmetic, first.arithmetic,
            )  # fmt: skip

    def _lost(self, member: _Member, error: RayError) -> None:
        """An actor died, or something in it went wrong: its blocks go to others, and a new one takes its place.

        Raises:
            UserError: there is none left, or it is not the blocks.
        """
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, UserError):
            self._send_away(member, cause)
            return
        self._remove(member)
        reason = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[-1][:200]}"
        log.warning("%s is lost: %s", member.name, reason)
        if isinstance(error, RayTaskError) and reason not in self._said:  # no death: where it happened matters
            self._said.add(reason)
            log.error("%s", error)
        self._todo.failed(member.blocks, reason)
        self._stillborn += member.about is None
        if self._stillborn < MOST_FAILURES:
            self._add_member()
        elif not self._members:
            raise UserError(f"--ray: no worker could open --model {self._config.model}: {reason}") from error

    def _send_away(self, member: _Member, reason: UserError) -> None:
        """An actor that cannot work for a reason that would be the same the next time."""
        self._remove(member)
        self._todo.give_back(member.blocks)
        if not self._members:
            where = "" if self._plan.one_machine else " (on a machine of the Ray cluster, where --model must lie too)"
            raise UserError(f"{reason}{where}") from reason
        self._unusable.append(f"{member.name} cannot work: {reason}")
        self._say(member, [])

    def _remove(self, member: _Member) -> None:
        self._members.remove(member)
        self._calls = {ref: call for ref, call in self._calls.items() if call[0] is not member}
        self._news = {ref: other for ref, other in self._news.items() if other is not member}
        ray.kill(member.actor)

    def _say(self, member: _Member, lines: Sequence[Line]) -> None:
        """Say what was logged in an actor, but nothing twice."""
        if any(other.about for other in self._members):
            lines = [*((logging.WARNING, reason) for reason in self._unusable), *lines]
        for level, text in lines:
            if text not in self._said:
                self._said.add(text)
                log.log(level, "%s: %s", member.name, text)
