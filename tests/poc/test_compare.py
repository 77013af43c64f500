"""Intervals and differences against scipy's t test and against what drawing seeds and photos again gives."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stablerep.poc.compare import Scores, difference, mean_of, verdict

MANY = 10**9  # test photos whose draw does not matter


def test_of_many_photos_it_is_the_paired_t_test_over_seeds() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(70, 1, 6), random.normal(69, 1, 6)
    found = difference(Scores(tuple(a), MANY), Scores(tuple(b), MANY))
    oracle = stats.ttest_rel(a, b)
    interval = oracle.confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(a - b))
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-3)
    assert found.ci95 == pytest.approx((interval.high - interval.low) / 2, rel=1e-3)


def test_of_one_seed_it_is_the_paired_t_test_over_photos() -> None:
    random = np.random.default_rng(1)
    right = random.random((2, 1, 400)) < np.array([0.8, 0.7])[:, None, None]
    a, b = (Scores((100 * float(each.mean()),), 400, each) for each in right)
    oracle = stats.ttest_rel(100.0 * right[0, 0], 100.0 * right[1, 0])
    found = difference(a, b)
    assert (found.mean, found.p) == pytest.approx((100 * (right[0].mean() - right[1].mean()), oracle.pvalue))


@pytest.mark.parametrize("paired", [True, False])
def test_the_interval_holds_the_truth_as_often_as_it_says(paired: bool) -> None:
    """Photos of their own difficulty, seeds of their own luck, both arms asked the same ones."""
    random = np.random.default_rng(2)
    seeds, photos, gap, inside, widths = 5, 200, 4.0, 0, []
    trials = 400
    for _ in range(trials):
        difficulty = random.uniform(0.3, 0.9, photos)
        right = []
        for shift in (gap, 0.0):
            luck = random.normal(shift, 2, (seeds, 1)) / 100
            right.append(random.random((seeds, photos)) < difficulty + luck)
        scores = [Scores(tuple(100 * each.mean(1)), photos, each if paired else None) for each in right]
        found = difference(*scores)
        inside += abs(found.mean - gap) <= found.ci95
        widths.append(found.ci95)
    assert 0.92 <= inside / trials <= (0.985 if paired else 1.0)
    assert np.mean(widths) < (7 if paired else 12)


def test_more_photos_and_more_seeds_say_more() -> None:
    few = mean_of(Scores((70.0, 71.0, 69.0), 50))
    assert mean_of(Scores((70.0, 71.0, 69.0), 5000)).ci95 < few.ci95
    assert mean_of(Scores((70.0, 71.0, 69.0, 70.0, 71.0, 69.0), 50)).ci95 < few.ci95
    one = mean_of(Scores((70.0,), 100))
    assert one.ci95 == pytest.approx(1.96 * 100 * np.sqrt(0.7 * 0.3 / 100), rel=0.05)


def test_all_right_is_not_known_to_be_100_percent() -> None:
    assert 3 < mean_of(Scores((100.0, 100.0), 27)).ci95 < 20


def test_equal_arms_are_undecided_and_far_apart_ones_are_not() -> None:
    a, b = Scores((70.0, 71.0, 70.5), 1000), Scores((60.0, 61.0, 60.2), 1000)
    assert verdict(difference(a, a)) == "undecided"
    assert (verdict(difference(a, b)), verdict(difference(b, a))) == ("better", "worse")
    everywhere = Scores((50.0, 50.0), 4, np.array([[1, 0, 1, 0], [1, 0, 1, 0]], bool))
    assert difference(everywhere, everywhere).p == 1.0


def test_other_photos_or_seeds_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same seeds on the same photos"):
        difference(Scores((70.0,), 100), Scores((70.0,), 101))
