"""An estimate that comes true, and touches nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stablerep import cli
from stablerep.config import UserError
from stablerep.train.dry_run import estimate
from stablerep.train.loop import train
from tests.data.pictures import write_shards
from tests.train.test_loop import config_for


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", prompts=10, per_prompt=4)


def test_the_estimate_comes_true(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = config_for(shards, out, steps=0, epochs=6.0, dry_run=True, usd_per_hour=3.6)
    estimated = estimate(config)
    assert not out.exists()
    assert (estimated.pictures, estimated.steps, estimated.steps_done) == (40, 15, 0)  # 4 prompts a step of 10
    assert estimated.hours == pytest.approx(15 * estimated.step_seconds / 3600)
    assert f"${estimated.hours * 3.6:,.2f} at $3.60 an hour" in str(estimated)
    assert "steps      15 of 12 pictures\nepochs     6: 180 views of pictures are shown" in str(estimated)

    config = replace(config, dry_run=False, usd_per_hour=None)
    train(config)
    size = sum(path.stat().st_size for path in (out / "checkpoints").iterdir())
    assert size == pytest.approx(estimated.checkpoint_bytes, rel=0.25)  # names and headers weigh in a tiny model


def test_a_run_that_is_there_is_counted_and_left_alone(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config_for(shards, out))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    estimated = estimate(config_for(shards, out, dry_run=True))
    assert (estimated.steps, estimated.steps_done, estimated.hours) == (6, 6, 0.0)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="its --seed is 0, not 1"):
        estimate(config_for(shards, out, dry_run=True, seed=1))


def test_as_a_user_reads_it(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--arch test_resnet --image-size 32 --batch-size 12 --views-per-prompt 3 --head-hidden 16 --device cpu"
    argv = ["--data", str(shards), "--out", str(tmp_path / "run"), *flags.split()]
    cli.train([*argv, "--dry-run", "--usd-per-hour", "2.5"])
    text = capsys.readouterr().out
    names = [line.split()[0] for line in text.splitlines()]
    assert names == ["pictures", "steps", "epochs", "weights", "memory", "step", "hours", "cost"]
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        cli.train([*argv, "--usd-per-hour", "2.5"])
    assert "--usd-per-hour 2.5 must be a price, and goes with --dry-run" in capsys.readouterr().err
