"""Logistic regression as in the literature on transfer: L-BFGS on standardised features, C chosen on validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stablerep.evaluate.folds import Fold
from stablerep.evaluate.scores import Answer
from stablerep.evaluate.standard import standardiser

CS = tuple(float(c) for c in np.logspace(-6, 5, 45))
TOLERANCE = 1e-4  # of the mean gradient: scikit-learn's own
MOST_STEPS = 1000


def transfer(
    train_x: Tensor,  # [N, D]
    train_y: Tensor,  # [N] int64 in 0..classes-1
    test_x: Tensor,  # [M, D]
    test_y: Tensor,  # [M]
    classes: int,
    fold: Fold,
) -> tuple[dict[str, Any], Answer]:
    """The 45 values of C are tried on one fold; with the best the regression is fitted again to all training photos."""
    shift, scale = standardiser(train_x)
    x, asked = ((each.float() - shift) * scale for each in (train_x, test_x))
    held_x, held_y = x[fold.held], train_y[fold.held]
    found = [
        100 * (held_x @ weight + bias).argmax(1).eq(held_y).double().mean().item()
        for weight, bias in logistic_path(x[fold.kept], train_y[fold.kept], classes, CS)
    ]
    c = CS[int(np.argmax(found))]
    *_, (weight, bias) = logistic_path(x, train_y, classes, [each for each in CS if each <= c])
    answer = Answer.of_scores(asked @ weight + bias)
    right = answer.named == test_y
    return {"logistic_top1": 100 * right.double().mean().item(), "logistic_c": c}, answer


def logistic_path(x: Tensor, y: Tensor, classes: int, cs: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """The regression for each C, smallest first: each begins where the last ended, which takes a tenth of the steps."""
    z, basis = _rotated(x)
    weight = torch.zeros(z.shape[1], classes, dtype=z.dtype, device=z.device)
    bias = torch.zeros(classes, dtype=z.dtype, device=z.device)
    found = []
    for c in cs:
        weight, bias = _minimise(z, y, weight, bias, c, TOLERANCE * c * len(x))
        found.append(((basis @ weight).to(x.dtype), bias.to(x.dtype)))
    return found


def logistic_regression(
    x: Tensor,  # [n, D]
    y: Tensor,  # [n] int64 in 0..classes-1
    classes: int,
    c: float,
) -> tuple[Tensor, Tensor]:  # [D, classes], [classes]
    """min |W|^2 / 2 + c * sum of cross-entropies, by L-BFGS in float64: scikit-learn's LogisticRegression(C=c)."""
    z, basis = _rotated(x)
    weight = torch.zeros(z.shape[1], classes, dtype=z.dtype, device=z.device)
    bias = torch.zeros(classes, dtype=z.dtype, device=z.device)
    # curvature: at least 1 in the weights, about c * n in the bias
    weight, bias = _minimise(z, y, weight, bias, c, 1e-5 * min(1, c * len(x)))
    return (basis @ weight).to(x.dtype), bias.to(x.dtype)


def _rotated(x: Tensor) -> tuple[Tensor, Tensor]:  # [n, D] -> [n, r], [D, r], float64
    """The rows in a basis of their own span. |W|^2 keeps the solution there: min(n, D) unknowns a class are enough."""
    x = x.double()
    if len(x) < x.shape[1]:
        u, s, basis = torch.linalg.svd(x, full_matrices=False)
        return u * s, basis.T
    return x, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


def _minimise(z: Tensor, y: Tensor, weight: Tensor, bias: Tensor, c: float, tolerance: float) -> tuple[Tensor, Tensor]:
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MOST_STEPS,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        search.zero_grad()
        loss = weight.square().sum() / 2 + c * F.cross_entropy(z @ weight + bias, y, reduction="sum")
        loss.backward()
        return loss

    search.step(objective)
    return weight.detach(), bias.detach()
