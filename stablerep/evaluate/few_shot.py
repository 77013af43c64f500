"""The few-shot probe: logistic regression on ten labelled photos of each class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy.stats.t.ppf, without a second of imports
from torch import Tensor
from torch.nn import functional as F

from stablerep.data.labelled import rank_in_class
from stablerep.evaluate.standard import standardiser

PER_CLASS = 10
DRAWS = 10
C = 0.1  # within 0.2 points of the best of 1e-4..10 on pixels, untrained and trained features of Fashion-MNIST


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
        weight, bias = logistic_regression((train_x[chosen] - shift) * scale, train_y[chosen], classes)
        right = (test_x @ weight + bias).argmax(1) == test_y
        accuracies.append(100 * right.double().mean().item())
    return mean_and_interval(accuracies)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of some values and the half-width of its 95 % interval by Student's t."""
    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, float(stdtrit(count - 1, 0.975)) * math.sqrt(variance / count)


def logistic_regression(
    x: Tensor,  # [n, D]
    y: Tensor,  # [n] int64 in 0..classes-1
    classes: int,
    c: float = C,
) -> tuple[Tensor, Tensor]:  # [D, classes], [classes]
    """min |W|^2 / 2 + c * sum of cross-entropies, by L-BFGS in float64: scikit-learn's LogisticRegression(C=c)."""
    # |W|^2 keeps the solution in the span of the rows: min(n, D) unknowns a class are enough, not D
    u, s, basis = torch.linalg.svd(x.double(), full_matrices=False)
    z = u * s
    weight = torch.zeros(z.shape[1], classes, dtype=z.dtype, device=z.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=z.dtype, device=z.device, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias],
        max_iter=1000,
        tolerance_grad=1e-5 * min(1, c * len(x)),  # curvature: at least 1 in the weights, about c * n in the bias
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        search.zero_grad()
        loss = weight.square().sum() / 2 + c * F.cross_entropy(z @ weight + bias, y, reduction="sum")
        loss.backward()
        return loss

    search.step(objective)
    return (basis.T @ weight.detach()).to(x.dtype), bias.detach().to(x.dtype)
