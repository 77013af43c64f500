"""Painting a batch asks the device nothing; host and device meet in cuda.py alone.

On the CPU every tensor is on the host, so what would wait or copy on a GPU is counted where it is called.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stablerep.engines.torch import TorchEngine
from stablerep.generate import painter as painter_module
from stablerep.generate.config import FUSED_SCHEDULERS
from stablerep.generate.painter import PictureId, encode_prompts, paint_batch, paint_shard
from stablerep.generate.pipeline import Pipeline
from stablerep.prompts import Prompt
from tests.generate.test_cuda import CallAgain, painter
from tests.waits import Waits

OURS = Path(painter_module.__file__).parent
PROMPTS = [
    Prompt(0, "a photo of a bag"),
    Prompt(1, "a photo of a coat", guidance_scale=3.0, seed=7, negative_prompt="dark"),
]


class Crossings(TorchFunctionMode):
    """Counts, by our file, the calls that read a number, or that bring a tensor to another device if it lies on one."""

    NAMES = ("item", "tolist", "numpy", "cpu", "cuda", "pin_memory", "__bool__", "__int__", "__float__", "__index__")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        places = (*args, *kwargs.values())
        moves = name == "to" and any(isinstance(place, torch.device) for place in places)
        if moves or name in self.NAMES:
            caller = Path(sys._getframe(1).f_code.co_filename)
            if caller.is_relative_to(OURS):  # on a GPU the profiler sees what others do (test_on_cuda.py)
                self.counts[caller.name, name] += 1
        return function(*args, **kwargs)


def launch(engine: TorchEngine, capture: CallAgain | None, batches: int, **changes) -> tuple[Counter, Counter]:
    """What batches ask for that are launched and not downloaded, after a first one that fills the caches."""
    made = painter(engine, capture, **changes)
    encoded = encode_prompts(made, PROMPTS)
    wanted = [PictureId(row, index) for index in range(2) for row in range(2)]
    paint_batch(made, encoded, wanted)
    with Crossings() as crossed, Waits() as waited:
        for _ in range(batches):
            paint_batch(made, encoded, wanted)
    return crossed.counts, waited.counts


@pytest.mark.parametrize("name", FUSED_SCHEDULERS)
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_a_batch_is_painted_without_asking(pipeline: Pipeline, name: str, rescale: float) -> None:
    capture = CallAgain()
    crossed, waited = launch(TorchEngine(pipeline), capture, 4, scheduler=name, guidance_rescale=rescale)
    assert capture.replayed == 4
    # A batch's numbers go up: rows, ids and indices in one piece; the scales, which differ; the rows of each seed. The
    # noise finds its ids and indices on the device.
    assert crossed == {("cuda.py", "to"): 4 * (1 + 1 + 2 + 2)}
    assert waited.total() == 0, +waited


def test_a_question_would_be_seen(pipeline: Pipeline) -> None:
    class Asking(TorchEngine):
        def decode(self, latents: Tensor) -> Tensor:
            return super().decode(latents) * float(latents.isfinite().all())

    _, waited = launch(Asking(pipeline), None, 1)
    assert waited.total() == 1


def test_pictures_and_their_quality_come_down_in_the_marked_place(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded: list[int] = []

    def counted(tensors: list[Tensor]) -> list[Tensor]:
        downloaded.append(len(tensors))
        return download(tensors)

    download = painter_module.download
    monkeypatch.setattr(painter_module, "download", counted)
    made = painter(TorchEngine(pipeline), num_images_per_prompt=8)
    with Crossings() as crossed:
        paint_shard(made, PROMPTS)
    assert downloaded == [5] * 4  # the quality of each of four batches; pixels stay where they are on the CPU
    outside = {key for key in crossed.counts if key[0] not in ("cuda.py", "screen.py", "pipeline.py")}
    assert not outside, outside  # screen.py reads what came down, pipeline.py brings the tokens up
