"""The metrics of a run in Weights & Biases or MLflow, through their own libraries, where --track asks for it.

Where they send to is theirs to say: WANDB_MODE=offline, WANDB_PROJECT, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stablerep import atomic
from stablerep import config as configs
from stablerep.config import UserError
from stablerep.runlog import Tracker
from stablerep.train.config import TrainConfig

PROJECT = "stablerep"
RECORD = "trackers.json"  # the ids under which a run is known there: one that goes on is the same run
# What these libraries would tell their makers about the machine and its use.
NO_TELEMETRY = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def check_installed(config: TrainConfig) -> None:
    """Import what --track names, before any work.

    Raises:
        UserError: it is not installed.
    """
    for variable, value in NO_TELEMETRY.items():
        os.environ.setdefault(variable, value)
    for name in config.track:
        try:
            __import__(name)
        except ImportError as error:
            raise UserError(f"--track {name} needs the library ({error}); pip install 'stablerep[{name}]'") from error


def open_trackers(config: TrainConfig) -> list[Tracker]:
    """Those that --track names; a run that goes on keeps its ids.

    Raises:
        UserError: the service refuses.
    """
    out = Path(config.out)
    known: dict[str, str] = json.loads((out / RECORD).read_text()) if (out / RECORD).exists() else {}
    trackers: list[Tracker] = []
    for name in config.track:
        try:
            tracker = TRACKERS[name](config, known.get(name))
        except Exception as error:  # theirs are of many kinds; the run has not begun, so nothing is lost
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            mend = "WANDB_MODE=offline keeps it here" if name == "wandb" else "see MLFLOW_TRACKING_URI"
            raise UserError(f"--track {name} cannot be opened: {reason}; {mend}") from error
        known[name] = tracker.id
        trackers.append(tracker)
    if known:
        atomic.write(out / RECORD, json.dumps(known, indent=1) + "\n")
    return trackers


class WandbTracker:
    def __init__(self, config: TrainConfig, run_id: str | None) -> None:
        import wandb

        out = Path(config.out)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=out.name, dir=str(out), id=run_id,
            resume="allow" if run_id else None, config=configs.to_dict(config),
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        self.id: str = self._run.id

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    def __init__(self, config: TrainConfig, run_id: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        # A client, not mlflow's own idea of the one active run of a process.
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if run_id is None:
            experiment = self._client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self._client.create_experiment(name)
            run_id = self._client.create_run(number, run_name=Path(config.out).name).info.run_id
            fields = configs.to_dict(config)
            params = [Param(key, str(value)) for key, value in fields.items() if value is not None]
            self._client.log_batch(run_id, params=params)
        self.id: str = run_id

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(key, value, now, step) for key, value in scalars.items() if math.isfinite(value)]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self.id)


TRACKERS: dict[str, Any] = {"wandb": WandbTracker, "mlflow": MlflowTracker}
