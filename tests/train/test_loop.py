"""A run from data to exported encoder, stopped, resumed, and in two processes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablerep import config as configs
from stablerep import ops
from stablerep.config import UserError
from stablerep.models import load_encoder
from stablerep.train import checkpoint, loop
from stablerep.train.config import TrainConfig
from stablerep.train.initial import Initial
from stablerep.train.loop import train
from tests.data.pictures import write_folder, write_shards


def config_for(shards: Path, out: Path, **fields: Any) -> TrainConfig:
    tiny = {"arch": "test_resnet", "image_size": 32, "batch_size": 12, "views_per_prompt": 3, "head_hidden": 16}
    tiny |= {"head_out": 8, "steps": 6, "checkpoint_every": 2, "log_every": 2, "base_lr": 0.02, "device": "cpu"}
    return TrainConfig(**({"data": (str(shards),), "out": out} | tiny | fields))


def final_state(out: Path) -> dict[str, Any]:
    state = checkpoint.load_newest(out / "checkpoints", torch.device("cpu"))
    assert state is not None
    return state


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [tensor for child in children for tensor in tensors(child)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", prompts=10, per_prompt=4)


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    return train(config_for(shards, tmp_path_factory.mktemp("runs") / "whole")).parent


class Interrupted(Exception):
    pass


def interrupt_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break off as a crash would: after earlier steps' checkpoints, in the middle of a step."""

    def learning_rate(at: int, **fields: Any) -> float:
        if at == step:
            raise Interrupted
        return original(at, **fields)

    original = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", learning_rate)


def test_a_run_leaves_what_the_contract_says(whole: Path, shards: Path) -> None:
    assert configs.load(TrainConfig, whole / "config.yaml").arch == "test_resnet"
    assert [line["step"] for line in lines(whole)] == [2, 4, 6]
    for line in lines(whole):
        assert {"loss", "lr", "images_per_second", "data_wait_share", "skipped_updates"} <= line.keys()
        assert math.isfinite(line["loss"]) and 0 <= line["data_wait_share"] <= 1
    assert list(whole.glob("events.out.tfevents.*"))
    assert checkpoint.steps(whole / "checkpoints") == [4, 6]
    encoder, transform = load_encoder(whole)
    assert encoder(transform(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))).shape == (1, encoder.num_features)
    trained = {name.removeprefix("encoder."): value for name, value in final_state(whole)["model"].items()}
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, trained.get(name, trained.get(f"body.{name}")))


