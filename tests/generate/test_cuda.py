"""What is captured, when, and that a graph changes no byte. Capturing itself needs a GPU (test_on_cuda.py); here
`call_again` stands in for it: the same static memory, and each replay calls again."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stablerep.engines.select import CompiledEngine
from stablerep.engines.torch import TorchEngine
from stablerep.generate.config import GenerateConfig
from stablerep.generate.cuda import MOST_GRAPHS, Captured, Graphs, why_not
from stablerep.generate.diffusers_schedule import open_schedule
from stablerep.generate.paint import Painted, paint_shard
from stablerep.generate.painter import BatchSize, Painter
from stablerep.generate.pipeline import Pipeline
from stablerep.prompts import Prompt

CPU = torch.device("cpu")
PROMPTS = [
    Prompt(0, "a photo of a bag"),
    Prompt(1, "a photo of a coat", guidance_scale=3.0, seed=7),
    Prompt(2, "a photo of a shirt", negative_prompt="dark"),
]


class CallAgain:
    """Captures that count themselves."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, call, inputs: dict[str, Tensor]) -> Captured:
        self.captured += 1
        outputs = {
            name: torch.full_like(value, 0) for name, value in call(inputs).items()
        }  # a capture computes nothing

        def replay() -> None:
            self.replayed += 1
            for name, value in call(inputs).items():
                outputs[name].copy_(value)

        return Captured(inputs, outputs, replay)


def painter(engine, capture=None, batch_size: int = 4, prompts: list[Prompt] = PROMPTS, **changes) -> Painter:
    fields = {"num_images_per_prompt": 6, "num_inference_steps": 2, "batch_size": batch_size, **changes}
    config = GenerateConfig(prompts=Path("p.txt"), out=Path("out"), **fields)
    schedule = open_schedule(config.scheduler, engine.pipeline.scheduler_config, config.num_inference_steps, CPU)
    made = Painter(engine.pipeline, engine, schedule, config, BatchSize(batch_size))
    if capture is not None:
        vars(made)["graphs"] = Graphs(engine, why_not(engine, schedule), capture)
    return made


def same(one: list[list[Painted]], other: list[list[Painted]]) -> bool:
    pairs = [(a, b) for mine, yours in zip(one, other, strict=True) for a, b in zip(mine, yours, strict=True)]
    return all(str(a.mark) == str(b.mark) and torch.equal(a.pixels, b.pixels) for a, b in pairs)  # NaN is no score


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


@pytest.mark.parametrize(("name", "scheduler", "reason"), [
    ("torch", "euler_ancestral", "diffusers' own scheduler objects"),
    ("onnx", "ddim", "ONNX Runtime keeps"),
])  # fmt: skip
def test_what_cannot_be_captured_is_known_before(
    pipeline: Pipeline, name: str, scheduler: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    capture = CallAgain()
    with caplog.at_level(logging.INFO, "stablerep.generate"):
        graphed = painter(TorchEngine(pipeline, name), capture, scheduler=scheduler)
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

        def alone(self) -> Run:
            return Run("own")

    graphs = Graphs(CompiledEngine("trt", Run("shared"), Run("shared"), torch.float32), None, CallAgain())
    for _ in range(2):
        graphs(lambda engine, inputs: {"y": engine.decode(inputs["x"])}, {"x": torch.zeros(2)})
    assert ran == ["shared", "own", "own", "own"]  # warm-up, its own warm-up, capture, replay


@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.integers(0, 99)), max_size=30),
)
def test_every_order_of_batches(batches: list[tuple[int, bool, int]]) -> None:
    """Results are those of the call and stay so; only neighbours of one shape are captured; few graphs are held."""
    captures: list[tuple[int, bool]] = []
    before: tuple[int, bool] | None = None

    def capture(call, inputs: dict[str, Tensor]) -> Captured:
        captures.append(before)
        return CallAgain()(call, inputs)

    graphs = Graphs(None, None, capture)
    results = []
    for size, guided, value in batches:
        count = len(captures)

        def call(engine, inputs: dict[str, Tensor], guided: bool = guided) -> dict[str, Tensor]:
            return {"y": inputs["x"] * (2 if guided else 3)}

        results.append((graphs(call, {"x": torch.full((size,), value)}, key=guided)["y"], size, value, guided))
        assert len(captures) == count or captures[-1] == (size, guided)
        assert len(graphs._graphs) <= MOST_GRAPHS
        before = (size, guided)
    for y, size, value, guided in results:
        assert y.tolist() == [value * (2 if guided else 3)] * size
