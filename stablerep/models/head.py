"""The head between features and loss; it is thrown away after training."""

from __future__ import annotations

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """MLP in-hidden-hidden-out, BatchNorm and ReLU after the first two layers.

    The BatchNorm sees the whole batch, of all ranks once batch_norm.over_ranks was there. It keeps no running
    statistics: a head sees training batches only.
    """

    def __init__(self, in_features: int, hidden: int = 4096, out: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden, bias=False),  # the norm would take a bias away again
            nn.BatchNorm1d(hidden, track_running_stats=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden, bias=False),
            nn.BatchNorm1d(hidden, track_running_stats=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out),
        )

    def forward(self, features: Tensor) -> Tensor:  # [B, D] -> [B, out]
        return self.layers(features)
