"""The linear probe: softmax regression on frozen features, all learning rates trained at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stablerep import runlog
from stablerep.evaluate.features import standardiser

LEARNING_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # for batches of 256 (METHOD, evaluation)
BATCH_SIZE = 256
MOMENTUM = 0.9


@dataclass(frozen=True)
class LinearProbe:
    """R classifiers of the same features, one for each learning rate."""

    weight: Tensor  # [R, D, C]
    bias: Tensor  # [R, 1, C]
    shift: Tensor  # [D]
    scale: Tensor  # [D]

    def top1(self, x: Tensor, y: Tensor) -> Tensor:  # [N, D], [N] -> [R] percent
        right = torch.zeros(len(self.weight), device=x.device)
        for rows, labels in zip(x.split(4096), y.split(4096), strict=True):  # ImageNet's whole [R, N, C] would not fit
            scores = ((rows - self.shift) * self.scale) @ self.weight + self.bias
            right += (scores.argmax(-1) == labels).sum(-1)
        return 100 * right / len(x)


@torch.no_grad()
def fit(
    x: Tensor,  # [N, D] float32
    y: Tensor,  # [N] int64 in 0..classes-1
    classes: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    *,
    epochs: int = 90,
    seed: int = 0,
    show: bool = False,
) -> LinearProbe:
    """SGD with momentum 0.9, no weight decay, cosine to zero over all steps, on standardised features, from zeros.

    The gradient is written out: with it the rates share one [B, D] @ [D, R*C] product a pass.
    """
    n, d = x.shape
    rates = torch.tensor(learning_rates, device=x.device).repeat_interleave(classes)  # [R*C]
    shift, scale = standardiser(x)
    ones = torch.ones(n, 1, device=x.device)
    x = torch.cat([(x - shift) * scale, ones], dim=1)  # the last column carries the bias
    weight = torch.zeros(d + 1, len(rates), device=x.device)
    momentum = torch.zeros_like(weight)

    batch = min(BATCH_SIZE, n)
    steps_per_epoch = n // batch  # the rest of an epoch comes round in another shuffle
    steps = epochs * steps_per_epoch
    generator = torch.Generator().manual_seed(seed)
    rows_of_batch = torch.arange(batch, device=x.device)
    title = "linear probe, choosing the rate" if len(learning_rates) > 1 else "linear probe"
    with runlog.progress(title, epochs, "epochs", show=show) as bar:
        for step in range(steps):
            epoch, at = divmod(step, steps_per_epoch)
            if at == 0:
                order = torch.randperm(n, generator=generator).to(x.device)
                bar.update(epoch)
            chosen = order[at * batch : (at + 1) * batch]
            rows = x[chosen]
            error = (rows @ weight).view(batch, -1, classes).softmax(-1)
            # a sure classifier's losers are subnormal numbers: without this 10,000 x 1,024 took 47 s on a CPU, not 7
            F.threshold(error, 1e-20, 0.0, inplace=True)
            error[rows_of_batch, :, y[chosen]] -= 1
            momentum.mul_(MOMENTUM).addmm_(rows.T, error.view(batch, -1), alpha=1 / batch)
            cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
            weight.addcmul_(momentum, rates, value=-cosine * batch / 256)
        bar.update(epochs)
    grid = weight.view(d + 1, len(learning_rates), classes).transpose(0, 1)
    return LinearProbe(grid[:, :d], grid[:, d:], shift, scale)
