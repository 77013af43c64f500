"""The loss over tiles of scores with BLAS products: 2 units of 2 N^2 D arithmetic where all rows are here, else 3."""

from __future__ import annotations

import torch
from torch import Tensor

from stablerep.ops import contrast_tiled
from stablerep.ops.captions import Captions


def logsumexp(rows: Tensor, inverse_norm: Tensor, first: int, length: int, scale: float) -> Tensor:
    unit = rows * inverse_norm[:, None]
    return contrast_tiled.logsumexp(_own(unit, first, length), unit, scale, self_at=first)[0]


def loss(rows: Tensor, inverse_norm: Tensor, captions: Captions, lse: Tensor, scale: float) -> Tensor:
    unit = rows * inverse_norm[:, None]
    others = _sums(unit, captions)[captions.slot].sub_(unit)
    positive = others.mul_(unit).sum(1) / (captions.size - 1)
    return (lse - scale * positive).masked_fill_(captions.size == 1, 0).sum() / len(rows)


def gradient(
    factor: Tensor,  # [] of the gradient of the loss
    rows: Tensor,
    inverse_norm: Tensor,
    captions: Captions,
    lse: Tensor,
    first: int,
    length: int,
    scale: float,
) -> Tensor:
    unit = rows * inverse_norm[:, None]
    own = _own(unit, first, length)
    here = slice(first, first + length)
    lse = lse.masked_fill(captions.size == 1, torch.inf)
    gradient, _ = contrast_tiled.weighted_rows(own, unit, scale, lse[here], lse, self_at=first)
    count = captions.size[here]
    share = torch.where(count > 1, 2 / (count - 1).to(unit.dtype), 0)
    others = _sums(unit, captions)[captions.slot[here]].sub_(own)
    gradient.addcmul_(others, share[:, None], value=-1).mul_(factor * scale / len(rows))
    return contrast_tiled.through_norm(gradient, own, inverse_norm[here])[0]


def _own(unit: Tensor, first: int, length: int) -> Tensor:
    return unit if length == len(unit) else unit[first : first + length]  # the same tensor: symmetric scores


def _sums(unit: Tensor, captions: Captions) -> Tensor:
    return torch.zeros_like(unit).index_add_(0, captions.slot, unit)
