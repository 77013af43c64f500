"""Which patches of a picture are hidden from the student of iBOT: blocks, drawn by the seed, the step and the row."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stablerep.data.sampling import MASKS, random_stream

SHARE = (0.1, 0.5)  # of the patches of a picture that is masked at all; every other one of a batch is
ASPECT = 0.3  # of a block, and its inverse
LEAST_BLOCK = 4.0  # patches


def masked_patches(seed: int, step: int, rows: range, grid: tuple[int, int]) -> NDArray[np.int64]:
    """Flat indices into [len(rows), height * width] of what is masked; rows count over all ranks.

    Every other row is masked, in the next step the others: half of them without leaving it to chance.
    """
    patches = grid[0] * grid[1]
    found = [
        np.flatnonzero(_blocks(random_stream(seed, MASKS, step, row), *grid)) + place * patches
        for place, row in enumerate(rows)
        if (row + step) % 2 == 0
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _blocks(random: np.random.Generator, height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), bool)
    wanted = max(1, round(random.uniform(*SHARE) * mask.size))
    while (left := wanted - int(mask.sum())) > 0:
        area = random.uniform(min(LEAST_BLOCK, left), left)
        aspect = math.exp(random.uniform(math.log(ASPECT), -math.log(ASPECT)))
        tall = min(height, max(1, round(math.sqrt(area * aspect))))
        wide = min(width, max(1, round(math.sqrt(area / aspect))))
        top, start = random.integers(height - tall + 1), random.integers(width - wide + 1)
        mask[top : top + tall, start : start + wide] = True
    return mask
