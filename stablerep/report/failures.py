"""Where an encoder of synthetic pictures fails: the classes in which it is furthest behind."""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stablerep.report.evidence import Evidence
from stablerep.report.words.answer import verdict_of

SYNTHETIC = ("synthetic", "hybrid", "other")  # whose failures are asked for, the first that was measured
RIVALS = ("real", "supervised", "pretrained")  # to set it beside
Z95 = 1.959964


@dataclass(frozen=True)
class ClassResult:
    """Accuracy of one class over the seeds, in percent."""

    name: str
    photos: int
    accuracy: float
    low: float  # Wilson's 95 % interval over the test photos
    high: float
    rival: float | None
    rival_low: float | None
    rival_high: float | None
    taken_for: str | None  # the class that most of its errors are called

    @property
    def behind(self) -> float:
        """Points behind the rival; without one, behind 100."""
        return (100.0 if self.rival is None else self.rival) - self.accuracy


@dataclass(frozen=True)
class Failures:
    arm: str
    rival: str | None
    classes: Sequence[ClassResult]  # the furthest behind first


def failures_of(evidence: Evidence) -> Failures | None:
    """None where no results.json has accuracy by class."""
    arm = _first(evidence, SYNTHETIC)
    if arm is None:
        return None
    rival = _first(evidence, RIVALS)
    ours, theirs = _by_class(evidence.measured[arm]), _by_class(evidence.measured[rival]) if rival else {}
    confused = _taken_for(evidence.measured[arm])
    rows = []
    for name, (accuracy, photos) in ours.items():
        low, high = wilson(accuracy, photos)
        other = theirs.get(name)
        theirs_low, theirs_high = wilson(*other) if other else (None, None)
        of_rival = {"rival": other[0] if other else None, "rival_low": theirs_low, "rival_high": theirs_high}
        rows.append(ClassResult(name, photos, accuracy, low, high, taken_for=confused.get(name), **of_rival))
    return Failures(arm, rival, sorted(rows, key=lambda row: -row.behind))


def wilson(accuracy: float, photos: int) -> tuple[float, float]:
    """The 95 % interval of a share in percent, after Wilson (1927): within 0 to 100, and honest near both."""
    if not photos:
        return 0.0, 100.0
    share = accuracy / 100
    middle = share + Z95**2 / (2 * photos)
    half = Z95 * math.sqrt(share * (1 - share) / photos + Z95**2 / (4 * photos**2))
    scale = 1 + Z95**2 / photos
    return max(0.0, 100 * (middle - half) / scale), min(100.0, 100 * (middle + half) / scale)


def photos_by_class(split: Path, name: str) -> dict[str, list[Path]]:
    """Of split.csv the photos of one split (train, validation, test) by label; paths are from its folder."""
    photos: dict[str, list[Path]] = defaultdict(list)
    if split.is_file():
        with split.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row.get("split") == name and row.get("label"):
                    photos[row["label"]].append(split.parent / row["path"])
    return dict(photos)


def _first(evidence: Evidence, kinds: Sequence[str]) -> str | None:
    """The arm of the first of these kinds that has accuracy by class; that of the recommendation goes first."""
    verdict = verdict_of(evidence.poc)
    named = [arm["name"] for arm in (verdict.first, verdict.second) if arm]
    arms = sorted(evidence.poc["arms"], key=lambda arm: arm["name"] not in named)
    for kind in kinds:
        for arm in arms:
            if arm["kind"] == kind and any(map(_rows, evidence.measured.get(arm["name"], ()))):
                return arm["name"]
    return None


def _linear(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """What results.json says of the linear probe: its own part of `probes`, or all of it."""
    return (results.get("probes") or {}).get("linear") or results


def _rows(results: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """Class, percent right, test photos; without classes that have none."""
    rows = _linear(results).get("per_class") or ()
    found = [(row["class"], row.get("accuracy", row.get("recall")), int(row["photos"])) for row in rows]
    return [(name, right, photos) for name, right, photos in found if right is not None]


def _by_class(seeds: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """Mean accuracy over the seeds, and test photos, of each class."""
    right: dict[str, list[float]] = defaultdict(list)
    photos: dict[str, int] = {}
    for results in seeds:
        for name, accuracy, count in _rows(results):
            right[name].append(accuracy)
            photos[name] = count
    return {name: (sum(each) / len(each), photos[name]) for name, each in right.items()}


def _taken_for(seeds: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of each class, what most of its wrong photos were taken for. confusion: rows are true, columns are answers."""
    wrong: dict[str, Counter[str]] = defaultdict(Counter)
    for results in seeds:
        linear = _linear(results)
        names = [row["class"] for row in linear.get("per_class") or ()]
        for true, row in zip(names, linear.get("confusion") or (), strict=False):
            for answered, count in zip(names, row, strict=True):
                if answered != true and count:
                    wrong[true][answered] += count
    return {name: counts.most_common(1)[0][0] for name, counts in wrong.items()}
