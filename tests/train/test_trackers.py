"""Weights & Biases and MLflow, offline, where they are installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from stablerep.config import UserError
from stablerep.train.config import TrainConfig
from stablerep.train.loop import train
from stablerep.train.trackers import NO_TELEMETRY, check_installed
from tests.data.pictures import write_shards
from tests.train.test_loop import config_for, lines


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", prompts=10, per_prompt=4)


def test_mlflow_keeps_the_lines_of_a_run_and_goes_on_with_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = tmp_path / "run"
    train(config_for(shards, out, track="mlflow"))
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("stablerep").experiment_id])
    assert run.info.run_name == "run" and run.data.params["arch"] == "test_resnet"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(line["step"], line["loss"]) for line in lines(out)]
    assert run.info.status == "FINISHED"
    for path in (out / "checkpoints").glob("*6.pt"):
        path.unlink()
    (out / "exported" / "config.json").unlink()
    (out / "exported" / "model.safetensors").unlink()
    (out / "exported").rmdir()
    train(config_for(shards, out, track="mlflow"))
    assert len(client.search_runs([run.info.experiment_id])) == 1  # the same run goes on


def test_wandb_offline_leaves_a_run_in_the_folder(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    train(config_for(shards, out, track="wandb"))
    (kept,) = (out / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"negative_similarity" in kept.read_bytes()


def test_what_is_not_installed_is_refused_before_the_folder(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"--track wandb needs the library .*pip install 'stablerep\[wandb\]'"):
        train(config_for(shards, tmp_path / "run", track="wandb"))
    assert not (tmp_path / "run").exists()
    assert all(os.environ[variable] == value for variable, value in NO_TELEMETRY.items())


@pytest.mark.parametrize(("track", "match"), [("wanbd", "--track 'wanbd' is unknown; did you mean wandb")])
def test_names_are_checked(track: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        TrainConfig(data=("a",), out=Path("b"), track=track)
    assert check_installed(TrainConfig(data=("a",), out=Path("b"))) is None
