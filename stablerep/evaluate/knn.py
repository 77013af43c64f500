"""Nearest neighbours: the label is voted by the training photos that look most alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
BLOCK_ELEMENTS = 32 * 2**20  # similarities held at once: 128 MiB of float32


@torch.no_grad()
def top1(
    train_x: Tensor,  # [N, D]
    train_y: Tensor,  # [N] int64 in 0..classes-1
    test_x: Tensor,  # [M, D]
    test_y: Tensor,  # [M]
    classes: int,
    neighbours: Sequence[int] = NEIGHBOURS,
) -> Tensor:  # [len(neighbours)] percent
    """Each of the k most similar training photos votes with exp(cosine / 0.07); k beyond N means all N."""
    train_x, test_x = F.normalize(train_x), F.normalize(test_x)
    most = min(max(neighbours), len(train_x))
    right = torch.zeros(len(neighbours), device=train_x.device)
    block = max(1, BLOCK_ELEMENTS // len(train_x))
    for rows, labels in zip(test_x.split(block), test_y.split(block), strict=True):
        similarity, nearest = (rows @ train_x.T).topk(most)  # [B, most], most alike first
        votes = (similarity / TEMPERATURE).exp()
        for i, k in enumerate(neighbours):
            tally = votes.new_zeros(len(rows), classes)
            tally.scatter_add_(1, train_y[nearest[:, :k]], votes[:, :k])
            right[i] += (tally.argmax(1) == labels).sum()
    return 100 * right / len(test_x)
