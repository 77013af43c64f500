"""The encoder is measured while it is trained, and the best one is kept beside the last."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from stablerep import atomic, distributed
from stablerep.models import InputTransform, save_exported
from stablerep.train.config import TrainConfig

BEST, RECORD = "exported_best", "watch.json"

Probe = Callable[[nn.Module, InputTransform], float]  # percent; every rank calls it
OpenWatch = Callable[[torch.device], Probe]

log = logging.getLogger("stablerep.train")


class Watch:
    """kNN top-1 every few steps. Nothing it does changes what is trained."""

    def __init__(self, config: TrainConfig, probe: Probe, transform: InputTransform, initialized_from: str | None):
        self._config, self._probe = config, probe
        self._transform, self._initialized_from = transform, initialized_from
        self._out = Path(config.out)

    def look(self, step: int, encoder: nn.Module) -> dict[str, float]:
        """The metrics of this step; the encoder is kept where it is the best so far. Every rank calls this."""
        top1 = self._probe(encoder, self._transform)
        if distributed.rank() == 0:
            best = read_best(self._out)
            # A run that goes on from an earlier checkpoint meets its own best again, as good as it was.
            if best is None or top1 > best["knn_top1"] or step <= best["step"]:
                save_exported(encoder, self._config.arch, self._transform, self._out / BEST, self._initialized_from)
                atomic.write(self._out / RECORD, json.dumps({"step": step, "knn_top1": top1}) + "\n")
            log.info("step %s: kNN top-1 %.1f %% of --watch %s", f"{step:,}", top1, self._config.watch)
        return {"knn_top1": top1}


def read_best(out: Path) -> dict[str, float] | None:
    """Step and kNN top-1 of what lies in exported_best/; None where a run has not been watched."""
    path = Path(out) / RECORD
    return json.loads(path.read_text()) if path.exists() else None


def best_line(out: Path) -> list[str]:
    """What a user is told at the end."""
    best = read_best(out)
    return [f"best kNN top-1 {best['knn_top1']:.1f} % at step {best['step']:,}: {Path(out) / BEST}"] if best else []
