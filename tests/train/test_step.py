"""A step as one CUDA graph computes what the eager step does, from a batch of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stablerep import cli
from stablerep.config import UserError
from stablerep.data.loader import Batch
from stablerep.train import loop
from stablerep.train.backward import RECORD, Backward
from stablerep.train.config import TrainConfig
from stablerep.train.optimiser import Update
from stablerep.train.step import WARM_UP, GraphedStep, Replay, Result, Step, open_step
from tests.data.pictures import write_shards
from tests.train.test_gradient_cache import CPU, batch_of
from tests.train.test_loop import config_for

STEPS = WARM_UP + 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", prompts=10, per_prompt=4)


def capture_by_running_again(launch: Callable[[], Result]) -> tuple[Replay, Result]:
    """What a CUDA graph is to its caller: nothing runs now; each replay writes to the same tensors."""
    held = [torch.full((), torch.nan) for _ in range(3)]

    def replay() -> None:
        loss, update = launch()
        for mine, new in zip(held, (loss, *update), strict=True):
            mine.copy_(new)

    loss, norm, skipped = held
    return replay, (loss, Update(norm, skipped))


def trained(config: TrainConfig, device: torch.device, graphed: Callable[[Step], Any]) -> tuple[list[Any], list[Any]]:
    """Losses, norms and weights of some steps, each with a batch, rate and random numbers of its own."""
    model, optimiser = loop.build(config, device)
    take_step = graphed(Step(Backward(model, device, 0, config.out), optimiser))
    numbers = []
    for number in range(STEPS):
        whole = batch_of()
        batch = Batch(whole.images + number, whole.labels).to(device)
        torch.manual_seed(number)
        loss, update = take_step(batch, 1e-3 * (number + 1))
        numbers.append((loss.item(), update.gradient_norm.item(), update.skipped.item()))
        batch.images.fill_(torch.nan)  # whoever reads it later reads that
    assert not any(group["capturable"] for group in optimiser.param_groups)
    return numbers, [weight.detach().cpu() for weight in model.state_dict().values()]


def assert_same(ours: tuple[list[Any], list[Any]], expected: tuple[list[Any], list[Any]]) -> None:
    assert ours[0] == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(ours[1], expected[1], strict=True))


def test_a_replay_takes_the_batch_and_rate_of_its_own_step(shards: Path, tmp_path: Path) -> None:
    config = config_for(shards, tmp_path, arch="test_vit")
    captured = []

    def capture(launch: Callable[[], Result]) -> tuple[Replay, Result]:
        captured.append(1)
        return capture_by_running_again(launch)

    assert_same(trained(config, CPU, lambda step: GraphedStep(step, capture)), trained(config, CPU, lambda step: step))
    assert len(captured) == 1


def test_torch_is_told_that_a_graph_is_captured(shards: Path, tmp_path: Path) -> None:
    model, optimiser = loop.build(config_for(shards, tmp_path, arch="test_vit"), CPU)
    seen = []

    def capture(launch: Callable[[], Result]) -> tuple[Replay, Result]:
        seen.append([group["capturable"] for group in optimiser.param_groups])
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    step = GraphedStep(Step(Backward(model, CPU, 0, tmp_path), optimiser), capture)
    with pytest.raises(UserError, match=r"--cuda-graph: .*permitted when stream is capturing\); leave it out$"):
        for _ in range(STEPS):
            step(batch_of(), 1e-3)
    assert seen == [[True, True]]
    assert not any(group["capturable"] for group in optimiser.param_groups)


def test_a_run_in_micro_batches_stays_eager(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / RECORD).write_text("4\n")  # as an earlier start has found to fit
    model, optimiser = loop.build(config_for(shards, tmp_path, arch="test_vit"), CPU)
    step = GraphedStep(Step(Backward(model, CPU, 0, tmp_path), optimiser), lambda launch: pytest.fail("captured"))
    with caplog.at_level("INFO"):
        for _ in range(STEPS):
            step(batch_of(), 1e-3)
    assert [record.message[:16] for record in caplog.records].count("no --cuda-graph:") == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (["--micro-batch-size", "4"], "--micro-batch-size 4"),
        (["--objective", "clip"], "--objective clip"),
        (["--ema-teacher", "0.99", "--ibot-weight", "1"], "--ibot-weight"),
    ],
)
def test_what_changes_the_shape_of_a_step_is_refused(
    fields: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.train(["--data", "x", "--out", str(tmp_path / "run"), "--cuda-graph", *fields])
    assert capsys.readouterr().err == (
        f"stablerep-train: --cuda-graph does not go with {named}, whose steps differ in shape; leave one out\n"
    )


def test_without_a_gpu_it_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--cuda-graph needs a CUDA GPU, and this run is on the cpu; leave it out"):
        loop.train(config_for(shards, tmp_path / "run", arch="test_vit", cuda_graph=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("compile", ["off", "on"])
def test_on_a_gpu_the_graph_computes_what_the_eager_step_does(shards: Path, tmp_path: Path, compile: str) -> None:
    device = torch.device("cuda", 0)
    config = config_for(
        shards, tmp_path, arch="test_vit", device="cuda", precision="bf16", compile=compile, cuda_graph=True
    )

    def graphed(step: Step) -> Any:
        taken = open_step(config, step.backward, step.optimiser, device)
        assert isinstance(taken, GraphedStep)
        return taken

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert_same(trained(config, device, graphed), trained(config, device, lambda step: step))
    finally:
        torch.use_deterministic_algorithms(False)
