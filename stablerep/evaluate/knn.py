"""Nearest neighbours: the k most similar training photos vote for their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07  # of the neighbours' votes
BLOCK_ELEMENTS = 32 * 2**20  # similarities held at once: 128 MiB of float32
TRAIN_BLOCK = 2**15  # training photos compared at once: of 1.3 million, 2**17 took a gigabyte more


@torch.no_grad()
def knn_top1(
    train_x: Tensor,  # [N, D]
    train_y: Tensor,  # [N] int64 in 0..classes-1
    test_x: Tensor,  # [M, D]
    test_y: Tensor,  # [M]
    classes: int,
    neighbours: Sequence[int] = NEIGHBOURS,
    block_elements: int = BLOCK_ELEMENTS,
) -> Tensor:  # [len(neighbours)] percent
    """Nearest neighbours: each of the k most similar training photos votes for its label with exp(cosine / 0.07).

    k beyond N means all N.
    """
    right = torch.zeros(len(neighbours), device=train_x.device)
    for rows, votes in knn_votes(train_x, train_y, test_x, classes, neighbours, block_elements):
        right += (votes.argmax(-1) == test_y[rows]).sum(-1)
    return 100 * right / len(test_x)


@torch.no_grad()
def knn_votes(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    classes: int,
    neighbours: Sequence[int],
    block_elements: int = BLOCK_ELEMENTS,
    hidden: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor]]:  # rows of test_x, [len(neighbours), B, classes]
    """The votes for each class, some test photos at a time."""
    for rows, similarity, nearest in nearest_of(train_x, test_x, max(neighbours), block_elements, hidden):
        weights = (similarity / TEMPERATURE).exp()
        votes = weights.new_zeros(len(neighbours), len(weights), classes)
        for each, k in zip(votes, neighbours, strict=True):
            each.scatter_add_(1, train_y[nearest[:, :k]], weights[:, :k])
        yield rows, votes


@torch.no_grad()
def nearest_of(
    train_x: Tensor,
    test_x: Tensor,
    most: int,
    block_elements: int = BLOCK_ELEMENTS,
    hidden: Tensor | None = None,  # [N] bool, training photos that are no one's neighbour: their cosine is -inf
) -> Iterator[tuple[slice, Tensor, Tensor]]:  # rows of test_x, cosine [B, most], rows of train_x [B, most]
    """The most similar training photos by cosine, most alike first. Reads both in blocks: they may lie in files."""
    most = min(most, len(train_x))
    block = max(1, block_elements // min(len(train_x), TRAIN_BLOCK))
    whole = _unit(train_x) if len(train_x) <= TRAIN_BLOCK else None
    for start in range(0, len(test_x), block):
        asked = _unit(test_x[start : start + block])
        best: Tensor | None = None
        rows = torch.zeros(0, dtype=torch.int64, device=train_x.device)
        for first in range(0, len(train_x), TRAIN_BLOCK):
            some = whole if whole is not None else _unit(train_x[first : first + TRAIN_BLOCK])
            similarity = asked @ some.T
            if hidden is not None:
                similarity.masked_fill_(hidden[first : first + TRAIN_BLOCK], -torch.inf)
            similarity, found = similarity.topk(min(most, len(some)))
            if best is None:
                best, rows = similarity, found
            else:
                joined, joined_rows = torch.cat([best, similarity], 1), torch.cat([rows, found + first], 1)
                best, order = joined.topk(min(most, joined.shape[1]))
                rows = joined_rows.gather(1, order)
        assert best is not None
        yield slice(start, start + len(asked)), best, rows


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x if x.dtype == torch.float64 else x.float())
