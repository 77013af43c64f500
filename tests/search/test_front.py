"""Pareto front and rank correlation, beside the plain definitions and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from stablerep.search.front import pareto, rank_correlation, spearman, spearman_ci95

points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(points)
def test_the_front_is_what_no_other_beats(values: list[tuple[int, int]]) -> None:
    scores, costs = [score for score, _ in values], [cost for _, cost in values]

    def beaten(i: int) -> bool:
        return any(
            scores[j] >= scores[i] and costs[j] <= costs[i] and (scores[j], costs[j]) != (scores[i], costs[i])
            for j in range(len(values))
        )

    front = pareto(scores, costs)
    assert sorted(front) == [i for i in range(len(values)) if not beaten(i)]
    assert [costs[i] for i in front] == sorted(costs[i] for i in front)


def test_rank_correlation_is_scipys() -> None:
    draw = np.random.default_rng(0)
    for size in (2, 3, 10, 50):
        x = draw.integers(0, 6, size).astype(float)
        y = x + draw.normal(0, 2, size).round()
        if len(set(x)) > 1 and len(set(y)) > 1:
            assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_the_interval_narrows_with_trials_and_covers() -> None:
    draw, covered = np.random.default_rng(1), 0
    widths = []
    for size in (10, 100):
        x = draw.normal(size=size)
        widths.append(spearman_ci95(x, x + draw.normal(size=size), seed=0))
    assert 0 < widths[1] < widths[0] / 2
    truth = spearman(x := draw.normal(size=100_000), x + draw.normal(size=100_000))
    for seed in range(40):
        x = draw.normal(size=40)
        y = x + draw.normal(size=40)
        covered += abs(spearman(x, y) - truth) <= spearman_ci95(x, y, seed)
    assert covered >= 32  # of 38 in the mean


def test_too_few_trials_have_no_correlation() -> None:
    assert rank_correlation([1, 2, 3], [1, 2, 3], 0) == (None, None)
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4], 0) == (None, None)
    correlation, interval = rank_correlation([1, 2, 3, 4, 5], [2, 4, 6, 8, 10], 0)
    assert correlation == 1 and interval == 0
