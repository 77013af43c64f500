"""What a search may spend, what it has spent, and whether another trial may begin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stablerep.config import UserError
from stablerep.search.config import SearchConfig

HOUR = 3600.0


@dataclass(frozen=True)
class Cost:
    """Of a trial: what it took, or for one that is at work what it may take."""

    images: int
    seconds: float


@dataclass(frozen=True)
class Budget:
    """Limits over all trials of all workers; infinite where none is given."""

    images: float
    seconds: float
    trials: float
    most_images: int  # of a trial, by the ranges
    usd_per_hour: float | None

    def allows(self, ended: Sequence[Cost], at_work: int) -> bool:
        """Whether one more trial fits.

        It and those at work are counted as the dearest there may be: pictures by the ranges, seconds by the dearest
        trial so far. So pictures are never overspent, and seconds only where a trial is dearer than all before it.
        """
        dearest = max((cost.seconds for cost in ended), default=0.0)
        return (
            len(ended) + at_work < self.trials
            and sum(cost.images for cost in ended) + (at_work + 1) * self.most_images <= self.images
            and (total := sum(cost.seconds for cost in ended)) + (at_work + 1) * dearest <= self.seconds
            and total < self.seconds
        )

    def left(self, ended: Sequence[Cost]) -> str:
        """`left: 340 pictures, 120 s, $0.40`; empty without a limit."""
        seconds = self.seconds - sum(cost.seconds for cost in ended)
        parts = []
        if self.images < math.inf:
            parts.append(f"{self.images - sum(cost.images for cost in ended):,.0f} pictures")
        if self.seconds < math.inf:
            parts.append(f"{max(seconds, 0):,.0f} s")
            parts += [f"${max(seconds, 0) * self.usd_per_hour / HOUR:,.2f}"] if self.usd_per_hour else []
        if self.trials < math.inf:
            left = int(self.trials) - len(ended)
            parts.append(f"{left:,} trial{'' if left == 1 else 's'}")
        return f"left: {', '.join(parts)}" if parts else ""

    def trials_of(self, cost: Cost) -> float:
        """How many trials of this cost the limits allow; inf where there are none."""
        limits = [self.trials, self.images / max(cost.images, 1), self.seconds / max(cost.seconds, 1e-9)]
        return limit if (limit := min(limits)) == math.inf else math.floor(limit)


def budget_of(config: SearchConfig, most_images: int) -> Budget:
    """The limits of a config; dollars are seconds at a price.

    Raises:
        UserError: fewer pictures than one trial may paint.
    """
    if config.budget_pictures is not None and config.budget_pictures < most_images:
        raise UserError(
            f"--budget-pictures {config.budget_pictures} is less than the {most_images} pictures that one trial may "
            "paint; raise it, or lower --num-images-per-prompt or the number of prompts"
        )
    seconds = [math.inf if config.budget_seconds is None else config.budget_seconds]
    if config.budget_usd is not None:
        assert config.usd_per_hour is not None
        seconds.append(config.budget_usd / config.usd_per_hour * HOUR)
    return Budget(
        images=math.inf if config.budget_pictures is None else config.budget_pictures,
        seconds=min(seconds),
        trials=math.inf if config.trials is None else config.trials,
        most_images=most_images,
        usd_per_hour=config.usd_per_hour,
    )
