"""Runs that are stopped, killed or asked for again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stablerep.adapt import loop
from stablerep.adapt.run import Stopped
from stablerep.config import UserError
from tests.adapt.runs import LORA, config_for, lines, run, stop_after, write_photos

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize("full", [False, True])
def test_a_stopped_run_goes_on_to_the_bit(full: bool, photos: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"steps": 5, "log_every": 3, "full": full, "flip": True, "crops": 2, "text_encoder": True}
    changes |= {"vae_steps": 3} if full else {"prior_weight": 0.5, "prior_prompt": "a bag", "prior_images": 3}
    file = "pipeline/unet/diffusion_pytorch_model.safetensors" if full else LORA
    straight = run(config_for(photos, tmp_path / "straight", **changes))
    config = config_for(photos, tmp_path / "halting", **changes)
    stops = 0
    while True:
        try:
            halting = run(config, listening=stop_after(1))
            break
        except Stopped as stopped:
            assert stopped.code == 0
            stops += 1
            assert stops < 20
    assert stops >= (3 if full else 2)
    expected, found = (load_file(tmp_path / name / file) for name in ("straight", "halting"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert lines(tmp_path / "straight") == lines(tmp_path / "halting")
    assert (straight.best_loss, straight.best_step) == (halting.best_loss, halting.best_step)


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(photos: Path, tmp_path: Path, monkeypatch) -> None:
    run(config_for(photos, tmp_path / "straight"))
    step = loop.Adaptation.step

    def die(self: loop.Adaptation, number: int) -> Any:
        if number == 3:
            raise RuntimeError("killed")
        return step(self, number)

    monkeypatch.setattr(loop.Adaptation, "step", die)
    with pytest.raises(RuntimeError, match="killed"):
        run(config_for(photos, tmp_path / "killed"))
    monkeypatch.undo()
    run(config_for(photos, tmp_path / "killed"))
    files = [(tmp_path / name / LORA).read_bytes() for name in ("straight", "killed")]
    assert files[0] == files[1]
    assert lines(tmp_path / "straight") == lines(tmp_path / "killed")


def test_a_finished_run_is_returned_and_another_is_refused(photos: Path, tmp_path: Path) -> None:
    first = run(config_for(photos, tmp_path / "run"))
    opened: list[str] = []
    again = run(config_for(photos, tmp_path / "run"), open_model=lambda model, *_: opened.append(model))
    assert again == first and not opened
    with pytest.raises(UserError, match=r"its --rank is 2, not 4; choose another --out"):
        run(config_for(photos, tmp_path / "run", rank=4))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    with pytest.raises(UserError, match=r"holds files that are no run of ours \(letter.txt"):
        run(config_for(photos, tmp_path / "mine"))


def test_a_run_that_goes_on_with_other_photos_is_refused(photos: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(photos, own)
    config = config_for(own, tmp_path / "run")
    with pytest.raises(Stopped):
        run(config, listening=stop_after(1))
    next(own.rglob("*.png")).unlink()
    with pytest.raises(UserError, match=r"--photos holds something else than when .* was begun; bring it back"):
        run(config)


def test_a_signal_to_the_command_saves_the_step_it_is_at(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--photos", str(photos), "--out", str(out), "--steps", "100000", "--log-every", "1", "--device", "cpu"]
    run = subprocess.Popen(
        [sys.executable, "-c", "from stablerep.cli import adapt; adapt()", *flags, "--sample-every", "0"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (out / "metrics.jsonl").exists() or len((out / "metrics.jsonl").read_text().splitlines()) < 3:
        assert run.poll() is None, run.stderr and run.stderr.read()
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 0 and "Traceback" not in said, said
    found = re.search(r"stopped after step (\d+) of 100000, which is saved; the same command goes on from there", said)
    assert found, said
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    assert saved["progress"]["step"] == int(found[1]) == lines(out)[-1]["step"]
