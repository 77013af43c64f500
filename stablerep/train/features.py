"""What the rows that the loss compares look like: how alike positives and negatives are, and whether rows collapse.

Nothing of size N x N is made, and the host is not waited for: sums over groups are enough.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_ROWS = 1024  # of the effective rank
# A head with random weights spreads its rows to 0.3 and more; rows of a run that has collapsed are one point.
LEAST_SPREAD = 0.1
NAMES = ("positive_similarity", "negative_similarity", "feature_spread", "effective_rank")


class HeadRows:
    """Keeps the rows that a head gave last, for whoever asks at a log point."""

    def __init__(self, head: nn.Module) -> None:
        self.rows: Tensor | None = None  # [B, D]
        head.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, rows: Tensor) -> None:
        self.rows = rows.detach()


@torch.no_grad()
def describe(rows: Tensor, labels: Tensor) -> Tensor:  # [B, D], [B] int64 -> [4] float32, in the order of NAMES
    """Of one batch. A similarity without pairs (every label alike, or none) is NaN.

    Raises:
        ValueError: not one label a row.
    """
    if len(rows) != len(labels):
        raise ValueError(f"one label a row: {len(labels)} labels for {len(rows)} rows")
    unit = F.normalize(rows.float())
    every = -(-len(unit) // MOST_ROWS)  # rows of one prompt are neighbours: evenly spaced ones are of many
    return torch.stack([*similarities(unit, labels), spread(unit), effective_rank(unit[::every])])


def similarities(unit: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # [N, D] of length 1, [N] -> [], []
    """Mean cosine of two rows of one label, and of two rows of different labels.

    By sums over labels: the cosines of all pairs within a label add up to |sum of its rows|^2, less each with itself.
    """
    number, order = len(unit), labels.argsort()
    at = labels[order]
    label = F.pad((at[1:] != at[:-1]).cumsum(0), (1, 0))  # 0, 1, ...; torch.unique would wait for the device
    sums = torch.zeros_like(unit).index_add_(0, label, unit[order])
    sizes = torch.zeros_like(unit[:, 0]).index_add_(0, label, torch.ones_like(unit[:, 0]))
    alike = sums.square().sum() - number
    other = unit.sum(0).square().sum() - sums.square().sum()
    pairs = sizes.square().sum()
    return alike / (pairs - number), other / (number**2 - pairs)


def spread(unit: Tensor) -> Tensor:  # [N, D] of length 1 -> []
    """Mean deviation of a column times sqrt(D): 1 where rows lie evenly on the sphere, 0 where all are one point."""
    return unit.std(0, unbiased=False).mean() * unit.shape[1] ** 0.5


def effective_rank(rows: Tensor) -> Tensor:  # [N, D] -> []
    """exp(entropy) of the singular values of the centred rows: how many directions they use (Roy and Vetterli, 2007).

    Of the smaller Gram matrix in float64, where the root of an eigenvalue is exact enough: singular values themselves
    take several times as long.
    """
    centred = (rows - rows.mean(0)).double()
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum().exp().float()
