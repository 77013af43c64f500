"""The folds that settings are chosen on, and the rule of the choice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerep.evaluate.folds import Answers, draw_folds

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_folds_are_stratified_and_part_the_photos(sizes: list[int], seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    held = []
    for fold in draw_folds(labels, seed, CPU):
        kept = np.bincount(labels[fold.kept.numpy()], minlength=len(sizes))
        assert (kept > 0).all()  # every class can be learned in every fold
        assert sorted([*fold.kept.tolist(), *fold.held.tolist()]) == list(range(len(labels)))
        asked = np.bincount(labels[fold.held.numpy()], minlength=len(sizes))
        assert (asked <= np.ceil(np.array(sizes) / 5)).all()
        held.append(fold.held.numpy())
    times = np.bincount(np.concatenate(held), minlength=len(labels)) if held else np.zeros(len(labels))
    alone = np.array(sizes)[labels] == 1
    assert (times[alone] == 0).all() and len(set(times[~alone])) <= 1  # all the same number of times


@pytest.mark.parametrize(
    ("photos", "folds", "asked"),
    [(100, 25, 20), (1000, 10, 200), (3000, 5, 600), (10_000, 2, 2000), (100_000, 1, 10_000)],
)
def test_many_photos_need_few_folds(photos: int, folds: int, asked: int) -> None:
    drawn = draw_folds(np.arange(photos) % 10, 0, CPU)
    assert len(drawn) == folds and len(drawn[0].held) == asked


def test_a_lucky_setting_is_not_the_best_of_a_curve() -> None:
    truth = torch.arange(1000)[:, None] / 1000
    right = truth < torch.tensor([0.7, 0.71, 0.78, 0.8, 0.79, 0.7, 0.81, 0.6])
    answers = Answers(1000, 8, CPU)
    answers.add(torch.arange(1000), right)
    assert answers.best() == 6 and answers.best_of_curve() == 3
    np.testing.assert_allclose(answers.percent(), 100 * right.float().mean(0), rtol=1e-5)


def test_a_photo_asked_twice_counts_once() -> None:
    answers = Answers(3, 1, CPU)
    answers.add(torch.tensor([0, 1]), torch.tensor([[True], [True]]))
    answers.add(torch.tensor([1]), torch.tensor([[False]]))
    assert answers.percent() == [75.0]
