"""What the numbers of several seeds and test photos are worth: means, differences, and how sure they are.

Two things vary: the seed of a training and which photos happen to be in the test. Both belong into an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]  # scipy.stats imports for a second

LEVEL = 0.95
MANY = 10**9  # degrees of freedom of a variance that is not estimated from a few values

Verdict = Literal["better", "worse", "undecided"]
Right = NDArray[np.bool_]  # [S, M] whether each of M test photos was named right, by each of S seeds


@dataclass(frozen=True)
class Scores:
    """One measure of one arm: percent of the test photos named right, a number a seed."""

    percent: tuple[float, ...]  # [S]
    test_photos: int  # M
    right: Right | None = None  # where predictions were kept


@dataclass(frozen=True)
class Estimate:
    mean: float
    ci95: float  # half width
    p: float  # of a mean of zero


def mean_of(scores: Scores) -> Estimate:
    if scores.right is not None:
        return _crossed(scores.right * 100.0)
    return _apart(scores.percent, _variance_of_photos(scores))


def difference(a: Scores, b: Scores) -> Estimate:
    """a - b in points. Seed by seed on the same photos; photo by photo too where predictions were kept of both.

    Without predictions the photos count as if each arm had been asked others: the interval is then too wide, as what is
    hard for one arm is mostly hard for the other.

    Raises:
        ValueError: other seeds or other test photos.
    """
    if len(a.percent) != len(b.percent) or a.test_photos != b.test_photos:
        raise ValueError("arms must be measured with the same seeds on the same photos")
    if a.right is not None and b.right is not None:
        return _crossed(a.right * 100.0 - b.right * 100.0)
    each = np.subtract(a.percent, b.percent)
    return _apart(each.tolist(), _variance_of_photos(a) + _variance_of_photos(b))


def verdict(estimate: Estimate) -> Verdict:
    if estimate.p >= 1 - LEVEL:
        return "undecided"
    return "better" if estimate.mean > 0 else "worse"


def _crossed(values: NDArray[np.floating]) -> Estimate:  # [S, M]
    """Mean over seeds and photos, both drawn at random (two-way random effects, Satterthwaite's degrees of freedom).

    The variances of the row means and of the column means each hold the residual's share once; one is taken off.
    """
    seeds, photos = values.shape
    rows, columns, mean = values.mean(1), values.mean(0), float(values.mean())
    of_photos = float(columns.var(ddof=1)) / photos if photos > 1 else 0.0
    if seeds == 1:
        return _estimate(mean, [(of_photos, photos - 1)])
    of_seeds = float(rows.var(ddof=1)) / seeds
    rest = values - rows[:, None] - columns + mean
    residual = float((rest**2).sum()) / ((seeds - 1) * max(photos - 1, 1)) / (seeds * photos)
    return _estimate(mean, [(of_seeds, seeds - 1), (of_photos, photos - 1)], counted_twice=residual)


def _apart(each: Sequence[float], of_photos: float) -> Estimate:
    values = np.asarray(each, np.float64)
    parts = [(of_photos, MANY)]
    if len(values) > 1:
        parts.append((float(values.var(ddof=1)) / len(values), len(values) - 1))
    return _estimate(float(values.mean()), parts)


def _variance_of_photos(scores: Scores) -> float:
    """Of a percentage, from having asked these photos and not others.

    Two right and two wrong answers are added (Agresti and Coull 1998): 27 of 27 right is not known to be 100 %.
    """
    photos = scores.test_photos
    share = (np.mean(scores.percent) / 100 * photos + 2) / (photos + 4)
    return float(100**2 * share * (1 - share) / (photos + 4))


def _estimate(mean: float, parts: Sequence[tuple[float, int]], counted_twice: float = 0.0) -> Estimate:
    """parts: components of the mean's variance with their degrees of freedom."""
    total = sum(part for part, _ in parts)
    variance = max(total - counted_twice, *(part for part, _ in parts), 0.0)  # no less than either alone
    if variance <= 0:
        return Estimate(mean, 0.0, 1.0 if mean == 0 else 0.0)
    freedom = total**2 / sum(part**2 / max(degrees, 1) for part, degrees in parts)
    error = float(np.sqrt(variance))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Estimate(mean, half, float(2 * stdtr(freedom, -abs(mean) / error)))
