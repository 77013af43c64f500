"""What an answer for each test photo says of a probe: accuracies with intervals, confusion, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RESAMPLES = 10_000
CALIBRATION_BINS = 15  # of equal width (Guo et al., arXiv 1706.04599)
INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class Answer:
    """The class that a probe names for each test photo, and how sure it is."""

    named: Tensor  # [M] int64
    confidence: Tensor  # [M] float32, 0 to 1

    @classmethod
    def of_scores(cls, scores: Tensor) -> Answer:  # [M, C] logits
        confidence, named = scores.softmax(-1).max(-1)
        return cls(named, confidence)


def describe(answer: Answer, labels: Tensor, class_names: Sequence[str], seed: int) -> dict[str, Any]:
    """Accuracy by photo and by class with 95 % bootstrap intervals over the photos, confusion, calibration; percent."""
    truth, named = labels.cpu().numpy(), answer.named.cpu().numpy()
    right = truth == named
    classes = len(class_names)
    table = confusion(truth, named, classes)
    sizes = table.sum(1)
    low, high = accuracy_interval(int(right.sum()), len(right), seed)
    mean_class, mean_class_interval = mean_class_accuracy(table, seed)
    return {
        "top1": 100 * float(right.mean()),
        "top1_ci95": [low, high],
        "mean_class": mean_class,
        "mean_class_ci95": mean_class_interval,
        "calibration_error": calibration_error(answer.confidence.cpu().numpy(), right),
        "confusion": table.tolist(),
        "per_class": [
            {
                "class": name,
                "photos": int(sizes[row]),
                "recall": 100 * float(table[row, row] / sizes[row]) if sizes[row] else None,
                "precision": 100 * float(table[row, row] / table[:, row].sum()) if table[:, row].any() else None,
                "taken_for": _taken_for(table[row], row, class_names),
            }
            for row, name in enumerate(class_names)
        ],
    }


def confusion(truth: NDArray[np.int64], named: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """[C, C]: photos of the row's class that were given the column's."""
    return np.bincount(truth * classes + named, minlength=classes**2).reshape(classes, classes)


def accuracy_interval(right: int, photos: int, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of an accuracy, percent. Drawn as what resampling photos gives: a binomial count."""
    drawn = np.random.default_rng(seed).binomial(photos, right / photos, RESAMPLES)
    low, high = np.percentile(100 * drawn / photos, INTERVAL)
    return float(low), float(high)


def mean_class_accuracy(table: NDArray[np.int64], seed: int) -> tuple[float, list[float]]:
    """The mean over classes of the share named right, and its 95 % bootstrap interval within classes; percent."""
    sizes = table.sum(1)
    shown = sizes > 0
    right, sizes = np.diag(table)[shown], sizes[shown]
    random = np.random.default_rng(seed)
    resamples = max(200, min(RESAMPLES, 10**7 // len(sizes)))
    drawn = random.binomial(sizes, right / sizes, (resamples, len(sizes))) / sizes
    low, high = np.percentile(100 * drawn.mean(1), INTERVAL)
    return 100 * float((right / sizes).mean()), [float(low), float(high)]


def calibration_error(confidence: NDArray[np.float32], right: NDArray[np.bool_], bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error, percent: how far confidence is from accuracy, in bins of confidence."""
    number = np.clip((confidence.astype(np.float64) * bins).astype(int), 0, bins - 1)
    gap = np.bincount(number, right.astype(float), bins) - np.bincount(number, confidence, bins)
    return 100 * float(np.abs(gap).sum() / len(right))


def _taken_for(row: NDArray[np.int64], own: int, class_names: Sequence[str]) -> str | None:
    others = row.copy()
    others[own] = 0
    return class_names[int(others.argmax())] if others.any() else None


def to_arrays(
    answers: dict[str, Answer], labels: Tensor, photos: int, left_out: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """What predictions.npz holds: row and label of each photo, and of each probe the classes named and the confidence.

    left_out: rows of those of `photos` test photos that could not be decoded.
    """
    rows = np.setdiff1d(np.arange(photos), left_out)
    arrays: dict[str, NDArray[Any]] = {"row": rows.astype(np.int32), "label": labels.cpu().numpy().astype(np.int32)}
    for probe, answer in answers.items():
        arrays[probe] = answer.named.cpu().numpy().astype(np.int32)
        arrays[f"{probe}_confidence"] = answer.confidence.float().cpu().numpy()
    return arrays
