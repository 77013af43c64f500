"""Which rows share a caption, without an N x N mask and without waiting for the device as torch.unique does."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Captions(NamedTuple):
    order: Tensor  # [N] int64, the rows sorted by caption
    slot: Tensor  # [N] int64, where the row's caption begins in that order: one number per caption, below N
    size: Tensor  # [N] int64, rows of the row's caption, itself included


def captions(labels: Tensor) -> Captions:
    """labels [N] int64, any values, in any order."""
    ordered, order = labels.sort(stable=True)  # stable: sums over a caption then have one order, and one rounding
    slot = torch.searchsorted(ordered, labels)
    return Captions(order, slot, torch.searchsorted(ordered, labels, right=True) - slot)