def test_a_resumed_run_gives_the_same_bits(
    whole: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(shards, tmp_path / "cut")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_before(5, patch)
        train(config)
    assert not (tmp_path / "cut" / "exported").exists()
    train(config)
    ours, expected = tensors(final_state(tmp_path / "cut")), tensors(final_state(whole))
    assert len(ours) == len(expected) > 30
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    losses = [[(line["step"], line["loss"]) for line in lines(out)] for out in (tmp_path / "cut", whole)]
    assert losses[0] == losses[1]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    whole: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = config_for(shards, tmp_path / "cut")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_before(5, patch)
        train(config)
    newest = tmp_path / "cut" / "checkpoints" / "000000004.pt"
    newest.write_bytes(newest.read_bytes()[:5000])
    train(config)
    assert "000000004.pt is damaged" in caplog.text and "taking the one before" in caplog.text
    assert all(
        torch.equal(a, b)
        for a, b in zip(tensors(final_state(tmp_path / "cut")), tensors(final_state(whole)), strict=True)
    )


def test_a_finished_run_is_returned_at_once(whole: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "open_data", None)  # not even the data is opened
    assert train(config_for(shards, whole)) == whole / "exported"


def test_a_folder_of_another_run_is_refused_by_the_field_that_differs(whole: Path, shards: Path) -> None:
    with pytest.raises(UserError, match=r"holds another run: its --temperature is 0\.1, not 0\.2"):
        train(config_for(shards, whole, temperature=0.2))
    assert train(config_for(shards, whole, checkpoint_every=50)).exists()  # changes nothing that is computed


def test_a_folder_with_other_files_is_refused(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds files that are no run of ours \(thesis\.tex"):
        train(config_for(shards, tmp_path))


def test_data_that_changed_under_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_folder(tmp_path / "photos", 8)
    config = config_for(photos, tmp_path / "run", objective="simclr")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_before(3, patch)
        train(config)
    (photos / "000.png").unlink()
    with pytest.raises(UserError, match="--data holds other pictures"):
        train(config)


def test_a_mixed_run_learns(shards: Path, tmp_path: Path) -> None:
    """Twenty smooth pictures of different colours are easily told apart: the loss must fall well below its start."""
    photos = write_folder(tmp_path / "photos", 10)
    config = config_for(
        shards, tmp_path / "run", data=(f"{shards}:2", str(photos)), batch_size=36, steps=60, log_every=10, base_lr=0.1
    )
    train(config)
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    assert losses[-1] < losses[0] - 0.4


def test_updates_that_are_not_finite_are_skipped_and_a_run_of_nothing_else_stops(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ops.multi_positive_loss
    calls = []

    def sometimes_nan(*args: Any) -> Tensor:
        calls.append(1)
        return original(*args) * (math.nan if len(calls) in bad else 1.0)

    monkeypatch.setattr(ops, "multi_positive_loss", sometimes_nan)
    bad = {2}
    train(config_for(shards, tmp_path / "one"))
    assert [line["skipped_updates"] for line in lines(tmp_path / "one")] == [1, 0, 0]
    assert all(tensor.isfinite().all() for tensor in tensors(final_state(tmp_path / "one")))

    calls.clear()
    bad = {3, 4}
    with pytest.raises(UserError, match=r"no gradient was finite in the 2 steps before step 4; lower --base-lr"):
        train(config_for(shards, tmp_path / "two"))


def test_no_room_for_a_checkpoint_keeps_the_one_before(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(shards, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    original = checkpoint.save

    def save_on_a_small_disk(at: Path, step: int, state: dict[str, Any], keep: int) -> None:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000 if step == 4 else soft, hard))
        try:
            original(at, step, state, keep)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_on_a_small_disk)
        with pytest.raises(UserError, match=r"000000004\.pt cannot be written .* the checkpoint of step 2 is whole"):
            train(config)
    assert [path.name for path in folder.iterdir()] == ["000000002.pt"]
    train(config)
    assert checkpoint.steps(folder) == [4, 6]


def test_a_batch_of_more_prompts_than_there_are_is_said(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stablerep.train")
    loop.open_data(config_for(shards, tmp_path, batch_size=30), torch.device("cpu"))
    assert not caplog.messages
    loop.open_data(config_for(shards, tmp_path, batch_size=36), torch.device("cpu"))
    (said,) = caplog.messages
    assert "has 10 prompts and a batch holds 12: each comes up more than once" in said
    assert said.endswith("a --batch-size of 30 shows each once")


def test_a_checkpoint_of_another_model_is_refused_by_the_first_weight_that_differs(
    whole: Path, shards: Path, tmp_path: Path
) -> None:
    checkpoint.claim_folder(config_for(shards, tmp_path / "run", head_out=4))
    shutil.copytree(whole / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(
        UserError, match=r"another model: head\.layers\.6\.weight is \(8, 16\), and .* is \(4, 16\); br"
    ):
        train(config_for(shards, tmp_path / "run", head_out=4))
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [4, 6]


def step_once(data: Path, out: Path) -> tuple[float, list[NDArray[np.float32]]]:
    """Loss and gradients of the first step; on several ranks as DDP leaves them."""
    config = config_for(data, out, arch="test_vit", batch_size=24)
    device = torch.device("cpu")
    data_of_run = loop.open_data(config, device)
    model, _ = loop.build(config, device)
    with data_of_run.batches(loop.loader_config(config, Initial(), model), device, first_step=0, last_step=1) as loader:
        batch = next(loader)
    loss = loop.Backward(model, device, config.micro_batch_size, out)(batch)
    return loss.item(), [weight.grad.numpy() for weight in model.parameters() if weight.grad is not None]


def test_two_ranks_give_the_loss_and_gradients_of_one(
    shards: Path, tmp_path: Path, run_ranks: Callable[..., list[Any]]
) -> None:
    loss, gradients = step_once(shards, tmp_path / "one_rank")
    assert len(gradients) > 20
    for rank_loss, rank_gradients in run_ranks(2, step_once, shards, tmp_path / "two_ranks"):
        assert rank_loss == pytest.approx(loss, rel=1e-5)
        for ours, expected in zip(rank_gradients, gradients, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5 + 1e-4 * np.abs(expected).max())
