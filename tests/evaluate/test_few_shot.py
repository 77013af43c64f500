"""The few-shot classifier against scikit-learn, its draws and its interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from stablerep.data.labelled import rank_in_class
from stablerep.evaluate import few_shot
from tests.evaluate.conftest import Problem


@pytest.mark.parametrize(("rows", "columns"), [(100, 256), (400, 63)])  # fewer rows than columns, and more
@pytest.mark.parametrize("c", [0.01, 0.1, 10.0])
def test_is_the_logistic_regression_of_scikit_learn(problem: Problem, rows: int, columns: int, c: float) -> None:
    x = StandardScaler().fit_transform(problem.train_x[:rows, 50 : 50 + columns].double())
    y = problem.train_y[:rows]
    weight, bias = few_shot.logistic_regression(torch.from_numpy(x), y, 10, c)
    oracle = LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(weight.T, oracle.coef_, atol=1e-4)
    np.testing.assert_allclose(bias - bias.mean(), oracle.intercept_ - oracle.intercept_.mean(), atol=1e-3)


def test_a_class_that_was_not_drawn_is_never_the_answer(problem: Problem) -> None:
    two = problem.train_y < 2
    weight, bias = few_shot.logistic_regression(problem.train_x[two], problem.train_y[two], 10, 0.1)
    assert set((problem.test_x @ weight + bias).argmax(1).tolist()) <= {0, 1}


def test_result_is_the_mean_over_draws_of_scikit_learn(problem: Problem) -> None:
    p = problem
    mean, interval = few_shot.top1(p.train_x, p.train_y, p.test_x, p.test_y, 10, seed=5)
    scaler = StandardScaler().fit(p.train_x)
    found = []
    for draw in range(10):
        chosen = rank_in_class(p.train_y.numpy(), 5, draw) < 10
        oracle = LogisticRegression(C=few_shot.C, tol=1e-9, max_iter=10_000)
        oracle.fit(scaler.transform(p.train_x[chosen]), p.train_y[chosen])
        found.append(100 * oracle.score(scaler.transform(p.test_x), p.test_y))
    low, high = stats.t.interval(0.95, 9, loc=np.mean(found), scale=stats.sem(found))
    assert mean == pytest.approx(np.mean(found), abs=0.1)
    assert interval == pytest.approx((high - low) / 2, abs=0.1)


def test_interval_is_student_t() -> None:
    values = [70.0, 71.5, 69.0, 72.0, 70.5, 68.0, 73.0, 71.0, 70.0, 69.5]
    low, high = stats.t.interval(0.95, 9, loc=np.mean(values), scale=stats.sem(values))
    mean, half = few_shot.mean_and_interval(values)
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-6)
    assert few_shot.mean_and_interval([50.0] * 10) == (50.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_each_draw_has_ten_of_each_class_in_any_order_of_rows(seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(7), [10, 11, 30, 500, 12, 63, 10]))
    draws = [rank_in_class(labels, seed, draw) < few_shot.PER_CLASS for draw in range(few_shot.DRAWS)]
    for chosen in draws:
        assert np.bincount(labels[chosen]).tolist() == [10] * 7
    assert len({chosen.tobytes() for chosen in draws}) == few_shot.DRAWS
