"""Numbers gathered on the device, fetched in one go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from stablerep import distributed

Item = TypeVar("Item")


class Metrics:
    """Means over the steps since the last drain: loss, gradient norm, rate, and the share of time spent on data."""

    def __init__(self, device: torch.device, images_per_step: int) -> None:
        self._images_per_step = images_per_step
        self._sums = torch.zeros(3, device=device)  # loss, gradient norm, both of finite steps; skipped steps
        self._restart()

    def timed(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Hand the batches on, and note how long each kept us waiting."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def add(self, loss: Tensor, gradient_norm: Tensor, skipped: Tensor) -> None:
        """Add one step; stays on the device."""
        values = torch.stack([loss.detach().float(), gradient_norm.float()])
        self._sums[:2] += torch.where(skipped > 0, 0.0, values)
        self._sums[2] += skipped
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
