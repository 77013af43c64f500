"""A run's numbers: gathered on the device, fetched in one go."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from stablerep import distributed
from stablerep.config import UserError
from stablerep.train.config import TrainConfig
from stablerep.train.optimiser import Update

Batch = TypeVar("Batch")


class Metrics:
    """Means over the steps since the last drain: loss, gradient norm, rate, and the share of time spent on data."""

    def __init__(self, device: torch.device, images_per_step: int) -> None:
        self._images_per_step = images_per_step
        self._sums = torch.zeros(3, device=device)  # loss, gradient norm, both of finite steps; skipped steps
        self._restart()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with a note of how long each was waited for."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(self, loss: Tensor, update: Update) -> None:
        """Add one step; stays on the device."""
        values = torch.stack([loss.detach().float(), update.gradient_norm.float()])
        self._sums[:2] += torch.where(update.skipped > 0, 0.0, values)
        self._sums[2] += update.skipped
        self._steps += 1

    def drain(self) -> dict[str, float]:
        """The means, and start anew. Waits for the device."""
        loss, norm, skipped = distributed.mean_over_ranks(self._sums).tolist()
        seconds = time.perf_counter() - self._began
        counted = self._steps - skipped
        result = {
            "loss": loss / counted if counted else float("nan"),
            "gradient_norm": norm / counted if counted else float("nan"),
            "skipped_updates": skipped,
            "images_per_second": self._steps * self._images_per_step / seconds,
            "data_wait_share": self._waited / seconds,
        }
        self._sums.zero_()
        self._restart()
        return result

    def _restart(self) -> None:
        self._steps, self._waited, self._began = 0, 0.0, time.perf_counter()


def progress_note(means: Mapping[str, float]) -> str:
    """The text beside the progress bar."""
    note = f"loss {means['loss']:.3f}, data wait {means['data_wait_share']:.1%}"
    return note + (f", paint share {means['paint_share']:.1%}" if "paint_share" in means else "")


def refuse_divergence(means: Mapping[str, float], step: int, config: TrainConfig) -> None:
    """Raise a UserError if no step since the last drain was finite."""
    if math.isnan(means["loss"]):
        raise UserError(
            f"no gradient was finite in the {config.log_every} steps before step {step}; lower --base-lr "
            f"{config.base_lr:g} or raise --temperature {config.temperature:g}, or try --precision fp32"
        )
