"""Training on pictures that are painted meanwhile, with the embedded generator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import stablerep
from stablerep import cli
from stablerep.config import UserError
from stablerep.train import checkpoint, loop
from tests.data.pictures import write_folder

# Two prompts a step, each shown twice: one new prompt a step, painted in blocks of two.
GENERATE = "num_images_per_prompt: 3\nnum_inference_steps: 1\nscheduler: dpmsolver++\nbatch_size: 6\n"
TRAIN: dict[str, Any] = {
    "arch": "test_resnet", "image_size": 32, "batch_size": 6, "views_per_prompt": 3, "head_hidden": 16, "head_out": 8,
    "steps": 6, "checkpoint_every": 2, "log_every": 2, "base_lr": 0.02, "device": "cpu", "pool_prompts": 3,
    "pool_uses": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def gen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gen")
    (folder / "p.txt").write_text("a bag\na coat\na shirt\na dress\na sneaker\n")
    (folder / "gen.yaml").write_text(f"prompts: {folder / 'p.txt'}\n{GENERATE}")
    return folder / "gen.yaml"


@pytest.fixture(scope="module")
def whole(gen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    return stablerep.train(online=str(gen), out=tmp_path_factory.mktemp("runs") / "whole", **TRAIN).parent


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_says_what_painting_cost_and_what_was_painted(whole: Path) -> None:
    assert [line["painted"] for line in lines(whole)] == [6, 6, 0]  # blocks of 2 prompts, for steps 2 and 4
    assert [line["paint_share"] > 0 for line in lines(whole)] == [True, True, False]
    assert all(line["paint_share"] < 1 for line in lines(whole))
    assert "guidance_scale: 2.0" in (whole / "online.yaml").read_text()
    stablerep.load_encoder(whole)


class Interrupted(Exception):
    pass


def test_a_resumed_run_gives_the_same_bits(
    whole: Path, gen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.learning_rate

    def learning_rate(at: int, **fields: Any) -> float:
        if at == 5:
            raise Interrupted
        return original(at, **fields)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "learning_rate", learning_rate)
        stablerep.train(online=str(gen), out=tmp_path / "cut", **TRAIN)
    stablerep.train(online=str(gen), out=tmp_path / "cut", **TRAIN)
    ours, theirs = (
        checkpoint.load_newest(out / "checkpoints", torch.device("cpu")) for out in (tmp_path / "cut", whole)
    )
    assert ours is not None and theirs is not None and len(ours["model"]) > 10
    assert all(torch.equal(ours["model"][name], value) for name, value in theirs["model"].items())
    assert lines(tmp_path / "cut")[-1]["loss"] == lines(whole)[-1]["loss"]


def test_other_pictures_under_a_run_are_refused_by_what_differs(gen: Path, tmp_path: Path) -> None:
    own = tmp_path / "gen.yaml"
    own.write_text(gen.read_text())
    exported = stablerep.train(online=str(own), out=tmp_path / "run", **TRAIN | {"steps": 1})
    exported.rename(tmp_path / "elsewhere")  # as if it were not finished
    own.write_text(gen.read_text() + "guidance_scale: 5\n")
    with pytest.raises(UserError, match=r"its --online: guidance-scale is 2\.0, not 5\.0"):
        stablerep.train(online=str(own), out=tmp_path / "run", **TRAIN | {"steps": 1})


def test_mixed_with_photos(gen: Path, tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", 6)
    fields = TRAIN | {"batch_size": 12, "steps": 2}
    out = stablerep.train(data=(f"{photos}:1",), online=f"{gen}:3", out=tmp_path / "run", **fields).parent
    (line,) = lines(out)
    assert line["epoch"] == pytest.approx(2 * 4 / 11)


def test_the_command_refuses_in_one_line(gen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*argv: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.train([*argv, "--out", str(tmp_path / "out"), "--device", "cpu", "--batch-size", "12"])
        assert stop.value.code == 2
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return text.strip().splitlines()[-1]

    assert "--online none.yaml does not exist" in refused("--online", "none.yaml")
    assert "--data is missing" in refused("--steps", "1")
    assert "3 pictures a prompt, fewer than --views-per-prompt 6" in refused("--online", str(gen))
    assert "--online goes with --objective stablerep" in refused("--online", str(gen), "--objective", "simclr")
    assert "--online" in refused("--online", f"{gen}:0") and not (tmp_path / "out").exists()
