"""Rows of all ranks of a process group; torch.distributed that was never started is a group of one."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def size(group: ProcessGroup | None) -> int:
    return dist.get_world_size(group) if dist.is_initialized() else 1


def rank(group: ProcessGroup | None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def gather(rows: Tensor, group: ProcessGroup | None) -> Tensor:
    """The rows of every rank, by rank; as many on each. Without gradient."""
    rows = rows.detach().contiguous()
    if size(group) == 1:
        return rows
    gathered = rows.new_empty(size(group) * len(rows), *rows.shape[1:])
    if hasattr(dist, "all_gather_single"):  # the other name is deprecated from torch 2.14 on
        dist.all_gather_single(gathered, rows, group=group)
    else:
        dist.all_gather_into_tensor(gathered, rows, group=group)
    return gathered
