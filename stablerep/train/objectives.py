"""What is trained: an encoder, what stands on it, and the loss over the rows of all ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stablerep import distributed, ops
from stablerep.data.loader import Batch
from stablerep.models import ProjectionHead, batch_norm
from stablerep.train.config import TrainConfig


class Contrastive(nn.Module):
    """The multi-positive contrastive loss of an encoder's features behind a head; SimCLR's where the labels say so.

    The head and its BatchNorm see the whole batch of all ranks, whatever the encoder saw at once.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, temperature: float, *, bf16: bool) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self._temperature, self._bf16 = temperature, bf16

    def forward(self, batch: Batch) -> Tensor:  # [] the loss, float32
        return self.loss(self.features(batch), batch)

    def features(self, batch: Batch) -> Tensor:  # [B, F]
        with self._autocast(batch):
            return self.encoder(batch.images)

    def loss(self, features: Tensor, batch: Batch) -> Tensor:  # []
        with self._autocast(batch):
            rows = self.head(features)
        return ops.multi_positive_loss(rows, batch.labels, self._temperature, distributed.world())

    def _autocast(self, batch: Batch) -> torch.autocast:
        return torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self._bf16)


def create_objective(encoder: nn.Module, config: TrainConfig, *, bf16: bool) -> Contrastive:
    """What config.objective asks for, with random weights besides the encoder's."""
    width: int = encoder.num_features  # type: ignore[assignment]
    head = ProjectionHead(width, config.head_hidden, config.head_out)
    objective = Contrastive(encoder, head, config.temperature, bf16=bf16)
    batch_norm.over_ranks(objective)
    return objective
