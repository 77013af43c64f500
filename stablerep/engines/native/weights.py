"""Weights as the steps of csrc/network.h read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 16  # channels come in so many
PANEL = 48  # kPanel in csrc/network_step.h

# Winograd's F(4x4, 3x3) at the points 0, 1, -1, 2, -2 and infinity: G of (G w G^T).
WINOGRAD = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)


def rounded(channels: int) -> int:
    return -(-channels // LANES) * LANES


def padded(values: Tensor) -> Tensor:
    """The last axis, filled with zeros up to a multiple of LANES."""
    return F.pad(values.float(), (0, rounded(values.shape[-1]) - values.shape[-1]))


def matrix(layer: Any) -> Tensor:
    """The weights [in, out] of a linear layer or a 1 x 1 convolution, both rounded up."""
    weight = layer.weight.flatten(1)
    return padded(padded(weight).t())


def bias(layers: Sequence[Any]) -> Tensor | None:
    """The biases of layers side by side, each rounded up; None if none has any."""
    if all(layer.bias is None for layer in layers):
        return None
    zeros = [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    return torch.cat([padded(each) for each in zeros])


def by_head(values: Tensor, heads: int, width: int) -> Tensor:  # [K, heads * w] to [K, heads * width]
    """Each head's columns filled with zeros up to width; attention over them is the same."""
    columns = values.unflatten(1, (heads, -1))
    return F.pad(columns, (0, width - columns.shape[-1])).flatten(1)


def panels(values: Tensor) -> Tensor:  # [K, N]
    """Flat: [panel][K][columns], a panel of 48 columns after the other."""
    return torch.cat([panel.reshape(-1) for panel in values.float().split(PANEL, 1)])


def winograd(conv: Any) -> Tensor:
    """The transformed weights of a 3 x 3 convolution, flat: [36] of panels [in, out]. Rounded once, from float64."""
    turned = torch.einsum("yi,xj,ocij->yxco", WINOGRAD, WINOGRAD, conv.weight.double()).flatten(0, 1)
    return torch.cat([panels(padded(padded(each.t()).t())) for each in turned])
