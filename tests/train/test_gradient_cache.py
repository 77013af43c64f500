"""The gradient of a batch in parts is that of the whole; parts are found when memory runs out, and kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stablerep.config import UserError
from stablerep.data.loader import Batch
from stablerep.train import gradient_cache, loop, memory
from stablerep.train.backward import Backward
from stablerep.train.objectives.contrastive import Contrastive
from tests.data.pictures import write_shards
from tests.train.test_loop import config_for, lines

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", prompts=10, per_prompt=4)


def objective_of(dtype: torch.dtype = torch.float32, **options: float) -> Contrastive:
    torch.manual_seed(0)
    encoder = timm.create_model("test_vit", num_classes=0, img_size=32, **options)
    return Contrastive(encoder, config_for(Path("none"), Path("none")), bf16=False).to(dtype)


def batch_of(rows: int = 12, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(rows, 3, 32, 32, generator=generator)
    return Batch(images.to(dtype), torch.arange(rows) // 3)


def gradients(model: nn.Module) -> list[Tensor]:
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def farthest(ours: list[Tensor], expected: list[Tensor]) -> float:
    """Of all weights the largest error, relative to the norm of the largest gradient."""
    assert len(ours) == len(expected) > 20
    largest = max(tensor.norm() for tensor in expected)
    return max(float((a - b).norm() / largest) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("size", [1, 4, 12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gradient_in_parts_is_that_of_the_whole(dtype: torch.dtype, size: int) -> None:
    whole, batch = objective_of(dtype), batch_of(dtype=dtype)
    parts = copy.deepcopy(whole)
    loss = whole(batch)
    loss.backward()
    assert torch.allclose(gradient_cache.backward(parts, batch, size), loss, rtol=1e-6)
    if dtype == torch.float64:
        assert farthest(gradients(parts), gradients(whole)) < 1e-12
        return
    exact = objective_of(torch.float64)  # the same weights
    exact(batch_of(dtype=torch.float64)).backward()
    of_precision = farthest(as_float64(whole), gradients(exact))
    assert farthest(as_float64(parts), gradients(exact)) < max(2 * of_precision, 1e-6)


def as_float64(model: nn.Module) -> list[Tensor]:
    return [gradient.double() for gradient in gradients(model)]


def test_both_passes_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout and drop path: as features of the parts with graph, each under its draws, and one backward."""
    parts = objective_of(torch.float64, proj_drop_rate=0.3, drop_path_rate=0.3)
    whole, batch = copy.deepcopy(parts), batch_of(dtype=torch.float64)
    torch.manual_seed(7)
    gradient_cache.backward(parts, batch, 4)
    torch.manual_seed(7)
    features = torch.cat([whole.features(part) for part in gradient_cache._parts(batch, 4)])
    whole.loss(features, batch).backward()
    assert farthest(gradients(parts), gradients(whole)) < 1e-12
    torch.manual_seed(8)
    whole.zero_grad()
    gradient_cache.backward(whole, batch, 4)
    assert farthest(gradients(parts), gradients(whole)) > 1e-3  # else nothing was dropped


