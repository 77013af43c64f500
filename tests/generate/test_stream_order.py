"""Each memory's writer comes before its readers, and they before its next writer, in every order of the threads."""

from __future__ import annotations

import queue
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerep.data.loader import Batch, _Worker
from stablerep.generate.cuda import StreamOverlap
from tests import streams
from tests.streams import Event, Handle, Later, Model, Stream, Unordered

CUDA = torch.device("cuda", 0)
ACTIONS = st.lists(st.sampled_from(["paint", "download", "wait", "next shard"]), max_size=25)


def nothing(*args: object) -> None:
    pass


def paint_shards(actions: list[str], patch: pytest.MonkeyPatch, *, clone: bool = True) -> None:
    """As painter.py does: prompts on the default stream, batches by one graph, downloads in their thread."""
    model = Model()
    model.install(patch)

    def download(pixels: Handle) -> None:  # cuda.download
        model.read(pixels.memory)
        copied = torch.cuda.Event(blocking=True)
        copied.record()
        copied.synchronize()

    overlap: StreamOverlap = StreamOverlap(CUDA, download)
    overlap._thread.shutdown()
    overlap._thread = Later(model, "download thread")  # type: ignore[assignment]
    with model.on_stream(overlap._painting):  # type: ignore[arg-type]
        graph = model.empty()  # where its replays leave their pictures
    encoded: list[Handle] = []

    def encode() -> None:
        encoded[:] = [model.empty()]
        model.write(encoded[0].memory)

    def paint() -> Handle:
        model.read(encoded[0].memory)
        model.write(graph.memory)
        if not clone:
            return graph
        pixels = model.empty()
        model.read(graph.memory)
        model.write(pixels.memory)
        return pixels

    encode()
    waiting: deque = deque()
    for action in actions:
        if action == "paint":
            waiting.append(overlap.submit(paint))
        elif action == "download" and overlap._thread.tasks:  # type: ignore[attr-defined]
            overlap._thread.run_one()  # type: ignore[attr-defined]
        elif action == "wait" and waiting:
            waiting.popleft().result()
        elif action == "next shard":
            while waiting:
                waiting.popleft().result()
            encoded.clear()
            encode()


@settings(deadline=None, max_examples=150)
@given(ACTIONS)
def test_painting_and_downloading_keep_their_order(actions: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        paint_shards(actions, patch)


@pytest.mark.parametrize("missing", ["wait_event", "wait_stream", "synchronize", "clone"])
def test_each_wait_of_painting_is_needed(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "synchronize":
        monkeypatch.setattr(Event, missing, nothing)
    elif missing != "clone":
        monkeypatch.setattr(Stream, missing, nothing)
    with pytest.raises(Unordered):
        paint_shards(["paint", "paint", "download", "paint", "wait", "paint", "next shard", "paint"],
                     monkeypatch, clone=missing != "clone")  # fmt: skip


def load_batches(actions: list[bool], patch: pytest.MonkeyPatch) -> None:
    """As data/loader.py does: batches are made on a stream of their own, in a thread, and used on the default one."""
    model = Model()
    model.install(patch)
    worker = object.__new__(_Worker)
    worker._stream = Stream(model, "data")  # type: ignore[assignment]
    worker._ready = queue.Queue()
    made: deque[streams.Clock] = deque()
    results = worker.results()
    for make in actions:
        if make:
            with model.on_thread("data thread", {}):
                with worker._on_stream():
                    images = model.empty()
                    model.write(images.memory)
                worker._ready.put(Batch(images, images))  # type: ignore[arg-type]
                made.append(dict(model.clocks["data thread"]))
                del images
        elif made:
            streams.join(model.clocks["main"], made.popleft())
            batch = next(results)
            model.read(batch.images.memory)  # type: ignore[attr-defined]
            del batch
    del results


@settings(deadline=None, max_examples=150)
@given(st.lists(st.booleans(), max_size=25))
def test_batches_are_made_before_they_are_used_and_used_before_their_memory_is(actions: list[bool]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        load_batches(actions, patch)


@pytest.mark.parametrize(("part", "missing"), [(Stream, "synchronize"), (Handle, "record_stream")])
def test_each_wait_of_the_loader_is_needed(part: type, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, missing, nothing)
    with pytest.raises(Unordered):
        load_batches([True, False, True, False, True, True, False, True], monkeypatch)
