"""Two evaluations of the same test photos, photo by photo: which encoder is better, and how sure that is."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr  # type: ignore[import-untyped]  # the binomial's distribution, without scipy.stats

from stablerep.config import UserError
from stablerep.evaluate.scores import INTERVAL, RESAMPLES

PREDICTIONS, RESULTS = "predictions.npz", "results.json"
LEVEL = 0.05
TITLES = {"linear": "linear probe", "knn": "kNN", "logistic": "logistic regression", "zero-shot": "zero-shot"}


@dataclass(frozen=True)
class Comparison:
    """B less A over the same photos."""

    probe: str
    a: float  # percent
    b: float
    difference: float  # points, positive where B is better
    ci95: tuple[float, float]  # paired bootstrap over photos
    p: float  # McNemar's exact test, two-sided
    photos: int

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `undecided`, of B."""
        if self.p >= LEVEL or self.ci95[0] <= 0 <= self.ci95[1]:
            return "undecided"
        return "better" if self.difference > 0 else "worse"

    def __str__(self) -> str:
        half = (self.ci95[1] - self.ci95[0]) / 2
        said = {
            "better": "B is better than A",
            "worse": "A is better than B",
            "undecided": "A and B cannot be told apart",
        }
        difference = abs(self.difference) if self.verdict == "worse" else self.difference
        return (
            f"{TITLES.get(self.probe, self.probe)}: {said[self.verdict]}: {difference:+.1f} ± {half:.1f} points "
            f"(A {self.a:.1f}, B {self.b:.1f}, p = {self.p:.2g}, {self.photos:,} photos)"
        )


def compare_answers(
    right_a: NDArray[np.bool_], right_b: NDArray[np.bool_], probe: str = "linear", seed: int = 0
) -> Comparison:
    """Paired comparison of what A and B name right of the same photos.

    The bootstrap over photos draws how many each alone names right, which is all that the difference depends on.
    """
    count = len(right_a)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    shares = [only_a / count, only_b / count, (count - only_a - only_b) / count]
    drawn = np.random.default_rng(seed).multinomial(count, shares, RESAMPLES)
    low, high = np.percentile(100 * (drawn[:, 1] - drawn[:, 0]) / count, INTERVAL)
    fewer, either = min(only_a, only_b), only_a + only_b
    p = min(1.0, 2 * float(bdtr(fewer, either, 0.5))) if either else 1.0
    a, b = 100 * float(right_a.mean()), 100 * float(right_b.mean())
    return Comparison(probe, a, b, 100 * (only_b - only_a) / count, (float(low), float(high)), p, count)


def compare(a: Path, b: Path) -> list[Comparison]:
    """Compare two --out folders of stablerep-eval by each probe that both have.

    Raises:
        UserError: a folder without predictions, or of other test photos.
    """
    (about_a, of_a), (about_b, of_b) = _read(a), _read(b)
    if about_a["test_digest"] != about_b["test_digest"]:
        raise UserError(
            f"--compare {a} {b}: their test photos are not the same ({len(of_a['row']):,} of {about_a['data']}, "
            f"{len(of_b['row']):,} of {about_b['data']}); measure both with the same --data and --seed"
        )
    _, in_a, in_b = np.intersect1d(of_a["row"], of_b["row"], return_indices=True)
    truth = of_a["label"][in_a]
    probes = [name for name in of_a if name in of_b and f"{name}_confidence" in of_a]
    if not probes:
        raise UserError(f"--compare {a} {b}: they share no probe; measure both with the same --protocols")
    return [compare_answers(of_a[probe][in_a] == truth, of_b[probe][in_b] == truth, probe) for probe in probes]


def lines(a: Path, b: Path) -> list[str]:
    """What stablerep-eval --compare prints."""
    return [f"A = {a}", f"B = {b}", *map(str, compare(a, b))]


def _read(out: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        about = json.loads((out / RESULTS).read_text())
        with np.load(out / PREDICTIONS, allow_pickle=False) as held:
            return about, dict(held)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--compare {out} holds no {PREDICTIONS} beside a {RESULTS}; give the --out of two runs of stablerep-eval"
        ) from error
