"""The linear probe with ten rates, chosen and fitted again: ours, and scikit-learn's logistic regression with ten C."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.record import Bench, Work
from stablerep.evaluate import linear
from stablerep.evaluate.folds import draw_folds
from stablerep.evaluate.probes import probe

PHOTOS, WIDTH, CLASSES, EPOCHS = 50_000, 768, 10, 90  # to reach: under 60 s on two cores
TEST = 10_000
CPU = torch.device("cpu")


def features(photos: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes that overlap, in correlated columns of which the last hold little, as an encoder's."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (photos,), generator=random)
    strength = torch.linspace(0, -2, width).exp()
    means = torch.randn(CLASSES, width, generator=random) * strength * 0.16
    mixing = torch.linalg.qr(torch.randn(width, width, generator=random)).Q
    x = (means[y] + torch.randn(photos, width, generator=random) * strength) @ mixing
    return x, y


def test_linear_probe(bench: Bench) -> None:
    photos, width, epochs = (600, 32, 20) if bench.quick else (PHOTOS, WIDTH, EPOCHS)
    test = 300 if bench.quick else TEST
    x, y = features(photos + test, width)
    train_x, train_y, test_x, test_y = x[:photos], y[:photos], x[photos:], y[photos:]
    (fold, *_) = draw_folds(train_y.numpy(), 0, CPU)

    def ours() -> float:
        found = probe(train_x, train_y, test_x, test_y, ("linear",), seed=0, epochs=epochs)
        return found.numbers["linear_top1"]

    def scikit_learn() -> float:
        scale = StandardScaler().fit(train_x)
        a, b, kept, held = (each.numpy() for each in (train_x, train_y, fold.kept, fold.held))
        a = scale.transform(a)
        cs = np.logspace(-4, 1, 10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            right = [LogisticRegression(C=c, max_iter=200).fit(a[kept], b[kept]).score(a[held], b[held]) for c in cs]
            final = LogisticRegression(C=cs[int(np.argmax(right))], max_iter=200).fit(a, b)
        return 100 * final.score(scale.transform(test_x), test_y)

    seconds, accuracy = {}, {}
    for name, run in {"ours": ours, "scikit-learn": scikit_learn}.items():
        seconds[name], accuracy[name] = timed(run)
    assert accuracy["ours"] > accuracy["scikit-learn"] - (3.0 if bench.quick else 0.3), accuracy
    print(accuracy, seconds)
    columns = len(linear.LEARNING_RATES) * CLASSES
    work = Work(flops=4.0 * epochs * len(fold.kept) * width * columns)  # of the choice alone
    bench.keep(
        f"linear probe, {photos} x {width}, 10 rates, {epochs} epochs", "cpu",
        {name: [1e3 * each] for name, each in seconds.items()}, work=work,
    )  # fmt: skip


def timed(run: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    value = run()
    return time.perf_counter() - start, value
