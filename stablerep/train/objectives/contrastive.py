"""The multi-positive contrastive loss: StableRep's, and SimCLR's and SupCon's where the labels say so."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist

from stablerep import distributed, ops
from stablerep.data.loader import Batch
from stablerep.models import ProjectionHead
from stablerep.train.config import TrainConfig


class Contrastive(nn.Module):
    """An encoder, a head, and the loss of what comes out of it.

    Any objective is a module with these three methods, and with `encoder`. Its loss is that of all ranks' rows, the
    same on each, and its gradient world size times that of the loss, since DDP takes the mean over ranks.
    """

    why_not_split: str | None = None  # why the loss needs more than the features of parts of a batch; None: it does not

    def __init__(self, encoder: nn.Module, config: TrainConfig, *, bf16: bool) -> None:
        super().__init__()
        width: int = encoder.num_features  # type: ignore[assignment]
        self.encoder, self.head = encoder, self.create_head(width, config)
        self._temperature, self._bf16 = config.temperature, bf16

    def create_head(self, width: int, config: TrainConfig) -> nn.Module:
        return ProjectionHead(width, config.head_hidden, config.head_out)

    def forward(self, batch: Batch) -> Tensor:  # [] the loss, float32
        return self.loss(self.features(batch), batch)

    def features(self, batch: Batch) -> Tensor:  # [B, F]; a row depends on its image alone, unless BatchNorm is there
        with self.autocast(batch):
            return self.encoder(batch.images)

    def loss(self, features: Tensor, batch: Batch) -> Tensor:  # []; the head and its BatchNorm see the whole batch
        with self.autocast(batch):
            rows = self.head(features)
        return ops.multi_positive_loss(rows, batch.labels, self._temperature, distributed.world())

    def autocast(self, batch: Batch) -> torch.autocast:
        return torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self._bf16)


def of_all_ranks(own: Tensor) -> Tensor:  # []
    """From the mean over this rank's rows, that over all rows, with the gradient that an objective's loss has."""
    if distributed.world_size() == 1:
        return own
    return own - own.detach() + distributed.mean_over_ranks(own.detach().clone())


def gather(rows: Tensor) -> Tensor:
    """The rows of every rank, by rank; as many on each. Without gradient."""
    if distributed.world_size() == 1:
        return rows.detach()
    gathered = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(distributed.world_size())]
    dist.all_gather(gathered, rows.detach().contiguous())
    return torch.cat(gathered)


def wide(rows: Tensor) -> Tensor:
    """float32 at least: sums over a batch need it."""
    return rows if rows.dtype == torch.float64 else rows.float()
