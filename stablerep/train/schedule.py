"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int) -> float:
    """Linear from peak / warmup_steps to peak, then a half cosine to 0 after the last step."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
