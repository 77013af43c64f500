"""The loss on CUDA: 3 units of 2 N^2 D arithmetic (forward 1, backward 2), scores in registers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stablerep.ops import contrast_launch
from stablerep.ops.aot import CompileCase
from stablerep.ops.captions import Captions


def logsumexp(rows: Tensor, inverse_norm: Tensor, first: int, length: int, scale: float) -> Tensor:
    own = slice(first, first + length)
    unshifted = scale <= contrast_launch.MOST_UNSHIFTED_SCALE
    return contrast_launch.logsumexp(
        rows[own], rows, inverse_norm[own] * scale, inverse_norm, self_at=first, unshifted=unshifted
    )


def loss(rows: Tensor, inverse_norm: Tensor, captions: Captions, lse: Tensor, scale: float) -> Tensor:
    sums = contrast_launch.caption_sums(rows, inverse_norm, captions)
    positive = contrast_launch.positives(rows, inverse_norm, captions.slot, sums, exclude_self=True)
    others = captions.count - 1
    return (lse - scale * positive / others).masked_fill_(others == 0, 0).sum() / len(rows)


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
    own = slice(first, first + length)
    others = captions.count - 1
    lse = lse.masked_fill(others == 0, torch.inf)
    return contrast_launch.gradient(
        rows[own],
        rows,
        inverse_norm[own],
        inverse_norm,
        scale,
        lse[own],
        lse,
        captions.slot[own],
        (2.0 / others[own]).masked_fill_(others[own] == 0, 0),
        contrast_launch.caption_sums(rows, inverse_norm, captions),
        factor * (scale / len(rows)),
        self_at=first,
        unshifted=scale <= contrast_launch.MOST_UNSHIFTED_SCALE,
    )[0]


def compile_cases() -> Iterator[CompileCase]:
    return contrast_launch.compile_cases("multi_positive_loss", exclude_self=True, unshifted=(True, False))
