"""Ctrl-C and SIGTERM of a run: real signals to real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stablerep.train import checkpoint, loop, stopping
from stablerep.train.loop import train
from stablerep.train.stopping import Stopped, StopRequest, listening
from tests.data.pictures import write_shards
from tests.train.test_loop import config_for

COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom stablerep.cli import train; train()"
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", prompts=10, per_prompt=4)


def test_a_command_saves_the_step_it_is_at_and_goes_on_from_there(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = "--arch test_vit --image-size 32 --batch-size 12 --views-per-prompt 3 --head-hidden 16 --head-out 8"
    flags += " --steps 100000 --checkpoint-every 50000 --log-every 1 --base-lr 0.001 --device cpu"
    saved = []
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        known = os.stat(out / "metrics.jsonl").st_size if saved else 0
        run = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "--data", str(shards), "--out", str(out), *flags.split()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not (out / "metrics.jsonl").exists() or os.stat(out / "metrics.jsonl").st_size <= known:
            assert run.poll() is None, run.stderr and run.stderr.read()
            time.sleep(0.05)
        run.send_signal(number)
        _, said = run.communicate(timeout=60)
        assert run.returncode == code, said
        assert f"{number.name}: finishing the step and saving" in said and "Traceback" not in said
        found = re.search(
            r"stopped after step (\d+) of 100000, which is saved; the same command goes on from there", said
        )
        assert found, said
        saved.append(int(found[1]))
        assert checkpoint.steps(out / "checkpoints") == saved
    assert saved[0] < saved[1]


def test_a_run_says_that_it_is_saved_once_a_slow_disk_has_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def learning_rate(at: int, **fields: Any) -> float:
        if at == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original_rate(at, **fields)

    def slow_save(*what: Any) -> None:
        time.sleep(0.2)
        original_save(*what)

    def say_saved(step: int, steps: int) -> None:
        on_disk.append(checkpoint.steps(folder))
        original_say(step, steps)

    original_rate, original_save, original_say = loop.learning_rate, torch.save, checkpoint.say_saved
    monkeypatch.setattr(loop, "learning_rate", learning_rate)
    monkeypatch.setattr(torch, "save", slow_save)
    monkeypatch.setattr(checkpoint, "say_saved", say_saved)
    folder, on_disk = tmp_path / "run" / "checkpoints", []
    caplog.set_level("INFO", "stablerep.train")
    with pytest.raises(Stopped) as stop:
        train(config_for(shards, tmp_path / "run"))
    assert "stopped after step 3 of 6, which is saved" in caplog.text
    assert stop.value.step == 3 and on_disk == [[2, 3]]
    state = checkpoint.load_newest(folder, torch.device("cpu"))
    assert state is not None and state["step"] == 3


def stop_on_rank_1(data: Path, out: Path) -> tuple[int, int]:
    """The code and the step that this rank leaves with; a scheduler asks rank 1 alone, in the middle of step 2."""
    original = loop.learning_rate

    def learning_rate(at: int, **fields: Any) -> float:
        if at == 2 and loop.distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(at, **fields)

    loop.learning_rate = learning_rate
    with pytest.raises(Stopped) as stop:
        train(config_for(data, out, arch="test_vit", steps=1000, checkpoint_every=1000))
    assert checkpoint.steps(out / "checkpoints") == [stop.value.step]
    return stop.value.code, stop.value.step  # type: ignore[return-value]


def test_ranks_agree_on_the_step_though_one_was_asked(
    shards: Path, tmp_path: Path, run_ranks: Callable[..., list[Any]]
) -> None:
    assert run_ranks(2, stop_on_rank_1, shards, tmp_path / "run") == [
        (0, 4),
        (0, 4),
    ]  # 3 steps done, known a step later


def test_a_second_press_stops_at_once_but_torchruns_echo_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with listening() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.agreed_on() == signal.SIGINT
        monkeypatch.setattr(stopping, "ONE_PRESS_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert StopRequest().agreed_on() == 0
