"""The probes together: what is chosen where, determinism, what cannot be probed; and the vote of the neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from stablerep.config import UserError
from stablerep.evaluate.probes import held_out, knn_top1, probe_features
from tests.evaluate.conftest import Problem


def test_numbers_are_those_of_good_probes_and_come_again(problem: Problem) -> None:
    found = probe_features(*astuple(problem), seed=0, epochs=30)
    assert found["linear_top1"] > 75 and found["knn_top1"] > 72
    assert found["few_shot_10"] is not None and 65 < found["few_shot_10"] < found["linear_top1"]
    assert found["few_shot_10_ci95"] is not None and 0 < found["few_shot_10_ci95"] < 4
    assert probe_features(*astuple(problem), seed=0, epochs=30) == found


def test_choices_never_see_the_test_labels(problem: Problem) -> None:
    shuffled = replace(problem, test_y=problem.test_y[torch.randperm(len(problem.test_y))])
    true, false = (probe_features(*astuple(p), seed=0, epochs=3) for p in (problem, shuffled))
    assert (true["linear_lr"], true["knn_k"]) == (false["linear_lr"], false["knn_k"])
    assert false["linear_top1"] < 20 < true["linear_top1"]


def test_held_out_photos_are_a_tenth_of_each_class() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [1, 2, 9, 100, 1000]))
    held = held_out(labels, seed=0)
    assert np.bincount(labels[held], minlength=5).tolist() == [0, 1, 1, 10, 100]
    assert (held != held_out(labels, seed=1)).any()


def test_few_shot_is_left_out_where_a_class_has_fewer_than_ten(problem: Problem) -> None:
    few = torch.cat([torch.nonzero(problem.train_y == label)[: 9 if label == 3 else 20, 0] for label in range(10)])
    found = probe_features(problem.train_x[few], problem.train_y[few], problem.test_x, problem.test_y, seed=0, epochs=3)
    assert found["few_shot_10"] is None and found["few_shot_10_ci95"] is None
    assert found["linear_top1"] > 50


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda p: replace(p, train_y=p.train_y * 0), UserError, "one class only"),
        (lambda p: replace(p, test_y=p.test_y + 1), UserError, "class number 10"),
        (lambda p: replace(p, train_x=p.train_x / 0), UserError, "not finite"),
        (lambda p: replace(p, test_x=p.test_x[:0], test_y=p.test_y[:0]), UserError, "no test photos"),
        (lambda p: replace(p, train_x=p.train_x[:2], train_y=torch.tensor([0, 1])), UserError, "one training photo"),
        (lambda p: replace(p, train_y=p.train_y[:-1]), ValueError, "one label a row"),
        (lambda p: replace(p, test_y=p.test_y[None]), ValueError, "one label a row"),
        (lambda p: replace(p, test_x=p.test_x[:, 1:]), ValueError, "must be"),
    ],
)
def test_what_cannot_be_probed(
    problem: Problem, spoil: Callable[[Problem], Problem], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        probe_features(*astuple(spoil(problem)), seed=0)


def vote(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp((1 - distance) / 0.07)


def test_neighbours_are_the_weighted_vote_of_scikit_learn(problem: Problem) -> None:
    p, neighbours = problem, (1, 10, 63, 200)
    # float64: a near-tie falls the same way
    ours = knn_top1(p.train_x.double(), p.train_y, p.test_x.double(), p.test_y, 10, neighbours)
    for k, found in zip(neighbours, ours.tolist(), strict=True):
        oracle = KNeighborsClassifier(k, weights=vote, metric="cosine", algorithm="brute")
        oracle.fit(p.train_x.double().numpy(), p.train_y.numpy())
        assert found == pytest.approx(100 * oracle.score(p.test_x.double().numpy(), p.test_y.numpy()), abs=1e-4)
    assert ours[1] > 70


def test_blocks_of_neighbours_change_nothing(problem: Problem) -> None:
    p = problem
    whole = knn_top1(p.train_x, p.train_y, p.test_x, p.test_y, 10)
    blocks = knn_top1(p.train_x, p.train_y, p.test_x, p.test_y, 10, block_elements=7 * len(p.train_x))
    np.testing.assert_allclose(blocks, whole, atol=0.11)  # BLAS may round a block of another height otherwise


def test_k_beyond_the_training_photos_means_all(problem: Problem) -> None:
    x, y = problem.train_x[:30].double(), problem.train_y[:30]
    few = knn_top1(x, y, problem.test_x.double(), problem.test_y, 10, (30, 200))
    assert few[0] == few[1]
