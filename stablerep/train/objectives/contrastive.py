"""The multi-positive contrastive loss: StableRep's, and SimCLR's and SupCon's where the labels say so."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from stablerep import distributed, ops
from stablerep.data.loader import Batch
from stablerep.models import ProjectionHead
from stablerep.train.config import TrainConfig

NEIGHBOUR_ROWS = 1024  # whose cosines with the rows of all ranks are held at once
KOLEO_EPSILON = 1e-8  # DINOv2's: rows of one place have a finite gradient


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
        self._koleo_weight = config.synclr.koleo_weight

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
        loss = ops.multi_positive_loss(rows, batch.labels, self._temperature, distributed.world())
        return self.add_koleo(loss, features, batch)

    def add_koleo(self, loss: Tensor, features: Tensor, batch: Batch) -> Tensor:  # []
        return loss + self._koleo_weight * koleo(features, batch.labels) if self._koleo_weight else loss

    def autocast(self, batch: Batch) -> torch.autocast:
        return torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self._bf16)


def koleo(features: Tensor, labels: Tensor) -> Tensor:  # [B, F] of any norm, [B] int64 -> []
    """Spread features: the mean of -log of the distance to the nearest one (Sablayrolles et al., arXiv 1806.03198).

    As DINOv2 has it, of what the encoder gives, at length 1. The nearest is sought among the rows of all ranks and
    stands still: each row moves away from it for itself. It has another label, as rows of one are to lie together:
    the nearest of all would nearly always be one of them. A row without any such counts as 0.
    """
    unit = functional.normalize(wide(features), dim=1)
    nearest, is_one = _nearest_of_other_labels(unit.detach(), labels)
    distance = functional.pairwise_distance(unit, nearest, eps=KOLEO_EPSILON)
    return of_all_ranks(-(distance + KOLEO_EPSILON).log().where(is_one, 0).mean())


def _nearest_of_other_labels(unit: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # [B, F], [B] whether there is one
    rows, row_labels = gather(unit), gather(labels)
    best = [
        (some @ rows.T).masked_fill_(their[:, None] == row_labels, -torch.inf).max(dim=1)
        for some, their in zip(unit.split(NEIGHBOUR_ROWS), labels.split(NEIGHBOUR_ROWS), strict=True)
    ]
    return rows[torch.cat([each.indices for each in best])], torch.cat([each.values for each in best]) > -torch.inf


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
