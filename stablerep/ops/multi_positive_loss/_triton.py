"""The loss on CUDA: 3 units of 2 N^2 D arithmetic (forward 1, backward 2), scores in registers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from stablerep.ops import contrast_launch
from stablerep.ops.aot import CompileCase
from stablerep.ops.captions import Captions


def logsumexp(rows: Tensor, inverse_norm: Tensor, first: int, length: int, scale: float) -> Tensor:
    side = _side(rows, inverse_norm, scale)
    unshifted = scale <= contrast_launch.MOST_UNSHIFTED_SCALE
    return contrast_launch.logsumexp(side.part(first, length), side, first, unshifted)


def loss(rows: Tensor, inverse_norm: Tensor, captions: Captions, lse: Tensor, scale: float) -> Tensor:
    side = _side(rows, inverse_norm, scale)
    sums = contrast_launch.caption_sums(side, captions)
    positive = contrast_launch.positive_cosines(side, captions.slot, sums, exclude_self=True)
    others = captions.size - 1
    return (lse * math.log(2) - scale * positive / others).masked_fill_(others == 0, 0).sum() / len(rows)


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
    side, own = _side(rows, inverse_norm, scale), slice(first, first + length)
    others = (captions.size - 1).to(lse.dtype)
    lse = lse.masked_fill(others == 0, torch.inf)
    share = (2.0 / others[own]).masked_fill_(others[own] == 0, 0)
    positives = contrast_launch.Positives(captions.slot[own], share, contrast_launch.caption_sums(side, captions))
    factor = factor * (scale / len(rows))
    unshifted = scale <= contrast_launch.MOST_UNSHIFTED_SCALE
    part = side.part(first, length)
    return contrast_launch.gradient(part, side, lse[own], lse, positives, factor, first, unshifted)[0]


def _side(rows: Tensor, inverse_norm: Tensor, scale: float) -> contrast_launch.Side:
    # The scale is halved between both sides: score (i, j) is score (j, i) to the last bit.
    return contrast_launch.Side(rows, inverse_norm, inverse_norm * math.sqrt(scale * contrast_launch.LOG2_E))


def compile_cases() -> Iterator[CompileCase]:
    return contrast_launch.compile_cases("multi_positive_loss", exclude_self=True, unshifted=(True, False))
