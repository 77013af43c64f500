"""Accuracies, intervals, confusion and calibration against scikit-learn and scipy; two encoders compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

from stablerep.evaluate.compare import compare_answers
from stablerep.evaluate.scores import Answer, calibration_error, describe


def answers(seed: int = 0, photos: int = 2000, classes: int = 5) -> tuple[Answer, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.choice(classes, photos, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    scores = random.normal(size=(photos, classes)) + 2 * np.eye(classes)[truth]
    return Answer.of_scores(torch.from_numpy(scores)), truth


def test_numbers_are_those_of_scikit_learn() -> None:
    answer, truth = answers()
    names = tuple("abcde")
    found = describe(answer, torch.from_numpy(truth), names, seed=0)
    named = answer.named.numpy()
    assert found["confusion"] == confusion_matrix(truth, named).tolist()
    assert found["mean_class"] == pytest.approx(100 * balanced_accuracy_score(truth, named))
    precision, recall, _, sizes = precision_recall_fscore_support(truth, named)
    for row, each in enumerate(found["per_class"]):
        assert (each["class"], each["photos"]) == (names[row], sizes[row])
        assert each["recall"] == pytest.approx(100 * recall[row])
        assert each["precision"] == pytest.approx(100 * precision[row])
        others = np.bincount(named[(truth == row) & (named != row)], minlength=5)
        assert others[names.index(each["taken_for"])] == others.max()


def test_interval_is_the_bootstrap_over_photos() -> None:
    answer, truth = answers(photos=400)
    right = (answer.named.numpy() == truth).astype(float)
    found = describe(answer, torch.from_numpy(truth), tuple("abcde"), seed=0)
    oracle = stats.bootstrap((right,), np.mean, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert found["top1_ci95"] == pytest.approx((100 * oracle.low, 100 * oracle.high), abs=0.5)
    low, high = found["mean_class_ci95"]
    assert low < found["mean_class"] < high and high - low > np.subtract(*found["top1_ci95"][::-1])  # small classes


def test_confidence_that_is_right_is_calibrated() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.2, 1, 200_000).astype(np.float32)
    assert calibration_error(confidence, random.random(200_000) < confidence) < 0.5
    assert calibration_error(confidence, random.random(200_000) < confidence - 0.2) == pytest.approx(20, abs=0.5)
    assert calibration_error(np.ones(4, np.float32), np.array([True, True, True, False])) == pytest.approx(25)


def test_a_class_without_test_photos_has_no_recall() -> None:
    found = describe(Answer(torch.tensor([0, 1, 0]), torch.ones(3)), torch.tensor([0, 1, 1]), ("a", "b", "c"), seed=0)
    assert found["per_class"][2] == {"class": "c", "photos": 0, "recall": None, "precision": None, "taken_for": None}
    assert found["mean_class"] == 75.0


def test_comparison_is_mcnemar_and_the_paired_bootstrap() -> None:
    random = np.random.default_rng(0)
    easy = random.random(1000)
    a, b = easy < 0.80 + 0.1 * random.normal(size=1000), easy < 0.84 + 0.1 * random.normal(size=1000)
    found = compare_answers(a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    assert found.p == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    assert found.difference == pytest.approx(100 * (b.mean() - a.mean()))
    draws = [random.integers(0, 1000, 1000) for _ in range(4000)]
    oracle = np.percentile([100 * (b[rows].mean() - a[rows].mean()) for rows in draws], (2.5, 97.5))
    assert found.ci95 == pytest.approx(oracle, abs=0.3)
    assert str(found).startswith(f"linear probe: B is better than A: +{found.difference:.1f} ± ")
    assert compare_answers(b, a).verdict == "worse" and "A is better than B: +" in str(compare_answers(b, a))
    assert compare_answers(a, a).verdict == "undecided" and compare_answers(a, a).p == 1
