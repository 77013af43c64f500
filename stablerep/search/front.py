"""What the trials say together: which are worth their cost, and how well the proxy foretells the score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata  # type: ignore[import-untyped]

DRAWS = 2000
FEWEST_FOR_RANKS = 4


def pareto(scores: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Which of N points no other beats: none scores at least as high and costs at most as much, one of both better.

    By rising cost. Equal points are all in it.
    """
    order = sorted(range(len(scores)), key=lambda i: (costs[i], -scores[i]))
    front: list[int] = []
    best, best_cost = -math.inf, math.nan
    for i in order:
        if scores[i] > best or (scores[i] == best and costs[i] == best_cost):
            front.append(i)
            best, best_cost = scores[i], costs[i]
    return front


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation, ties given their mean rank; nan where one side is constant."""
    return _correlation(np.asarray(x, float)[None], np.asarray(y, float)[None])[0]


def spearman_ci95(x: Sequence[float], y: Sequence[float], seed: int) -> float:
    """Half the width of the middle 95 % over draws of the pairs with replacement; draws that are constant count not.

    nan where fewer than half of the draws have a correlation.
    """
    drawn = np.random.default_rng(seed).integers(len(x), size=(DRAWS, len(x)))
    correlations = _correlation(np.asarray(x, float)[drawn], np.asarray(y, float)[drawn])
    known = correlations[np.isfinite(correlations)]
    if len(known) < DRAWS / 2:
        return math.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(high - low) / 2


def rank_correlation(
    proxies: Sequence[float], measured: Sequence[float], seed: int
) -> tuple[float | None, float | None]:
    """Spearman's correlation of what a proxy says with what was measured, and its 95 % interval; None of too few."""
    if len(proxies) < FEWEST_FOR_RANKS:
        return None, None
    values = spearman(proxies, measured), spearman_ci95(proxies, measured, seed)
    correlation, interval = (None if math.isnan(value) else round(float(value), 4) for value in values)
    return correlation, interval


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:  # [B, N] -> [B]
    x, y = (rankdata(each, axis=1) - (each.shape[1] + 1) / 2 for each in (x, y))
    scale = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.divide((x * y).sum(1), scale, out=np.full(len(x), math.nan), where=scale > 0)
