"""Logistic regression against scikit-learn, and what is made of it: agreement with a class, the domain gap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from stablerep.evaluate.quality.agreement import class_agreement
from stablerep.evaluate.quality.classifier import draw_folds, fit, held_out_scores
from stablerep.evaluate.quality.domain_gap import domain_gap
from tests.evaluate.conftest import Problem
from tests.evaluate.quality.conftest import Sides


def by_sklearn(x: torch.Tensor, y: torch.Tensor, c: float) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(x.double())
    return scaler, LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(scaler.transform(x.double()), y)


@pytest.mark.parametrize(("classes", "c"), [(10, 0.1), (10, 0.001), (2, 0.1)])
def test_fit_is_that_of_scikit_learn(problem: Problem, classes: int, c: float) -> None:
    x, y = problem.train_x, problem.train_y % classes
    scaler, theirs = by_sklearn(x, y, 2 * c if classes == 2 else c)
    expected = theirs.predict_proba(scaler.transform(problem.test_x.double()))
    found = fit(x, y, classes, c).scores(problem.test_x).softmax(1).double()
    assert (found - torch.from_numpy(expected)).abs().max() < 0.02
    assert (found.argmax(1) == torch.from_numpy(expected).argmax(1)).double().mean() > 0.99


def test_held_out_scores_have_not_seen_the_row(problem: Problem) -> None:
    x, noise = problem.train_x[:200], torch.from_numpy(np.random.default_rng(0).integers(2, size=200))
    folds = draw_folds(np.arange(200), 5, 0)
    assert np.bincount(folds).tolist() == [40] * 5
    right = (held_out_scores(x, noise, 2, folds).argmax(1) == noise).double().mean()
    assert 0.35 < right < 0.65  # 256 features can learn any 160 labels by heart


def test_folds_keep_groups_together() -> None:
    groups = np.random.default_rng(1).integers(37, size=500)
    folds = draw_folds(groups, 5, 3)
    assert all(len(set(folds[groups == group])) == 1 for group in range(37))
    assert np.bincount(folds).min() > 60


def test_class_agreement_names_what_is_shown(problem: Problem) -> None:
    found = class_agreement(problem.train_x, problem.train_y, problem.test_x, problem.test_y, seed=0)
    assert found is not None and found.real_accuracy is not None
    assert found.mean() == pytest.approx(found.real_accuracy, abs=0.06)  # both are photos it has not seen
    shuffled = problem.test_y[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    wrong = class_agreement(problem.train_x, problem.train_y, problem.test_x, shuffled, seed=0)
    assert wrong is not None and wrong.mean() == pytest.approx(0.1, abs=0.04)  # type: ignore[comparison-overlap]


def test_class_agreement_of_what_asks_for_nothing(problem: Problem) -> None:
    asked = torch.where(torch.arange(1000) % 2 == 0, problem.test_y, -1)
    found = class_agreement(problem.train_x, problem.train_y, problem.test_x, asked, seed=0)
    assert found is not None and found.scores.isnan().sum() == 500
    assert found.mean(torch.arange(1, 1000, 2)) is None
    nothing = torch.full_like(asked, -1)
    assert class_agreement(problem.train_x, problem.train_y, problem.test_x, nothing, seed=0) is None
    assert class_agreement(problem.train_x, torch.zeros(1000).long(), problem.test_x, asked, seed=0) is None


def test_domain_gap_of_one_world_and_of_two(sides: Sides) -> None:
    one = domain_gap(sides.real[:350], sides.real[350:])
    assert abs(one.accuracy() - 0.5) < 2 * one.ci95() < 0.1  # type: ignore[operator]
    two = domain_gap(sides.real, sides.synthetic + 3)
    assert two.accuracy() == 1.0 and 0 < two.ci95() < 0.01
    assert two.real.isnan().sum() == 250 and not two.synthetic.isnan().any()  # as many as there are synthetic ones


def test_domain_gap_names_what_gives_the_set_away(sides: Sides) -> None:
    synthetic = sides.real[:350].clone()
    synthetic[:50, 7] += 5  # the others are as real as photos are
    gap = domain_gap(sides.real[350:], synthetic)
    assert len(set(gap.most_synthetic(40)) & set(range(50))) >= 38
    assert not set(gap.most_real_like(100)) & set(range(50))


def test_pictures_of_a_prompt_do_not_give_each_other_away() -> None:
    """Six copies of each of 40 points from one world: parted over the folds, they are learned by heart."""
    generator = torch.Generator().manual_seed(5)
    real, points = torch.randn(240, 300, generator=generator), torch.randn(40, 300, generator=generator)
    synthetic, prompts = points.repeat_interleave(6, 0), np.arange(40).repeat(6)
    together, parted = domain_gap(real, synthetic, prompts).accuracy(), domain_gap(real, synthetic).accuracy()
    assert together is not None and parted is not None and parted > together + 0.15
    assert domain_gap(real, synthetic, np.zeros(240, np.int64)).accuracy() is not None
    with pytest.raises(ValueError, match="two pictures"):
        domain_gap(real[:1], synthetic)
