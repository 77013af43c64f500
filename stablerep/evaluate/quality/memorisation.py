"""Synthetic pictures that are too near to a training photo, by a threshold that real photos set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stablerep.evaluate.quality.manifold import BLOCK_ELEMENTS, nearest

COPY = 1 - 1e-5  # a similarity from which on two pictures are the same, to float32's rounding


@dataclass(frozen=True)
class Memorisation:
    """Similarity is the cosine of features less the training photos' mean: 1 the same picture, 0 nothing in common."""

    threshold: float
    similarity: Tensor  # [M] float32 of each synthetic picture and its nearest training photo
    nearest: Tensor  # [M] int64 which training photo that is
    expected_share: float  # of fresh real photos that would be above the threshold too

    @property
    def memorised(self) -> Tensor:  # [M] bool
        return (self.similarity > self.threshold) | (self.similarity >= COPY)


@torch.no_grad()
def find_memorised(
    training: Tensor,  # [N, D] float
    synthetic: Tensor,  # [M, D]
    quantile: float = 0.999,
    block_elements: int = BLOCK_ELEMENTS,
) -> Memorisation:
    """Each synthetic picture's nearest training photo, and whether it is nearer than real photos are to each other.

    The threshold is a quantile of the similarities of each training photo and its nearest other one, so of fresh real
    photos one in 1 / (1 - quantile) would be taken for memorised too: only more of them than that are a sign. Photos
    that the training set holds twice set no threshold; of fewer than 1 / (1 - quantile) photos it is about the nearest
    pair. A copy counts in any case.

    Raises:
        ValueError: fewer than two training photos.
    """
    if len(training) < 2:
        raise ValueError(f"a threshold needs two training photos, got {len(training)}")
    centre = training.mean(0)
    training, synthetic = functional.normalize(training - centre), functional.normalize(synthetic - centre)
    among, _ = nearest(training, training, 1, exclude_self=True, block_elements=block_elements)
    distances, which = nearest(synthetic, training, 1, block_elements=block_elements)
    among_real = (1 - among[:, 0].double() / 2).cpu().numpy()
    distinct = among_real[among_real < COPY]
    threshold = float(np.quantile(distinct, quantile)) if len(distinct) else COPY
    return Memorisation(threshold, 1 - distances[:, 0] / 2, which[:, 0], 1 - quantile)
