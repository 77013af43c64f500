"""The noise of pictures that need not share a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stablerep import ops
from stablerep.generate.transfer import up

MOST_INDICES = 2**20  # pictures of a prompt; the other 12 of the counter's 32 bits number the draws
MOST_DRAWS = 2**12


def picture_noise(
    seeds: int | Sequence[int],  # one, or [B]
    prompt_ids: Tensor,  # [B] int64
    indices: Tensor,  # [B] int64, 0 .. 2^20 - 1
    shape: tuple[int, ...],  # of one picture
    device: torch.device,
    draw: int = 0,  # 0 is what a picture starts from; a stochastic scheduler draws 1, 2, ... on the way
) -> Tensor:  # [B, *shape] float32
    """Normal noise, for each picture a pure function of (seed, prompt id, index, draw)."""
    assert 0 <= draw < MOST_DRAWS, draw
    prompt_ids, indices = up(prompt_ids, device), up(indices, device) + draw * MOST_INDICES
    if isinstance(seeds, int):
        return ops.philox_normal(seeds, prompt_ids, indices, shape, device=device)
    if len(set(seeds)) == 1:
        return ops.philox_normal(seeds[0], prompt_ids, indices, shape, device=device)
    noise = torch.empty(len(seeds), *shape, device=device)
    for seed in dict.fromkeys(seeds):
        rows = up(torch.tensor([row for row, own in enumerate(seeds) if own == seed]), device)
        part = ops.philox_normal(seed, prompt_ids[rows], indices[rows], shape, device=device)
        noise.index_copy_(0, rows, part)
    return noise
