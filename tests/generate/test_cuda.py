"""What is captured, when, and that a graph changes no byte; that painting goes on while what was painted is encoded.

Capturing itself needs a GPU (test_on_cuda.py); here `CallAgain` stands in for it: the same static memory, and each
replay calls again.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stablerep.engines.select import CompiledEngine
from stablerep.engines.torch import TorchEngine
from stablerep.generate.config import GenerateConfig
from stablerep.generate.cuda import MOST_GRAPHS, CapturedGraph, GraphCache, StreamOverlap
from stablerep.generate.painter import BatchSize, PaintedPicture, Painter, paint_shard
from stablerep.generate.pipeline import Pipeline
from stablerep.generate.schedulers import open_schedule
from stablerep.prompts import Prompt

CPU = torch.device("cpu")
PROMPTS = [
    Prompt(0, "a photo of a bag"),
    Prompt(1, "a photo of a coat", guidance_scale=3.0, seed=7),
    Prompt(2, "a photo of a shirt", negative_prompt="dark"),
]


@dataclasses.dataclass(frozen=True)
class Batch:
    """The least that a graph takes and gives."""

    x: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.x]

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(function(self.x))


class CallAgain:
    """Captures that count themselves."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, call, inputs) -> CapturedGraph:
        self.captured += 1
        outputs = call(inputs).map(torch.zeros_like)  # a capture computes nothing

        def replay() -> None:
            self.replayed += 1
            for static, value in zip(outputs.tensors(), call(inputs).tensors(), strict=True):
                static.copy_(value)

        return CapturedGraph(inputs, outputs, replay)


def painter(engine, capture=None, batch_size: int = 4, prompts: list[Prompt] = PROMPTS, **changes) -> Painter:
    fields = {"num_images_per_prompt": 6, "num_inference_steps": 2, "batch_size": batch_size, **changes}
    config = GenerateConfig(prompts=Path("p.txt"), out=Path("out"), **fields)
    schedule = open_schedule(config.scheduler, engine.pipeline.scheduler_config, config.num_inference_steps, CPU)
    made = Painter(engine.pipeline, engine, schedule, config, BatchSize(batch_size))
    if capture is not None:
        vars(made)["graphs"] = GraphCache(engine, made.why_not_capturable, capture)
    return made


def same(one: list[list[PaintedPicture]], other: list[list[PaintedPicture]]) -> bool:
    pairs = [(a, b) for mine, yours in zip(one, other, strict=True) for a, b in zip(mine, yours, strict=True)]
    return all(
        str(a.quality) == str(b.quality) and torch.equal(a.pixels, b.pixels) for a, b in pairs
    )  # NaN is no score


def test_replays_have_the_bytes_of_plain_calls(pipeline: Pipeline) -> None:
    capture = CallAgain()
    graphed = painter(TorchEngine(pipeline), capture)
    first, second = paint_shard(graphed, PROMPTS), paint_shard(graphed, PROMPTS)
    # 18 pictures in fours: the first batch is the warm-up, the second is captured, the two left over are no replay.
    assert (capture.captured, capture.replayed) == (1, 3 + 4)
    plain = paint_shard(painter(TorchEngine(pipeline)), PROMPTS)
    assert same(first, plain) and same(second, plain)


def test_guidance_seeds_and_negative_prompts_are_inputs_and_only_no_guidance_is_another_graph(
    pipeline: Pipeline,
) -> None:
    capture = CallAgain()
    unguided = [dataclasses.replace(prompt, guidance_scale=1.0) for prompt in PROMPTS[:2]]
    prompts = [*PROMPTS, *(dataclasses.replace(prompt, id=5 + prompt.id) for prompt in unguided)]
    graphed = painter(TorchEngine(pipeline), capture, num_images_per_prompt=8)
    pictures = paint_shard(graphed, prompts)
    assert (capture.captured, capture.replayed) == (2, 5 + 3)
    assert same(pictures, paint_shard(painter(TorchEngine(pipeline), num_images_per_prompt=8), prompts))


