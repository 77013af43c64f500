"""A run's numbers: gathered on the device, fetched in one go."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from stablerep import distributed
from stablerep.config import UserError
from stablerep.train.config import TrainConfig
from stablerep.train.features import LEAST_SPREAD, NAMES, HeadRows, describe
from stablerep.train.flops import flops_of, peak_flops
from stablerep.train.optimiser import Update

Batch = TypeVar("Batch")

log = logging.getLogger("stablerep.train")


class Metrics:
    """Means over the steps since the last drain: loss, gradient norm, rate, and the share of time spent on data.

    At a drain also what the rows of its step look like (train/features.py, of each rank's own rows), and the share of
    the device's peak where that is known and the run is in bfloat16 (train/flops.py).
    """

    def __init__(
        self,
        device: torch.device,
        images_per_step: int,
        head: HeadRows | None = None,
        peak_images_per_second: float | None = None,  # of all ranks
    ) -> None:
        self._images_per_step, self._head, self._peak = images_per_step, head, peak_images_per_second
        self._collapsed = False
        self._sums = torch.zeros(3, device=device)  # loss, gradient norm, both of finite steps; skipped steps
        self._restart()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with a note of how long each was waited for; the clock starts with the first."""
        self._restart()
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is no training's."""
        start = time.perf_counter()
        yield
        self._began += time.perf_counter() - start

    def add(self, loss: Tensor, update: Update) -> None:
        """Add one step; stays on the device."""
        values = torch.stack([loss.detach().float(), update.gradient_norm.float()])
        self._sums[:2] += torch.where(update.skipped > 0, 0.0, values)
        self._sums[2] += update.skipped
        self._steps += 1

    def drain(self, labels: Tensor | None = None) -> dict[str, float]:  # [B] int64, of the last step
        """The means, and start anew. Waits for the device."""
        rows = self._head.rows if self._head else None  # those of small crops come behind
        described = describe(rows[: len(labels)], labels) if rows is not None and labels is not None else self._sums[:0]
        fetched = distributed.mean_over_ranks(torch.cat([self._sums, described])).tolist()
        loss, norm, skipped = fetched[:3]
        seconds = time.perf_counter() - self._began
        counted = self._steps - skipped
        rate = self._steps * self._images_per_step / seconds
        result = {
            "loss": loss / counted if counted else float("nan"),
            "gradient_norm": norm / counted if counted else float("nan"),
            "skipped_updates": skipped,
            "images_per_second": rate,
            "data_wait_share": self._waited / seconds,
            **dict(zip(NAMES, fetched[3:], strict=False)),
        }
        if self._peak:
            result["mfu"] = rate / self._peak
        self._sums.zero_()
        self._warn_of_collapse(result)
        self._restart()
        return result

    def _warn_of_collapse(self, means: Mapping[str, float]) -> None:
        """Say once when it begins, and once when it is over."""
        spread = means.get("feature_spread", 1.0)
        collapsed = spread < LEAST_SPREAD
        if collapsed != self._collapsed and distributed.rank() == 0 and not math.isnan(spread):
            rank = f"effective rank {means['effective_rank']:.1f}"
            if collapsed:
                log.warning(
                    "the features collapse: all pictures come to lie in one place (feature spread %.3f of 1, %s); "
                    "lower --base-lr, lengthen --warmup, or look whether --data holds different pictures", spread, rank
                )  # fmt: skip
            else:
                log.warning("the features spread again (feature spread %.3f of 1, %s)", spread, rank)
        self._collapsed = collapsed

    def _restart(self) -> None:
        self._steps, self._waited, self._began = 0, 0.0, time.perf_counter()


def metrics_of(config: TrainConfig, model: nn.Module, device: torch.device) -> Metrics:
    """Those of a run. model: an objective with encoder and head, before it is spread over ranks."""
    head = getattr(model, "head", None)
    peak = peak_flops(device) if config.precision != "fp32" else None
    if peak:
        peak *= distributed.world_size() / flops_of(model.get_submodule("encoder"), head, config.image_size)
    return Metrics(device, config.batch_size, HeadRows(head) if head is not None else None, peak)


def progress_note(means: Mapping[str, float]) -> str:
    """The text beside the progress bar."""
    note = f"loss {means['loss']:.3f}, data wait {means['data_wait_share']:.1%}"
    return note + (f", paint share {means['paint_share']:.1%}" if "paint_share" in means else "")


def refuse_divergence(means: Mapping[str, float], step: int, config: TrainConfig) -> None:
    """Raise a UserError if no step since the last drain was finite."""
    if math.isnan(means["loss"]):
        raise UserError(
            f"no gradient was finite in the {config.log_every} steps before step {step}; lower --base-lr "
            f"{config.base_lr:g}, raise --temperature {config.temperature:g} or try --precision fp32, in another --out"
        )
