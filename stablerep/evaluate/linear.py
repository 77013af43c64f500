"""The linear probe: softmax regression on frozen features, all learning rates and all folds trained side by side."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stablerep import runlog
from stablerep.evaluate.standard import Standardised, standardiser

LEARNING_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # for batches of 256 (METHOD, evaluation)
BATCH_SIZE = 256
MOMENTUM = 0.9
BLOCK = 4096  # rows scored at once: ImageNet's whole [N, R, C] would not fit


@dataclass(frozen=True)
class Run:
    """One fit: which rows it learns from, and the seed of their shuffles."""

    rows: Tensor  # [n] int64
    seed: int


@dataclass(frozen=True)
class LinearProbe:
    """R classifiers of the same features, one for each learning rate."""

    weight: Tensor  # [R, D, C]
    bias: Tensor  # [R, 1, C]
    shift: Tensor  # [D]
    scale: Tensor  # [D]

    def scores(self, x: Tensor) -> Tensor:  # [N, D] -> [R, N, C]
        return ((x.float() - self.shift) * self.scale) @ self.weight + self.bias

    def top1(self, x: Tensor, y: Tensor) -> Tensor:  # [N, D], [N] -> [R] percent
        return 100 * self.right(x, y).float().mean(0)

    def right(self, x: Tensor, y: Tensor) -> Tensor:  # [N, D], [N] -> [N, R] bool
        blocks = zip(x.split(BLOCK), y.split(BLOCK), strict=True)
        return torch.cat([(self.scores(rows).argmax(-1) == labels).T for rows, labels in blocks])

    def of_rate(self, number: int) -> LinearProbe:
        return LinearProbe(self.weight[number, None], self.bias[number, None], self.shift, self.scale)


def fit(
    x: Tensor,  # [N, D] float
    y: Tensor,  # [N] int64 in 0..classes-1
    classes: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    *,
    epochs: int = 90,
    seed: int = 0,
    show: bool = False,
) -> LinearProbe:
    """SGD with momentum 0.9, no weight decay, cosine to zero over all steps, on standardised features, from zeros."""
    everyone = Run(torch.arange(len(x), device=x.device), seed)
    rows = Standardised(x, *standardiser(x))
    (probe,) = fit_runs(rows, y, classes, [everyone], learning_rates, epochs=epochs, title="linear probe", show=show)
    return probe


def fit_runs(
    rows: Standardised,
    y: Tensor,  # [N] int64 in 0..classes-1
    classes: int,
    runs: Sequence[Run],
    learning_rates: Sequence[float] = LEARNING_RATES,
    *,
    epochs: int = 90,
    title: str = "linear probe",
    show: bool = False,
) -> list[LinearProbe]:
    """The same for several sets of rows at once, with as many steps each: those of the smallest.

    On CUDA, where a step costs its launches, they are one batched product. On the CPU each run keeps to one thread and
    the runs share the threads: products this small gain little from a second thread, and wait for it at each of a
    dozen places a step. Beside another job on two cores that took 23 s, where one thread took 5.5.
    """
    batch = min(BATCH_SIZE, *(len(run.rows) for run in runs))
    steps = min(len(run.rows) for run in runs) // batch  # an epoch; the rest comes round in another shuffle
    lock, done = threading.Lock(), 0
    with runlog.progress(title, epochs * len(runs), "epochs", show=show) as bar:

        def train(some: Sequence[Run]) -> Tensor:
            def ended(_: int) -> None:
                nonlocal done
                with lock:
                    done += len(some)
                    bar.update(done)

            return _descend(rows, y, classes, some, learning_rates, epochs, steps, batch, ended)

        weights = train(runs) if rows.device.type == "cuda" else torch.cat(_on_one_thread_each(train, runs))
    return probes_of(weights, classes, rows.shift, rows.scale)


def _on_one_thread_each(train: Callable[[Sequence[Run]], Tensor], runs: Sequence[Run]) -> list[Tensor]:
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(lambda run: train([run]), runs))
    finally:
        torch.set_num_threads(threads)  # what threads that are yet to start will take


def _descend(
    rows: Standardised,
    y: Tensor,
    classes: int,
    runs: Sequence[Run],
    learning_rates: Sequence[float],
    epochs: int,
    steps_per_epoch: int,
    batch: int,
    ended: Callable[[int], None],  # called after each epoch
) -> Tensor:  # [G, C * R, D + 1]
    descent = Descent(len(runs), classes, learning_rates, rows.width, batch, rows.device)
    generators = [torch.Generator().manual_seed(run.seed) for run in runs]
    steps = epochs * steps_per_epoch
    for step in range(steps):
        epoch, at = divmod(step, steps_per_epoch)
        if at == 0:
            if epoch:
                ended(epoch)
            orders = [
                run.rows[torch.randperm(len(run.rows), generator=generator)[: steps_per_epoch * batch].to(rows.device)]
                for run, generator in zip(runs, generators, strict=True)
            ]
            order = torch.stack(orders)
        chosen = order[:, at * batch : (at + 1) * batch].reshape(-1)
        inputs = rows.take(chosen).view(len(runs), batch, -1)
        descent.step(inputs, y.index_select(0, chosen).view(len(runs), batch), step / steps)
    ended(epochs)
    return descent.weight


class Descent:
    """SGD of G x R classifiers, R rates each. The gradient is written out: the rates share one product a pass.

    Weights lie as [C, R, D]: thin products are 4 times faster than as [D, C * R], and the softmax over a middle axis
    goes along the rates (AMD EPYC, one thread).
    """

    def __init__(
        self, count: int, classes: int, rates: Sequence[float], width: int, batch: int, device: torch.device
    ) -> None:
        self._rates = torch.tensor(rates, device=device).repeat(classes)[:, None]  # [C * R, 1]
        self.weight = torch.zeros(count, len(self._rates), width + 1, device=device)
        self._momentum = torch.zeros_like(self.weight)
        self._grid, self._batch = (count, classes, len(rates), batch), batch
        self._minus = torch.full((1, 1, 1, 1), -1.0, device=device).expand(count, 1, *self._grid[2:])

    @torch.no_grad()
    def step(
        self,
        inputs: Tensor,  # [G, B, D + 1], the last column ones
        labels: Tensor,  # [G, B]
        progress: float,  # 0 to 1
        seen: Tensor | None = None,  # [G, B] float, 0 for rows that a group must not learn from
    ) -> None:
        count = len(inputs)
        error = torch.bmm(self.weight, inputs.transpose(1, 2)).view(self._grid).softmax(1)
        # a sure classifier's losers are subnormal numbers: without this 10,000 x 1,024 took 47 s on a CPU, not 7
        F.threshold(error, 1e-20, 0.0, inplace=True)
        error.scatter_add_(1, labels.view(count, 1, 1, -1).expand(count, 1, *self._grid[2:]), self._minus)
        if seen is not None:
            error *= (seen * (self._batch / seen.sum(1, keepdim=True).clamp(min=1)))[:, None, None]
        self._momentum.baddbmm_(error.view(count, -1, self._batch), inputs, beta=MOMENTUM, alpha=1 / self._batch)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        self.weight.addcmul_(self._momentum, self._rates, value=-cosine * self._batch / BATCH_SIZE)

    def probes(self, shift: Tensor, scale: Tensor) -> list[LinearProbe]:
        """Of each group."""
        return probes_of(self.weight, self._grid[1], shift, scale)


def probes_of(weight: Tensor, classes: int, shift: Tensor, scale: Tensor) -> list[LinearProbe]:  # [G, C * R, D + 1]
    grid = weight.view(len(weight), classes, -1, weight.shape[2]).permute(0, 2, 3, 1)  # [G, R, D + 1, C]
    return [LinearProbe(each[:, :-1], each[:, -1:], shift, scale) for each in grid]