def test_what_is_compiled_is_compiled_before_it_is_captured(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler allocates and waits, which a capture cannot hold."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))

    def capture(call, inputs) -> CapturedGraph:
        with torch.compiler.set_stance("fail_on_recompile"):
            return CallAgain()(call, inputs)

    compiled = painter(TorchEngine(pipeline, compiled=True), capture, num_inference_steps=1, num_images_per_prompt=8)
    paint_shard(compiled, [Prompt(0, "a bag", guidance_scale=1.0)])  # its text goes to the UNet as it came
    assert compiled.graphs._graphs, "capturing failed"


def test_a_halved_batch_is_captured_anew(pipeline: Pipeline) -> None:
    @dataclasses.dataclass(frozen=True)
    class SmallMemory(TorchEngine):
        def unet(self, latents: Tensor, *rest) -> Tensor:
            if len(latents) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().unet(latents, *rest)

    capture = CallAgain()
    graphed = painter(SmallMemory(pipeline), capture, batch_size=8)
    pictures = paint_shard(graphed, PROMPTS)
    assert (graphed.batch_size.value, capture.captured, capture.replayed) == (2, 1, 8)
    assert same(pictures, paint_shard(painter(TorchEngine(pipeline), batch_size=2), PROMPTS))


def test_graphs_give_their_memory_back_before_a_batch_is_halved(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    @dataclasses.dataclass(frozen=True)
    class Shared(TorchEngine):
        """Memory for a graph, or for a batch of another size."""

        def unet(self, latents: Tensor, *rest) -> Tensor:
            if len(latents) == 4 and graphed.graphs._graphs:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().unet(latents, *rest)

    capture = CallAgain()
    graphed = painter(Shared(pipeline), capture)
    with caplog.at_level(logging.INFO, "stablerep.generate"):
        pictures = [paint_shard(graphed, PROMPTS), paint_shard(graphed, PROMPTS)]
    assert (graphed.batch_size.value, capture.captured) == (4, 2)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "a smaller --batch-size holds both" in said
    plain = paint_shard(painter(TorchEngine(pipeline)), PROMPTS)
    assert all(same(each, plain) for each in pictures)


def test_a_capture_that_fails_is_said_once_and_painting_goes_on(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(call, inputs):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    graphed = painter(TorchEngine(pipeline), fails)
    with caplog.at_level(logging.INFO, "stablerep.generate"):
        pictures = [paint_shard(graphed, PROMPTS), paint_shard(graphed, PROMPTS)]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "batches are painted without CUDA graphs: "
        "capturing one failed (operation not permitted when stream is capturing)"
    )
    plain = paint_shard(painter(TorchEngine(pipeline)), PROMPTS)
    assert all(same(each, plain) for each in pictures)


class KeepsItsOwnOrder(TorchEngine):
    why_not_capturable = "ONNX Runtime keeps the order of its stream itself"


@pytest.mark.parametrize(("engine", "scheduler", "reason"), [
    (TorchEngine, "euler_ancestral", "diffusers' own scheduler objects"),
    (KeepsItsOwnOrder, "ddim", "ONNX Runtime keeps"),
])  # fmt: skip
def test_what_cannot_be_captured_is_known_before(
    pipeline: Pipeline, engine: type[TorchEngine], scheduler: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    capture = CallAgain()
    with caplog.at_level(logging.INFO, "stablerep.generate"):
        graphed = painter(engine(pipeline), capture, scheduler=scheduler)
    assert reason in caplog.text
    pictures = paint_shard(graphed, PROMPTS)
    assert capture.captured == 0
    assert same(pictures, paint_shard(painter(TorchEngine(pipeline), scheduler=scheduler), PROMPTS))


def test_a_compiled_engine_is_captured_with_memory_of_its_own_that_has_run_in_that_shape() -> None:
    ran: list[str] = []

    @dataclasses.dataclass
    class Run:
        name: str

        def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
            ran.append(self.name)
            return inputs["latents"] + 1

        def with_own_context(self) -> Run:
            return Run("own")

    graphs = GraphCache(CompiledEngine("trt", Run("shared"), Run("shared"), torch.float32), None, CallAgain())
    for _ in range(2):
        graphs(lambda engine, inputs: Batch(engine.decode(inputs.x)), Batch(torch.zeros(2)))
    assert ran == ["shared", "own", "own", "own"]  # warm-up, its own warm-up, capture, replay


@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.integers(0, 99)), max_size=30),
)
def test_every_order_of_batches(batches: list[tuple[int, bool, int]]) -> None:
    """Results are those of the call and stay so; only neighbours of one shape are captured; few graphs are held."""
    captures: list[tuple[int, bool]] = []
    before: tuple[int, bool] | None = None

    def capture(call, inputs: Batch) -> CapturedGraph:
        captures.append(before)
        return CallAgain()(call, inputs)

    engine = SimpleNamespace(with_own_context=lambda: engine)
    graphs = GraphCache(engine, None, capture)
    results = []
    for size, guided, value in batches:
        count = len(captures)

        def call(engine, inputs: Batch, guided: bool = guided) -> Batch:
            return Batch(inputs.x * (2 if guided else 3))

        results.append((graphs(call, Batch(torch.full((size,), value)), key=guided).x, size, value, guided))
        assert len(captures) == count or captures[-1] == (size, guided)
        assert len(graphs._graphs) <= MOST_GRAPHS
        before = (size, guided)
    for y, size, value, guided in results:
        assert y.tolist() == [value * (2 if guided else 3)] * size


def test_a_batch_is_launched_before_the_one_before_it_is_there() -> None:
    release, order = threading.Event(), []

    def download(outputs: Batch) -> int:
        assert release.wait(10)
        order.append(f"downloaded {int(outputs.x)}")
        return int(outputs.x)

    overlap = StreamOverlap(CPU, download)
    waiting = []
    for number in range(2):
        waiting.append(overlap.submit(lambda number=number: Batch(torch.tensor(number))))
        order.append(f"launched {number}")
    release.set()
    assert [each.result(10) for each in waiting] == [0, 1]
    assert order == ["launched 0", "launched 1", "downloaded 0", "downloaded 1"]


def test_what_fails_while_downloading_surfaces_where_it_is_waited_for() -> None:
    def download(outputs: Batch) -> None:
        raise RuntimeError("nvImageCodec could not encode a picture")

    with pytest.raises(RuntimeError, match="could not encode"):
        StreamOverlap(CPU, download).submit(lambda: Batch(torch.zeros(1))).result(10)
