"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

import pytest
import torch

from stablerep.config import UserError
from stablerep.train import checkpoint, loop
from stablerep.train.checkpoint import Saver
from stablerep.train.loop import train
from tests.data.pictures import write_shards
from tests.train.test_loop import Interrupted, config_for, tensors

CPU = torch.device("cpu")
MOST_SECONDS = 20  # that a write is held up, should nothing let it go


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", prompts=10, per_prompt=4)


def before_writing(patch: pytest.MonkeyPatch, act: Callable[[int], object]) -> None:
    """Call act(step) in place of the moment when a checkpoint's first byte is written."""

    def save(state: dict[str, Any], file: BinaryIO) -> None:
        act(state["step"])
        original(state, file)

    original = torch.save
    patch.setattr(torch, "save", save)


def fill_the_disk_at(step: int, patch: pytest.MonkeyPatch) -> None:
    def act(at: int) -> None:
        if at == step:
            raise OSError(errno.ENOSPC, "No space left on device")

    before_writing(patch, act)


def state_of_ones() -> dict[str, Any]:
    return {"model": {"weight": torch.ones(3, 4)}, "optimiser": {"state": {0: {"step": torch.ones(())}}, "groups": [1]}}


def test_what_is_saved_is_of_its_step_though_training_goes_on_meanwhile(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, gone_on = [], Event()

    def learning_rate(at: int, **fields: Any) -> float:
        if at == 3:  # step 2 is saved, and the update of step 3 done
            gone_on.set()
        return original_rate(at, **fields)

    def state_of(*run: Any) -> dict[str, Any]:
        state = original_state(*run)
        seen.append([tensor.clone() for tensor in tensors(state)])
        return state

    original_rate, original_state = loop.learning_rate, checkpoint.state_of
    monkeypatch.setattr(loop, "learning_rate", learning_rate)
    monkeypatch.setattr(checkpoint, "state_of", state_of)
    went_on = []
    before_writing(monkeypatch, lambda step: went_on.append(gone_on.wait(MOST_SECONDS)))
    train(config_for(shards, tmp_path / "run", keep_checkpoints=3))
    assert went_on == [True] * 3
    folder = tmp_path / "run" / "checkpoints"
    assert checkpoint.steps(folder) == [2, 4, 6]
    for path, expected in zip(sorted(folder.iterdir()), seen, strict=True):
        written = tensors(torch.load(path, weights_only=True))
        assert len(written) == len(expected) > 30
        assert all(torch.equal(a, b) for a, b in zip(written, expected, strict=True))
    assert not torch.equal(seen[0][0], seen[1][0])


def test_one_checkpoint_is_written_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_writing(monkeypatch, lambda step: time.sleep(0.05))
    with Saver(tmp_path, 2, CPU) as saver:
        for step in range(1, 5):
            saver.save(step, state_of_ones())
            assert checkpoint.steps(tmp_path)[-1:] == [step - 1][: step - 1]
    assert checkpoint.steps(tmp_path) == [3, 4]


def test_a_full_disk_is_said_at_the_next_save_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill_the_disk_at(2, monkeypatch)
    reached = []
    with (
        pytest.raises(UserError, match=r"2\.pt cannot be written \(.*No space.*\); the checkpoint of step 1 is whole"),
        Saver(tmp_path, 2, CPU) as saver,
    ):
        for step in range(1, 5):
            reached.append(step)
            saver.save(step, state_of_ones())
    assert reached == [1, 2, 3] and not caplog.messages
    assert [path.name for path in tmp_path.iterdir()] == ["000000001.pt"]


def test_a_full_disk_at_the_last_step_ends_the_run_without_an_encoder(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk_at(6, monkeypatch)
    with pytest.raises(UserError, match=r"000000006\.pt cannot be written .* the checkpoint of step 4 is whole"):
        train(config_for(shards, tmp_path / "run"))
    assert not (tmp_path / "run" / "exported").exists()


def test_what_ends_a_run_is_not_hidden_by_a_full_disk_and_waits_for_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before_writing(monkeypatch, lambda step: time.sleep(0.05))
    fill_the_disk_at(2, monkeypatch)
    for step, end in ((1, KeyboardInterrupt), (2, Interrupted)):
        with pytest.raises(end), Saver(tmp_path, 2, CPU) as saver:
            saver.save(step, state_of_ones())
            raise end
        assert [path.name for path in tmp_path.iterdir()] == ["000000001.pt"]
    (said,) = caplog.messages
    assert "000000002.pt cannot be written" in said


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Saver(tmp_path, 2, CPU, enabled=False) as saver:
        saver.save(1, state_of_ones())
        saver.wait()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_save_does_not_synchronise_cuda(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    weight = torch.ones(64, 32, 3, 3, device=device).to(memory_format=torch.channels_last)
    with Saver(tmp_path, 2, device) as saver:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(1, 5):
                saver.wait()
                torch.cuda._sleep(10**8)
                before = torch.cuda.current_stream(device).record_event()
                saver.save(step, {"model": {"weight": weight}})
                assert step == 1 or not before.query()  # the first one pins memory, which may wait
                weight += 1
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for step in (3, 4):
        written = torch.load(tmp_path / f"{step:09}.pt", weights_only=True)["model"]["weight"]
        assert written.device == CPU and written.is_contiguous(memory_format=torch.channels_last)
        assert (written == step).all()
