"""The batch of all ranks, which both losses work on: its rows, their norms, and which of them share a caption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from stablerep.ops import impls

MOST_TRITON_DIM = 1024
# exp(score) and its sum over a billion columns stay normal float32 numbers up to this scale: no maximum is needed.
MOST_UNSHIFTED_SCALE = 64.0


class Backend(Protocol):
    """One loss over the rows of all ranks without anything N x N: in tiles (tiled.py) or in Triton (launch.py)."""

    def logsumexp(self, own: slice) -> Tensor:
        """Log-sum-exp of the scores of this rank's rows, in any base; [length] for each side of the score matrix."""
        ...

    def loss(self, captions: Captions, lse: Tensor) -> Tensor:
        """[] the loss of all rows from the log-sum-exp of all; O(N D)."""
        ...

    def gradient(self, factor: Tensor, captions: Captions, lse: Tensor, own: slice) -> tuple[Tensor, ...]:
        """factor [] times the gradient of this rank's rows, of each side, and of the scale if it is learned."""
        ...


class Captions(NamedTuple):
    """Which rows share a caption, without an N x N mask and without waiting for the device as torch.unique does."""

    order: Tensor  # [N] int64, the rows sorted by caption
    slot: Tensor  # [N] int64, where the row's caption begins in that order: one number per caption, below N
    size: Tensor  # [N] int64, rows of the row's caption, itself included


def captions_of(labels: Tensor) -> Captions:
    """labels [N] int64, any values, in any order."""
    ordered, order = labels.sort(stable=True)  # stable: sums over a caption then have one order, and one rounding
    slot = torch.searchsorted(ordered, labels)
    return Captions(order, slot, torch.searchsorted(ordered, labels, right=True) - slot)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def inverse_norm(rows: Tensor) -> Tensor:
    """[N] 1 / |row|, 0 for a row of zeros; float32, or float64 for float64."""
    norm = torch.linalg.vector_norm(rows, dim=1, dtype=compute_dtype(rows.dtype))
    return norm.reciprocal().masked_fill(norm == 0, 0)


def choose_impl(op: str, impl: str, features: Tensor, available: Mapping[str, impls.WhyNot]) -> str:
    """impls.choose, but "auto" never takes Triton for float32 and float64: three TF32 products for one of float32 are
    slower than BLAS (N 32,768 on an H200: 130 ms, compiled eager 41), and Triton has none for float64."""
    if impl == "auto" and compute_dtype(features.dtype) == features.dtype:
        available = {name: why_not for name, why_not in available.items() if name != "triton"}
    return impls.choose(op, impl, features.device.type, available)


def check_impl(op: str, impl: str, features: Tensor) -> None:
    """Raise for features that the implementation does not take."""
    if impl == "triton" and features.dtype == torch.float64:
        raise TypeError(f"{op}: impl='triton' takes float32, bfloat16 and float16, got torch.float64; use impl='tiled'")
    if impl == "triton" and features.shape[1] > MOST_TRITON_DIM:
        dim = features.shape[1]
        raise ValueError(
            f"{op}: impl='triton' takes up to {MOST_TRITON_DIM} features a row, got {dim}; use impl='tiled'"
        )


def world_size(group: ProcessGroup | None) -> int:
    """Of None: the default group, or one where torch.distributed was never started."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def rank(group: ProcessGroup | None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def gather(rows: Tensor, group: ProcessGroup | None) -> Tensor:
    """The rows of every rank, by rank; as many on each. Without gradient: the losses' gradient needs no collective."""
    rows = rows.detach().contiguous()
    if world_size(group) == 1:
        return rows
    gathered = rows.new_empty(world_size(group) * len(rows), *rows.shape[1:])
    if hasattr(dist, "all_gather_single"):  # the other name is deprecated from torch 2.14 on
        dist.all_gather_single(gathered, rows, group=group)
    else:
        dist.all_gather_into_tensor(gathered, rows, group=group)
    return gathered
