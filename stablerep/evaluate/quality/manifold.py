"""Where synthetic pictures lie among real ones: precision, recall, density, coverage, by nearest neighbours in blocks.

A picture's ball reaches to its k-th nearest neighbour in its own set. Precision and recall are of Kynkäänniemi et al.
(2019, arXiv 1904.06991), density and coverage of Naeem et al. (2020, arXiv 2002.09797).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_ELEMENTS = 32 * 2**20  # distances held at once: 128 MiB of float32


@dataclass(frozen=True)
class Manifold:
    """Per picture, so that classes and prompts can be looked at without another pass."""

    real_balls: Tensor  # [M] int64: in how many real photos' balls each synthetic picture lies
    in_synthetic: Tensor  # [N] bool: whether each real photo lies in the ball of a synthetic picture
    covered: Tensor  # [N] bool: whether each real photo's ball holds a synthetic picture
    neighbours: int

    def precision(self, rows: Tensor | slice = slice(None)) -> float:
        """The share of synthetic pictures that look like real photos."""
        return (self.real_balls[rows] > 0).double().mean().item()

    def recall(self, rows: Tensor | slice = slice(None)) -> float:
        """The share of real photos that the synthetic set could show."""
        return self.in_synthetic[rows].double().mean().item()

    def density(self, rows: Tensor | slice = slice(None)) -> float:
        """How deep among real photos synthetic pictures lie: 1 as deep as real photos do, not bounded."""
        return self.real_balls[rows].double().mean().item() / self.neighbours

    def coverage(self, rows: Tensor | slice = slice(None)) -> float:
        """The share of real photos that have a synthetic picture among them and their k nearest."""
        return self.covered[rows].double().mean().item()


@torch.no_grad()
def manifold(
    real: Tensor,  # [N, D] float
    synthetic: Tensor,  # [M, D]
    neighbours: int = 5,
    block_elements: int = BLOCK_ELEMENTS,
) -> Manifold:
    """Each distance is computed twice within a set and once between them; block_elements are held at once.

    Raises:
        ValueError: a set of no more than k rows.
    """
    if min(len(real), len(synthetic)) <= neighbours:
        raise ValueError(f"each set needs more than k={neighbours} rows, got {len(real)} and {len(synthetic)}")
    centre = real.mean(0)  # distances stay, and what cancels in float32 becomes small
    real, synthetic = real - centre, synthetic - centre
    real_radius = nearest(real, real, neighbours, exclude_self=True, block_elements=block_elements)[0][:, -1]
    radius = nearest(synthetic, synthetic, neighbours, exclude_self=True, block_elements=block_elements)[0][:, -1]
    balls = torch.zeros(len(synthetic), dtype=torch.int64, device=real.device)
    reached, covered = [], []
    norms = synthetic.square().sum(1)
    block = max(1, block_elements // len(synthetic))
    for rows, radii in zip(real.split(block), real_radius.split(block), strict=True):
        distance = squared_distances(rows, synthetic, norms)
        reached.append((distance < radius).any(1))
        covered.append(distance.amin(1) < radii)
        balls += (distance < radii[:, None]).sum(0)
    return Manifold(balls, torch.cat(reached), torch.cat(covered), neighbours)


@torch.no_grad()
def nearest(
    asking: Tensor,  # [N, D] float
    answering: Tensor,  # [M, D]
    count: int,
    *,
    exclude_self: bool = False,
    block_elements: int = BLOCK_ELEMENTS,
) -> tuple[Tensor, Tensor]:  # [N, count] squared distances, nearest first; [N, count] int64 which rows
    """The nearest rows. exclude_self: both are the same set, and no row is its own neighbour."""
    norms = answering.square().sum(1)
    block = max(1, block_elements // len(answering))
    found = []
    for start in range(0, len(asking), block):
        distance = squared_distances(asking[start : start + block], answering, norms)
        if exclude_self:
            distance.diagonal(start).fill_(torch.inf)
        found.append(distance.topk(count, largest=False))
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def squared_distances(rows: Tensor, others: Tensor, norms: Tensor) -> Tensor:  # [B, D], [M, D], [M] -> [B, M]
    """|x - y|^2 by one product; norms are the squares of others."""
    distance = torch.addmm(norms, rows, others.T, alpha=-2)
    return distance.add_(rows.square().sum(1, keepdim=True)).clamp_min_(0)
