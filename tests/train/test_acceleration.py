"""What makes a step faster: nothing waits for the device, and what is compiled keeps its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch._inductor.config

from stablerep.config import UserError
from stablerep.models import blocks_of
from stablerep.train import loop, metrics
from stablerep.train.backward import Backward
from stablerep.train.step import Step
from tests.data.pictures import write_shards
from tests.train.test_gradient_cache import CPU, batch_of
from tests.train.test_loop import config_for
from tests.waits import Waits


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", prompts=10, per_prompt=4)


@pytest.mark.parametrize("micro_batch_size", [0, 4])
def test_between_two_lines_of_the_log_nothing_waits_for_the_device(
    shards: Path, tmp_path: Path, micro_batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, seen = Waits(), []

    class Watched(metrics.Metrics):
        def add(self, *args: Any) -> None:
            super().add(*args)
            seen.append(waits.counts.total())

    def tolist(tensor: torch.Tensor, original: Any = torch.Tensor.tolist) -> Any:
        waits.counts["tolist"] += 1  # of a CPU tensor it passes by the dispatcher
        return original(tensor)

    monkeypatch.setattr(metrics, "Metrics", Watched)
    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    with waits:
        loop.train(
            config_for(
                shards, tmp_path / "run", arch="test_vit", steps=6, log_every=3, checkpoint_every=9,
                micro_batch_size=micro_batch_size,
            )
        )  # fmt: skip
    assert len(seen) == 6
    assert seen[0] == seen[1] == seen[2] < seen[3] == seen[4] == seen[5]  # the third step's line is fetched, once


def test_compiling_is_chosen_by_device_and_keeps_the_names(shards: Path, tmp_path: Path) -> None:
    plain, compiled = (
        loop.build(config_for(shards, tmp_path, arch="test_vit", compile=choice), CPU)[0] for choice in ("auto", "on")
    )
    assert plain.get_submodule("encoder")._compiled_call_impl is None
    for part in ("encoder", "head"):
        assert compiled.get_submodule(part)._compiled_call_impl is not None
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_a_machine_that_cannot_compile_is_told_of_the_flag(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    config = config_for(shards, tmp_path / "run", arch="test_vit", compile="on", steps=1)
    with pytest.raises(UserError, match=r"torch\.compile fails on this machine \(.*\); give --compile off$"):
        loop.train(config)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_size", [0, 4])
def test_a_compiled_run_computes_the_same_and_compiles_once(
    shards: Path, tmp_path: Path, micro_batch_size: int
) -> None:
    losses: dict[str, list[float]] = {"off": [], "on": []}
    for choice, found in losses.items():
        model, optimiser = loop.build(config_for(shards, tmp_path, arch="test_vit", compile=choice), CPU)
        take_step = Step(Backward(model, CPU, micro_batch_size, tmp_path), optimiser)
        for step in range(4):
            torch.manual_seed(step)
            with torch._dynamo.config.patch(error_on_recompile=step > 0):
                found.append(take_step(batch_of(), 1e-3 * (step + 1))[0].item())
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-3)


@pytest.mark.parametrize(("arch", "blocks"), [("vit_tiny_patch16_224", 12), ("resnet18", 8), ("convnext_atto", 4)])
def test_blocks_are_the_parts_that_follow_each_other(arch: str, blocks: int) -> None:
    encoder = timm.create_model(arch, num_classes=0)
    found = blocks_of(encoder)
    assert len(found) == blocks
    inside = {id(weight) for block in found for weight in block.parameters()}
    assert len(inside) == sum(len(list(block.parameters())) for block in found)  # none lies in another
    assert len(inside) > 0.8 * len(list(encoder.parameters()))
