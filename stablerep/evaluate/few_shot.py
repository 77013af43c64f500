"""Few-shot: logistic regression on ten labelled photos of each class, or in episodes of few classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy.stats.t.ppf, without a second of imports
from torch import Tensor
from torch.nn import functional as F

from stablerep.config import UserError
from stablerep.data.labelled import rank_in_class
from stablerep.evaluate.logistic import logistic_regression
from stablerep.evaluate.standard import standardiser

PER_CLASS = 10
DRAWS = 10
C = 0.1  # within 0.2 points of the best of 1e-4..10 on pixels, untrained and trained features of Fashion-MNIST

EPISODES, TOGETHER = 600, 50  # as in the literature; solved at once
QUERIES = 15  # test photos of each class in an episode


def top1(
    train_x: Tensor,  # [N, D]
    train_y: Tensor,  # [N] int64 in 0..classes-1, at least PER_CLASS of each that occurs
    test_x: Tensor,  # [M, D]
    test_y: Tensor,  # [M]
    classes: int,
    *,
    seed: int,
) -> tuple[float, float]:
    """Mean accuracy over DRAWS draws of PER_CLASS photos a class, and the half-width of its 95 % interval; percent.

    Features are standardised over all training photos, whose labels are not needed for that: a draw's own deviations
    are too rough (raw pixels of Fashion-MNIST: 71.3 % against 69.8 %).
    """
    shift, scale = standardiser(train_x)
    test_x = (test_x - shift) * scale
    labels = train_y.cpu().numpy()
    accuracies = []
    for draw in range(DRAWS):
        chosen = torch.from_numpy(rank_in_class(labels, seed, draw) < PER_CLASS).to(train_x.device)
        weight, bias = logistic_regression((train_x[chosen] - shift) * scale, train_y[chosen], classes, C)
        right = (test_x @ weight + bias).argmax(1) == test_y
        accuracies.append(100 * right.double().mean().item())
    return mean_and_interval(accuracies)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of some values and the half-width of its 95 % interval by Student's t."""
    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, float(stdtrit(count - 1, 0.975)) * math.sqrt(variance / count)


def episodes(
    train_x: Tensor,  # [N, D]
    train_y: Tensor,  # [N] int64
    test_x: Tensor,  # [M, D]
    test_y: Tensor,  # [M]
    class_names: Sequence[str],
    way: int,
    shot: int,
    *,
    seed: int,
) -> tuple[float, float]:
    """Mean accuracy over EPISODES and the half-width of its 95 % interval over them; percent.

    An episode draws `way` classes, `shot` training photos of each to learn from and QUERIES test photos of each to be
    asked. Logistic regression (C = 1, no intercept: the classes are equally many) on features of unit length, less the
    mean of all training photos. All episodes are solved at once by accelerated gradient descent to its convergence.

    Raises:
        UserError: fewer classes than way, or a class with fewer training photos than shot.
    """
    sizes = torch.bincount(train_y, minlength=len(class_names)).tolist()
    asked = torch.bincount(test_y, minlength=len(class_names)).tolist()
    if few := [name for name, size in zip(class_names, sizes, strict=True) if size < shot]:
        raise UserError(
            f"--few-shot {way}x{shot}: class {few[0]!r} has fewer than {shot} training photos; ask for fewer shots"
        )
    shown = [number for number, size in enumerate(asked) if size]
    if len(shown) < way:
        raise UserError(f"--few-shot {way}x{shot}: there are {len(shown)} classes; ask for at most {len(shown)} ways")
    random = np.random.default_rng(seed)
    train_rows = [np.flatnonzero(train_y.cpu().numpy() == number) for number in range(len(class_names))]
    test_rows = [np.flatnonzero(test_y.cpu().numpy() == number) for number in range(len(class_names))]
    mean = torch.stack([block.float().sum(0) for block in train_x.split(8192)]).sum(0) / len(train_x)
    accuracies: list[float] = []
    for _ in range(EPISODES // TOGETHER):
        support, queries = [], []
        for _ in range(TOGETHER):
            classes = random.choice(shown, way, replace=False)
            support.append([random.choice(train_rows[number], shot, replace=False) for number in classes])
            queries.append([random.choice(test_rows[number], QUERIES, replace=True) for number in classes])
        x = _unit_rows(train_x, np.array(support).reshape(-1), mean).view(TOGETHER, way * shot, -1)
        q = _unit_rows(test_x, np.array(queries).reshape(-1), mean).view(TOGETHER, way * QUERIES, -1)
        weight = solve_episodes(x, way, shot)
        truth = torch.arange(way, device=x.device).repeat_interleave(QUERIES)
        right = (q @ weight).argmax(2) == truth
        accuracies += (100 * right.double().mean(1)).tolist()
    return mean_and_interval(accuracies)


@torch.no_grad()
def solve_episodes(
    x: Tensor, way: int, shot: int
) -> Tensor:  # [E, way * shot, D], in the order of classes -> [E, D, way]
    """min |W|^2 / 2 + sum of cross-entropies, of each episode."""
    labels = torch.eye(way, device=x.device, dtype=x.dtype).repeat_interleave(shot, 0)
    # curvature is at most 1 + |x|^2 / 2 and at least 1
    smooth = 1 + 0.5 * torch.linalg.matrix_norm(x @ x.transpose(1, 2), 2).amax().item()
    momentum = (math.sqrt(smooth) - 1) / (math.sqrt(smooth) + 1)
    weight = torch.zeros(len(x), x.shape[2], way, device=x.device, dtype=x.dtype)
    ahead = weight
    for _ in range(math.ceil(12 * math.sqrt(smooth))):  # the error shrinks by 1 - 1 / sqrt(smooth) a step: to 1e-5
        gradient = ahead + x.transpose(1, 2) @ ((x @ ahead).softmax(2) - labels)
        weight, before = ahead - gradient / smooth, weight
        ahead = weight + momentum * (weight - before)
    return weight


def _unit_rows(x: Tensor, rows: NDArray[np.int64], mean: Tensor) -> Tensor:
    return F.normalize(x[torch.from_numpy(rows).to(x.device)].float() - mean)
