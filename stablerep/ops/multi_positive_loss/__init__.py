"""The loss of StableRep: every image of a caption is a positive of every other."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from stablerep.ops.multi_positive_loss import reference


def multi_positive_loss(
    features: Tensor,  # [N, D] float, any norm; N the same on every rank
    labels: Tensor,  # [N] int64, equal = same caption, also across ranks
    temperature: float = 0.1,
    group: ProcessGroup | None = None,  # None: the default group if torch.distributed is started, else this process
) -> Tensor:  # [] float32; float64 for float64 features
    """Multi-positive contrastive loss over the rows of all ranks (StableRep, arXiv 2306.00984, eq. 2-4).

    Rows without a positive contribute zero but stay negatives of the others. Mean over the global N; 0 for an
    empty batch. A row of zeros has cosine 0 with every row and gets no gradient. Computed in float32 (float64
    features: float64), also under autocast. Never waits for the device.

    On several ranks every rank returns the global loss, and the gradient is world size times that of the global loss,
    so that the mean over ranks that DDP and FSDP take gives the gradient of the global loss.

    Raises:
        ValueError: features is not [N, D], labels is not [N], or temperature is not a positive number.
        TypeError: features is not floating point, or labels is not int64.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features must be [N, D] and labels [N], got {list(features.shape)} and {list(labels.shape)}")
    if not features.is_floating_point() or labels.dtype != torch.int64:
        raise TypeError(f"features must be floating point and labels int64, got {features.dtype} and {labels.dtype}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    if features.dtype != torch.float64:
        features = features.float()
    if len(features) == 0:
        return features.sum()  # 0, and still part of the graph
    # In bfloat16 a similarity at temperature 0.1 would be off by up to 0.03.
    with torch.autocast(features.device.type, enabled=False):
        if not dist.is_initialized() or dist.get_world_size(group) == 1:
            return reference.multi_positive_loss(features, labels, temperature)
        first = dist.get_rank(group) * len(features)
        all_features = _GatherRows.apply(features, group)
        all_labels = _gather(labels, group)
        own = reference.multi_positive_loss(all_features, all_labels, temperature, slice(first, first + len(features)))
        total = own.detach().clone()
        dist.all_reduce(total, group=group)
        return own + (total - own).detach()  # the value of all ranks; the gather's backward adds the others' gradient


def _gather(rows: Tensor, group: ProcessGroup | None) -> Tensor:
    gathered = rows.new_empty(dist.get_world_size(group) * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows.contiguous(), group=group)
    return gathered


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks, by rank; the backward sums each row's gradient over ranks, and undoes DDP's mean."""

    @staticmethod
    def forward(ctx, rows: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _gather(rows, group)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        world_size = dist.get_world_size(ctx.group)
        own = gradient.new_empty(len(gradient) // world_size, *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous(), group=ctx.group)
        return own * world_size, None
