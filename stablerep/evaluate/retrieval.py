"""Retrieval: each test photo asks for its likes among the training photos; mean average precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablerep.evaluate.knn import nearest_of

BLOCK_ELEMENTS = 16 * 2**20
RESAMPLES = 1_000


@torch.no_grad()
def retrieve(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, seed: int) -> dict[str, Any]:
    """mAP over the whole ranking by cosine, percent, with a 95 % bootstrap interval over the asking photos.

    The average precision of a photo is the mean, over the training photos of its class, of the share of its class down
    to that one in the ranking (scikit-learn's average_precision_score).
    """
    precisions = average_precisions(train_x, train_y, test_x, test_y).cpu().numpy()
    random = np.random.default_rng(seed)
    means = [precisions[random.integers(0, len(precisions), len(precisions))].mean() for _ in range(RESAMPLES)]
    return {
        "retrieval_map": 100 * float(precisions.mean()),
        "retrieval_map_ci95": 50 * float(np.subtract(*np.percentile(means, (97.5, 2.5)))),
    }


@torch.no_grad()
def average_precisions(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> Tensor:  # [M] float64
    found = []
    places = torch.arange(1, len(train_x) + 1, device=train_x.device)
    for rows, _, ranked in nearest_of(train_x, test_x, len(train_x), BLOCK_ELEMENTS):
        relevant = train_y[ranked] == test_y[rows, None]
        precision = relevant.cumsum(1) / places
        found.append((precision * relevant).double().sum(1) / relevant.sum(1).clamp(min=1))
    return torch.cat(found)
