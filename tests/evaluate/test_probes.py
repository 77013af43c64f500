"""The probes together: what is chosen where, determinism, what cannot be probed; and the vote of the neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from stablerep.config import UserError
from stablerep.data.labelled import fashion_mnist
from stablerep.evaluate.config import BATCH_NORMS
from stablerep.evaluate.features import Pixels, features_of
from stablerep.evaluate.knn import knn_top1
from stablerep.evaluate.probes import probe, probe_features
from stablerep.models import InputTransform
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


@pytest.mark.parametrize("photos", [1000, 3000])
def test_linear_probe_is_as_good_as_scikit_learn_with_cross_validation(photos: int) -> None:
    """Raw pixels of Fashion-MNIST at 14 x 14, where a rate chosen on 100 photos was points behind."""
    pixels = InputTransform(14, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    whole = features_of(Pixels(True), pixels, fashion_mnist("test"), device=torch.device("cpu"), show=False)
    ours, theirs, spread = [], [], []
    for seed in (0, 1):
        order = torch.randperm(10_000, generator=torch.Generator().manual_seed(seed))
        train, test = order[:photos], order[photos:]
        x, y, test_x, test_y = whole.x[train], whole.y[train], whole.x[test], whole.y[test]
        found = probe(x, y, test_x, test_y, ("linear",), seed=seed).numbers
        ours.append(found["linear_top1"])
        spread.append(max(found["linear_top1_seeds"]) - min(found["linear_top1_seeds"]))
        scale = StandardScaler().fit(x)
        oracle = LogisticRegressionCV(
            Cs=[1e-3, 1e-2, 1e-1, 1.0],
            cv=5,
            max_iter=200,
            tol=1e-3,
            scoring="accuracy",
            l1_ratios=(0,),
            use_legacy_attributes=False,
        )
        oracle.fit(scale.transform(x), y)
        theirs.append(100 * oracle.score(scale.transform(test_x), test_y))
    assert np.mean(ours) > np.mean(theirs) - 0.3
    assert max(spread) < 0.5


def test_batch_norm_is_chosen_on_the_folds(problem: Problem) -> None:
    uneven = replace(problem, train_x=problem.train_x * 1e-3, test_x=problem.test_x * 1e-3)  # no rate moves it
    found = {
        way: probe(*astuple(uneven), ("linear",), seed=0, epochs=10, batch_norm=way).numbers for way in BATCH_NORMS
    }
    assert found["choose"]["linear_batch_norm"] and not found["no"]["linear_batch_norm"]
    assert found["choose"]["linear_top1"] == found["yes"]["linear_top1"] > found["no"]["linear_top1"] + 10
    assert found["choose"]["knn_top1"] is None  # was not asked for


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
