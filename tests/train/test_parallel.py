"""Sharded runs: the numbers of one rank, and a run that goes on with other ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stablerep.data.loader import Batch
from stablerep.models import load_encoder
from stablerep.train import loop, parallel
from stablerep.train.backward import Backward
from stablerep.train.objective_config import SynclrConfig
from stablerep.train.optimiser import apply_gradients
from tests.data.pictures import write_shards
from tests.train.test_gradient_cache import CPU, batch_of, farthest
from tests.train.test_loop import config_for, final_state, lines, tensors


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", prompts=10, per_prompt=4)


def sharded_gradients(data: Path, out: Path, size: int) -> tuple[list[Any], float, bool]:
    """Gradients of a step, the share of the weights that a rank holds, and whether NaN leaves them as they were."""
    config = config_for(data, out, arch="test_vit", batch_size=24, synclr=SynclrConfig(koleo_weight=0.3))
    model, optimiser = loop.build(config, CPU)
    if ranks := loop.distributed.world_size() - 1:
        optimiser = parallel.shard(model, config, CPU)
    rows = slice(loop.distributed.rank() * 12, (loop.distributed.rank() + 1) * 12) if ranks else slice(0, 24)
    whole = batch_of(24)
    batch = Batch(whole.images[rows], whole.labels[rows])
    Backward(model, CPU, size, out)(batch)
    gradients = parallel.whole([weight.grad for weight in model.parameters()])
    held = sum(getattr(weight, "_local_tensor", weight).numel() for weight in model.parameters())
    share = held / sum(weight.numel() for weight in model.parameters())
    before = parallel.whole(model.state_dict())
    before = {name: value.clone() for name, value in before.items()}
    batch.images[0] = float("nan") if loop.distributed.rank() == 0 else 0.0
    optimiser.zero_grad()
    Backward(model, CPU, size, out)(batch)
    apply_gradients(optimiser)
    after = parallel.whole(model.state_dict())
    kept = all(torch.equal(before[name], after[name]) for name in before)
    return [gradient.numpy() for gradient in gradients], share, kept


@pytest.mark.parametrize("size", [0, 4])
def test_shards_give_the_gradient_of_one_rank(
    shards: Path, tmp_path: Path, size: int, run_ranks: Callable[..., list[Any]]
) -> None:
    expected, share, _ = sharded_gradients(shards, tmp_path, 0)
    assert share == 1
    for ours, share, kept in run_ranks(2, sharded_gradients, shards, tmp_path, size):
        assert farthest(list(map(torch.from_numpy, ours)), list(map(torch.from_numpy, expected))) < 1e-5
        assert share < 0.6 and kept


def part_of_a_run(data: Path, out: Path, parallel_as: str, last: int) -> None:
    """Up to a step, where the process ends as a crash would."""
    original = loop.learning_rate

    def learning_rate(at: int, **fields: Any) -> float:
        if at == last:
            raise InterruptedError
        return original(at, **fields)

    loop.learning_rate = learning_rate
    try:
        loop.train(config_for(data, out, arch="test_vit", parallel=parallel_as, base_lr=1e-3))
    except InterruptedError:
        pass
    finally:
        loop.learning_rate = original


def test_a_run_on_four_ranks_goes_on_with_two_and_ends_on_one(
    shards: Path, tmp_path: Path, run_ranks: Callable[..., list[Any]]
) -> None:
    out = tmp_path / "run"
    run_ranks(4, part_of_a_run, shards, out, "fsdp", 2)
    run_ranks(2, part_of_a_run, shards, out, "fsdp", 4)
    part_of_a_run(shards, out, "ddp", 100)
    loop.train(config_for(shards, tmp_path / "whole", arch="test_vit", base_lr=1e-3))
    ours, expected = lines(out), lines(tmp_path / "whole")
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in expected], rel=1e-3)
    shapes = [[tensor.shape for tensor in tensors(final_state(run))] for run in (out, tmp_path / "whole")]
    assert shapes[0] == shapes[1]
    assert load_encoder(out)[0].num_features == 64


def test_a_sharded_run_exports_whole_weights(shards: Path, tmp_path: Path, run_ranks: Callable[..., list[Any]]) -> None:
    run_ranks(2, part_of_a_run, shards, tmp_path / "run", "fsdp", 100)
    encoder, _ = load_encoder(tmp_path / "run")
    trained = final_state(tmp_path / "run")["model"]
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, trained[f"encoder.{name}"])
