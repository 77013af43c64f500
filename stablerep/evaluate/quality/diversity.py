"""How varied pictures are: in all (Vendi score), and among those of one prompt beside those of different ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 8192  # rows in float64 at once


@torch.no_grad()
def vendi_score(x: Tensor) -> float:  # [N, D] float
    """How many wholly different pictures would be as varied: exp of the entropy of the cosine kernel's eigenvalues.

    Friedman and Dieng (2023, arXiv 2210.02410). 1: all features point one way; N: each is at a right angle to all
    others. The kernel [N, N] has the eigenvalues of the [D, D] matrix of the normalised features; the smaller is taken.

    Raises:
        ValueError: no rows.
    """
    n, width = x.shape
    if not n:
        raise ValueError("there are no rows")
    if n <= width:
        rows = functional.normalize(x.double())
        product = rows @ rows.T
    else:
        product = x.new_zeros(width, width, dtype=torch.float64)
        for block in x.split(BLOCK):
            rows = functional.normalize(block.double())
            product.addmm_(rows.T, rows)
    shares = torch.linalg.eigvalsh(product / n).clamp_min(0)
    return torch.special.entr(shares).sum().exp().item()


@dataclass(frozen=True)
class PromptDiversity:
    """Mean cosine distances (0: the same direction, 1: at a right angle) of centred features."""

    of_prompt: Tensor  # [P] float64 among the pictures of each; nan where it has one
    within: float  # among pictures of one prompt, over all pairs
    between: float  # among pictures of different prompts, over all pairs

    @property
    def ratio(self) -> float:
        """0: a prompt's pictures are copies of each other; 1: they differ as those of different prompts do."""
        return self.within / self.between


@torch.no_grad()
def prompt_diversity(x: Tensor, prompts: Tensor, centre: Tensor) -> PromptDiversity | None:  # [N, D], [N] int64, [D]
    """Distances over all pairs, from the sums of normalised features: their square holds every pair's cosine.

    centre is what is taken off first, the mean of the real photos, else what all pictures share makes all alike.
    None: no prompt has two pictures, or there is one prompt.
    """
    count = int(prompts.max()) + 1
    sums = x.new_zeros(count, x.shape[1], dtype=torch.float64)
    squares = x.new_zeros(count, dtype=torch.float64)  # 1 each, and 0 of a picture that is the centre itself
    for rows, of in zip(x.split(BLOCK), prompts.split(BLOCK), strict=True):
        unit = functional.normalize(rows.double() - centre)
        sums.index_add_(0, of, unit)
        squares.index_add_(0, of, unit.square().sum(1))
    sizes = torch.bincount(prompts, minlength=count).double()
    pairs = sizes * (sizes - 1)  # ordered pairs
    cosines = sums.square().sum(1) - squares
    all_pairs = len(x) ** 2 - sizes.square().sum()
    if not pairs.sum() or not all_pairs:
        return None
    between = (sums.sum(0).square().sum() - sums.square().sum()) / all_pairs
    return PromptDiversity(1 - cosines / pairs, 1 - (cosines.sum() / pairs.sum()).item(), 1 - between.item())
