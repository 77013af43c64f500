"""The head between features and loss; it is thrown away after training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist

from stablerep import distributed


class ProjectionHead(nn.Module):
    """MLP in-hidden-hidden-out, BatchNorm and ReLU after the first two layers; the BatchNorm sees the whole batch."""

    def __init__(self, in_features: int, hidden: int = 4096, out: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden, bias=False),  # the norm would take a bias away again
            BatchNormOverRanks(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden, bias=False),
            BatchNormOverRanks(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out),
        )

    def forward(self, features: Tensor) -> Tensor:  # [B, D] -> [B, out]
        return self.layers(features)


class BatchNormOverRanks(nn.BatchNorm1d):
    """BatchNorm1d over the rows of all ranks. torch's SyncBatchNorm needs CUDA; this is the same on any device.

    Without running statistics: a projection head sees training batches only.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features, track_running_stats=False)

    def forward(self, rows: Tensor) -> Tensor:  # [B, D] -> [B, D]
        if distributed.world_size() == 1:
            return super().forward(rows)
        values = rows.float()
        sums = _AllReduce.apply(torch.stack([values.sum(0), values.square().sum(0)]))  # [2, D]
        count = len(rows) * distributed.world_size()  # every rank holds as many rows
        mean = sums[0] / count
        variance = (sums[1] / count - mean.square()).clamp_min(0)
        scaled = (values - mean) * torch.rsqrt(variance + self.eps)
        return (scaled * self.weight + self.bias).to(rows.dtype)


class _AllReduce(torch.autograd.Function):
    """The sum over ranks; the gradient of each rank's copy reaches every rank's values.

    torch's public one (torch.distributed.nn.functional) is deprecated; the private one has had a gradient since
    releases later than the oldest we support, and is silently without one before.
    """

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _AllReduce.forward(ctx, gradient)