def step_in_parts(data: Path, out: Path, size: int) -> tuple[int, list[NDArray[np.float64]]]:
    config = config_for(data, out, arch="test_vit", batch_size=24)
    model, _ = loop.build(config, CPU)
    ranks, rank = loop.distributed.world_size(), loop.distributed.rank()
    rows = slice(rank * 24 // ranks, (rank + 1) * 24 // ranks)
    batch = batch_of(24)
    out.mkdir(exist_ok=True)
    backward = Backward(model, CPU, size, out)
    backward(Batch(batch.images[rows], batch.labels[rows]))
    return backward.micro_batch_size, [weight.grad.numpy() for weight in model.parameters() if weight.grad is not None]


def test_two_ranks_in_parts_give_the_gradient_of_one(
    shards: Path, tmp_path: Path, run_ranks: Callable[..., list[Any]]
) -> None:
    _, expected = step_in_parts(shards, tmp_path / "one", 0)
    for size, ours in run_ranks(2, step_in_parts, shards, tmp_path / "two", 4):
        assert size == 4
        assert farthest(list(map(torch.from_numpy, ours)), list(map(torch.from_numpy, expected))) < 1e-6


def run_out_above(pictures: int, model: nn.Module) -> None:
    """Ask the allocator for what no machine has as soon as the encoder sees more pictures at once."""

    def ask(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > pictures:
            torch.empty(2**58)

    model.get_submodule("encoder").register_forward_pre_hook(ask)


def test_memory_that_runs_out_halves_until_it_fits_and_the_run_keeps_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = loop.build

    def build(*args: Any) -> Any:
        model, optimiser = original(*args)
        run_out_above(4, model)
        return model, optimiser

    caplog.set_level("INFO", "stablerep.train")
    config = config_for(shards, tmp_path / "run", arch="test_vit", steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "build", build)
        loop.train(config)
    said = [message for message in caplog.messages if "out of memory" in message]
    assert [message.split(":")[0] for message in said] == [
        "out of memory with 12 pictures at once",
        "out of memory with 6 pictures at once",
    ]
    assert "encoding 3 at a time" in said[1] and "--micro-batch-size 3" in said[1]
    (line,) = lines(tmp_path / "run")
    assert 0.05 < line["peak_memory_gb"] < 64
    assert Backward(original(config, CPU)[0], CPU, 0, tmp_path / "run").micro_batch_size == 3
    assert Backward(original(config, CPU)[0], CPU, 6, tmp_path / "run").micro_batch_size == 6

    loop.train(config_for(shards, tmp_path / "whole", arch="test_vit", steps=2))
    (whole,) = lines(tmp_path / "whole")
    assert line["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def step_of_a_small_rank(data: Path, out: Path) -> int:
    """Rank 1 alone has too little memory."""
    original = loop.build

    def build(*args: Any) -> Any:
        model, optimiser = original(*args)
        run_out_above(7 if loop.distributed.rank() else 100, model)
        return model, optimiser

    loop.build = build
    return step_in_parts(data, out, 0)[0]


def test_ranks_agree_on_what_fits(shards: Path, tmp_path: Path, run_ranks: Callable[..., list[Any]]) -> None:
    assert run_ranks(2, step_of_a_small_rank, shards, tmp_path / "run") == [6, 6]


def test_an_encoder_with_batch_norm_is_not_split(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--micro-batch-size 4 would train --arch test_resnet otherwise, as its Batch"):
        loop.train(config_for(shards, tmp_path / "run", micro_batch_size=4))
    assert not (tmp_path / "run").exists()
    model, _ = loop.build(config_for(shards, tmp_path / "run"), CPU)
    run_out_above(4, model)
    with pytest.raises(RuntimeError) as error:
        Backward(model, CPU, 0, tmp_path)(batch_of())
    assert memory.ran_out(error.value)


def test_a_micro_batch_that_does_not_divide_is_refused_with_those_that_do() -> None:
    with pytest.raises(UserError, match=r"^--micro-batch-size 5 does not divide --batch-size 24; use 4 or 6$"):
        gradient_cache.check_divides(5, 24, 1)
    with pytest.raises(UserError, match=r"does not divide the 12 pictures of each of 2 ranks; use 12$"):
        gradient_cache.check_divides(24, 24, 2)
    gradient_cache.check_divides(6, 24, 2)


def test_activation_checkpointing_changes_no_gradient(shards: Path, tmp_path: Path) -> None:
    plain, checkpointed = (
        loop.build(config_for(shards, tmp_path, arch="test_vit", activation_checkpointing=asked), CPU)[0]
        for asked in (False, True)
    )
    for model in (plain, checkpointed):
        model(batch_of()).backward()
    assert checkpointed.get_submodule("encoder").grad_checkpointing
    assert farthest(gradients(checkpointed), gradients(plain)) < 1e-6
    with pytest.raises(UserError, match=r"--activation-checkpointing: timm's vgg11 cannot do that"):
        loop.build(config_for(shards, tmp_path, arch="vgg11", activation_checkpointing=True), CPU)
