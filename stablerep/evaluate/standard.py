"""Features brought to mean 0 and deviation 1, whole or as their rows are asked for."""

from __future__ import annotations

import torch
from torch import Tensor

HELD_BYTES = 2**30  # standardised features kept in memory; of larger sets rows are standardised as they are taken
BLOCK = 8192


class Standardised:
    """(x - shift) * scale with a column of ones behind it, which carries the bias."""

    def __init__(self, x: Tensor, shift: Tensor, scale: Tensor) -> None:  # [N, D] float, [D], [D]
        self.shift, self.scale, self.width, self.device = shift, scale, x.shape[1], x.device
        self._x, self._ready = x, None
        if x.device.type == "cuda" or 4 * x.numel() <= HELD_BYTES:
            self._ready = self._standardise(x)

    def take(self, rows: Tensor) -> Tensor:  # [B] int64 -> [B, D + 1] float32
        # x[rows] takes 7 times as long on a CPU
        if self._ready is not None:
            return self._ready.index_select(0, rows)
        return self._standardise(self._x.index_select(0, rows))

    def _standardise(self, x: Tensor) -> Tensor:
        found = torch.ones(len(x), self.width + 1, device=x.device)
        torch.sub(x, self.shift, out=found[:, :-1]).mul_(self.scale)
        return found


def standardiser(x: Tensor) -> tuple[Tensor, Tensor]:  # [N, D] float -> [D] shift, [D] scale, float32
    """(x - shift) * scale has mean 0 and deviation 1 in each column; a constant column becomes 0.

    The same as a BatchNorm without weights that has seen all of x. Reads x in blocks: it may lie in a file.
    """
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    largest = torch.zeros(x.shape[1], device=x.device)
    for block in x.split(BLOCK):
        total += block.double().sum(0)
        largest = torch.maximum(largest, block.abs().amax(0).float())
    mean, squares = total / len(x), torch.zeros_like(total)
    for block in x.split(BLOCK):
        squares += (block.double() - mean).square().sum(0)
    deviation = (squares / len(x)).sqrt().float()
    constant = deviation <= 1e-6 * largest  # rounding leaves a little deviation in a constant column
    return mean.float(), torch.where(constant, 0.0, 1.0 / deviation)


def as_they_are(x: Tensor) -> tuple[Tensor, Tensor]:  # [N, D] -> [D] shift, [D] scale
    """What leaves features unchanged: a probe without BatchNorm."""
    return torch.zeros(x.shape[1], device=x.device), torch.ones(x.shape[1], device=x.device)
