"""The neighbours' vote against scikit-learn and against a vote written out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from stablerep.evaluate import knn
from tests.evaluate.conftest import Problem


def vote(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp((1 - distance) / 0.07)


def test_is_the_weighted_vote_of_scikit_learn(problem: Problem) -> None:
    p, neighbours = problem, (1, 10, 63, 200)
    # float64: no near-tie can fall another way
    ours = knn.top1(p.train_x.double(), p.train_y, p.test_x.double(), p.test_y, 10, neighbours)
    for k, found in zip(neighbours, ours.tolist(), strict=True):
        oracle = KNeighborsClassifier(k, weights=vote, metric="cosine", algorithm="brute")
        oracle.fit(p.train_x.double().numpy(), p.train_y.numpy())
        assert found == pytest.approx(100 * oracle.score(p.test_x.double().numpy(), p.test_y.numpy()), abs=1e-4)
    assert ours[1] > 70


def test_blocks_change_nothing(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem
    whole = knn.top1(p.train_x, p.train_y, p.test_x, p.test_y, 10)
    monkeypatch.setattr(knn, "BLOCK_ELEMENTS", 7 * len(p.train_x))
    blocks = knn.top1(p.train_x, p.train_y, p.test_x, p.test_y, 10)
    np.testing.assert_allclose(blocks, whole, atol=0.11)  # BLAS may round a block of another height otherwise


def test_k_beyond_the_training_photos_means_all(problem: Problem) -> None:
    x, y = problem.train_x[:30].double(), problem.train_y[:30]
    few = knn.top1(x, y, problem.test_x.double(), problem.test_y, 10, (30, 200))
    assert few[0] == few[1]
