"""The batched linear probe against torch's own SGD, one rate at a time, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from stablerep.evaluate import linear
from stablerep.evaluate.standard import standardiser
from tests.evaluate.conftest import Problem


def fit_with_autograd(x: Tensor, y: Tensor, classes: int, rate: float, epochs: int, seed: int) -> nn.Linear:
    batch = min(256, len(x))
    layer = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    sgd = torch.optim.SGD(layer.parameters(), lr=rate * batch / 256, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, epochs * (len(x) // batch))
    shuffles = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=shuffles).split(batch):
            if len(rows) < batch:
                continue
            loss = nn.functional.cross_entropy(layer(x[rows]), y[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            cosine.step()
    return layer


@pytest.mark.parametrize("rows", [63, 1000])
def test_is_sgd_with_momentum_and_cosine_for_each_rate(problem: Problem, rows: int) -> None:
    x, y, rates = problem.train_x[:rows], problem.train_y[:rows], (0.01, 0.1)
    probe = linear.fit(x, y, 10, rates, epochs=5, seed=7)
    shift, scale = standardiser(x)
    for i, rate in enumerate(rates):
        layer = fit_with_autograd((x - shift) * scale, y, 10, rate, epochs=5, seed=7)
        torch.testing.assert_close(probe.weight[i], layer.weight.T, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(probe.bias[i, 0], layer.bias, rtol=1e-3, atol=1e-5)


def test_accuracy_is_that_of_scikit_learn(problem: Problem) -> None:
    p = problem
    ours = linear.fit(p.train_x, p.train_y, 10).top1(p.test_x, p.test_y).max().item()
    theirs = []
    for c in (1e-3, 1e-2, 1e-1):
        oracle = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300))
        theirs.append(100 * oracle.fit(p.train_x.numpy(), p.train_y.numpy()).score(p.test_x.numpy(), p.test_y.numpy()))
    assert ours == pytest.approx(max(theirs), abs=2.0)
    assert ours > 75


def test_top1_counts_right_answers(problem: Problem) -> None:
    probe = linear.fit(problem.train_x, problem.train_y, 10, (0.1, 0.2), epochs=2)
    x, y = problem.test_x, problem.test_y
    scores = np.stack(
        [((x - probe.shift) * probe.scale @ w + b).numpy() for w, b in zip(probe.weight, probe.bias, strict=True)]
    )
    expected = 100 * (scores.argmax(-1) == y.numpy()).mean(-1)
    np.testing.assert_allclose(probe.top1(x, y).numpy(), expected, atol=0.11)  # one near-tie in 1,000


def test_constant_column_counts_for_nothing(problem: Problem) -> None:
    constant = torch.full((len(problem.train_x), 1), 0.3)
    with_it = linear.fit(torch.cat([problem.train_x, constant], 1), problem.train_y, 10, (0.1,), epochs=2)
    without = linear.fit(problem.train_x, problem.train_y, 10, (0.1,), epochs=2)
    torch.testing.assert_close(with_it.weight[:, :-1], without.weight, rtol=1e-3, atol=1e-5)
    assert with_it.weight[:, -1].abs().max() == 0 and with_it.scale[-1] == 0
