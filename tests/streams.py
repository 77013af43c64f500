"""A model of CUDA's order: who runs before whom, by vector clocks, whatever the device's timing is.

Streams and host threads have a clock each. Work is ordered after what its stream has queued before and after what the
thread that queues it knows to be over; events and waits carry clocks across. An access to memory that is not ordered
after those it depends on is an error, in every interleaving, though none is run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

Clock = dict[str, int]


class Unordered(AssertionError):
    pass


class Model:
    """One device. `thread` is the host thread that acts now, `stream` its current stream."""

    def __init__(self) -> None:
        self.clocks: defaultdict[str, Clock] = defaultdict(dict)
        self.thread = "main"
        self.default = self.stream = Stream(self, "default")
        self.free: list[tuple[Memory, Clock]] = []
        self.made = 0

    def queue(self) -> Clock:
        """The clock of work that is queued on the current stream now."""
        clock = self.clocks[self.stream.name]
        join(clock, self.clocks[self.thread])
        clock[self.stream.name] = clock.get(self.stream.name, 0) + 1
        return clock

    def write(self, memory: Memory) -> None:
        clock = self.queue()
        for access in memory.accesses:
            check(access, clock, f"{self.stream.name} writes to {memory.name}")
        memory.accesses, memory.written = [self.now(clock)], self.now(clock)

    def read(self, memory: Memory) -> None:
        clock = self.queue()
        check(memory.written, clock, f"{self.stream.name} reads {memory.name}")
        memory.accesses.append(self.now(clock))

    def now(self, clock: Clock) -> tuple[str, int]:
        return self.stream.name, clock[self.stream.name]

    def empty(self) -> Handle:
        """Memory of the current stream, as torch's allocator gives it: what was freed there last comes first."""
        for number in reversed(range(len(self.free))):
            memory, clock = self.free[number]
            if memory.stream == self.stream.name:
                del self.free[number]
                join(self.clocks[self.thread], clock)
                return Handle(self, memory)
        self.made += 1
        return Handle(self, Memory(f"memory {self.made}", self.stream.name))

    @contextmanager
    def on_thread(self, name: str, after: Clock) -> Iterator[None]:
        before = self.thread, self.stream
        self.thread, self.stream = name, self.default
        join(self.clocks[name], after)
        try:
            yield
        finally:
            self.thread, self.stream = before

    @contextmanager
    def on_stream(self, stream: Stream | None) -> Iterator[None]:
        before, self.stream = self.stream, stream or self.stream
        try:
            yield
        finally:
            self.stream = before

    def event(self, *args: Any, **kwargs: Any) -> Event:
        return Event(self)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """In the place of torch's own."""
        names = iter(range(100))
        patch.setattr(torch.cuda, "Stream", lambda *args: Stream(self, f"stream {next(names)}"))
        patch.setattr(torch.cuda, "Event", self.event)
        patch.setattr(torch.cuda, "current_stream", lambda *args: self.stream)
        patch.setattr(torch.cuda, "stream", self.on_stream)
        patch.setattr(torch.cuda, "device", lambda *args: self.on_stream(None))


class Memory:
    def __init__(self, name: str, stream: str) -> None:
        self.name, self.stream = name, stream
        self.accesses: list[tuple[str, int]] = []
        self.written: tuple[str, int] | None = None


class Handle:
    """A tensor: its memory may be given to the next one when the last reference goes."""

    is_cuda = True

    def __init__(self, model: Model, memory: Memory) -> None:
        self.model, self.memory, self.used_on = model, memory, set[str]()

    def record_stream(self, stream: Stream) -> None:
        self.used_on.add(stream.name)

    def __del__(self) -> None:
        clock = dict(self.model.clocks[self.model.thread])
        for stream in self.used_on:  # the allocator waits for an event that it records there now
            join(clock, self.model.clocks[stream])
        self.model.free.append((self.memory, clock))


class Stream:
    def __init__(self, model: Model, name: str) -> None:
        self.model, self.name = model, name

    def wait_stream(self, other: Stream) -> None:
        join(self.model.clocks[self.name], self.model.clocks[other.name])

    def wait_event(self, event: Event) -> None:
        join(self.model.clocks[self.name], event.clock)

    def synchronize(self) -> None:
        join(self.model.clocks[self.model.thread], self.model.clocks[self.name])


class Event:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = dict(self.model.clocks[(stream or self.model.stream).name])

    def synchronize(self) -> None:
        join(self.model.clocks[self.model.thread], self.clock)


class Later:
    """Futures of a thread of its own, whose tasks run when the test says so, in order."""

    def __init__(self, model: Model, name: str) -> None:
        self.model, self.name = model, name
        self.tasks: list[Task] = []

    def submit(self, function: Callable[..., Any], *args: Any) -> Task:
        self.tasks.append(Task(self, dict(self.model.clocks[self.model.thread]), function, args))
        return self.tasks[-1]

    def run_one(self) -> None:
        task = self.tasks.pop(0)
        with self.model.on_thread(self.name, task.after):
            task.value = task.function(*task.args)
            task.args = ()  # as the executor lets go of them
            task.done = dict(self.model.clocks[self.name])


class Task:
    def __init__(self, thread: Later, after: Clock, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.thread, self.after, self.function, self.args = thread, after, function, args
        self.done: Clock | None = None
        self.value: Any = None

    def result(self) -> Any:
        while self.done is None:
            self.thread.run_one()
        join(self.thread.model.clocks[self.thread.model.thread], self.done)
        return self.value


def join(clock: Clock, other: Clock) -> None:
    for name, time in other.items():
        clock[name] = max(clock.get(name, 0), time)


def check(access: tuple[str, int] | None, clock: Clock, what: str) -> None:
    if access is None:
        raise Unordered(f"{what}, which nobody has written")
    stream, time = access
    if clock.get(stream, 0) < time:
        raise Unordered(f"{what} and does not wait for {stream}")
