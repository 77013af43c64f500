"""How far two distributions of features are from each other: Fréchet distance and kernel distance (FID and KID)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 8192  # rows in float64 at once


def frechet_distance(a: Tensor, b: Tensor) -> float:  # [N, D], [M, D] float
    """|mean a - mean b|^2 + tr(A + B - 2 sqrt(A B)) of Gaussians with the sets' means and covariances A, B, in float64.

    It is FID (Heusel et al. 2017, arXiv 1706.08500) where the features are Inception's. 0: equal mean and covariance.
    With few pictures it is too high: by about the trace of a covariance times its rank over the number of pictures.

    Raises:
        ValueError: fewer than two rows in a set, or other widths.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"two sets of two or more rows of one width are needed, got {list(a.shape)}, {list(b.shape)}")
    mean_a, mean_b = _mean(a), _mean(b)
    factor_a, factor_b = _factor(a, mean_a), _factor(b, mean_b)
    # With A = F'F and B = G'G the root's trace is the sum of the singular values of F G', whose squares would round.
    cross = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    apart = (mean_a - mean_b).square().sum() + factor_a.square().sum() + factor_b.square().sum()
    return max(0.0, (apart - 2 * cross).item())


@dataclass(frozen=True)
class KernelDistance:
    mean: float
    std: float  # over the subsets
    subset_size: int


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """The squared maximum mean discrepancy under the kernel (x·y / D + 1)^3, unbiased, a mean over drawn subsets.

    It is KID (Binkowski et al. 2018, arXiv 1801.01401) where the features are Inception's. 0: no difference; below 0 by
    chance. subset_size is at most the smaller set. The draws are torch-fidelity's for rng_seed=seed.

    Raises:
        ValueError: a subset of fewer than two rows.
    """
    size = min(subset_size, len(a), len(b))
    if size < 2:
        raise ValueError(f"a subset needs two rows, got {size}")
    random = np.random.RandomState(seed)  # whose stream numpy keeps for good
    drawn = a.new_empty(subsets, dtype=torch.float64)
    for subset in range(subsets):
        rows_a, rows_b = (random.choice(len(x), size, replace=False) for x in (a, b))
        drawn[subset] = _discrepancy(a[torch.from_numpy(rows_a).to(a.device)], b[torch.from_numpy(rows_b).to(b.device)])
    return KernelDistance(drawn.mean().item(), drawn.std(unbiased=False).item(), size)


def _discrepancy(a: Tensor, b: Tensor) -> Tensor:  # [n, D], [n, D] -> [] float64
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        # The product in float32, whose errors cancel in the mean; what is subtracted below in float64.
        return ((x @ y.T).double() / x.shape[1] + 1) ** 3

    n = len(a)
    within = sum((each.sum() - each.diagonal().sum()) for each in (kernel(a, a), kernel(b, b))) / (n * (n - 1))
    return within - 2 * kernel(a, b).mean()


def _mean(x: Tensor) -> Tensor:  # [N, D] -> [D] float64
    return sum((rows.double().sum(0) for rows in x.split(BLOCK)), x.new_zeros((), dtype=torch.float64)) / len(x)


def _factor(x: Tensor, mean: Tensor) -> Tensor:  # [N, D] -> [min(N, D), D] float64
    """F with F'F = the covariance: of few rows these themselves."""
    if len(x) <= x.shape[1]:
        return (x.double() - mean) / (len(x) - 1) ** 0.5
    return _root(_covariance(x, mean))


def _covariance(x: Tensor, mean: Tensor) -> Tensor:  # [N, D] -> [D, D] float64
    covariance = mean.new_zeros(len(mean), len(mean))
    for rows in x.split(BLOCK):
        centred = rows.double() - mean
        covariance.addmm_(centred.T, centred)
    return covariance / (len(x) - 1)


def _root(covariance: Tensor) -> Tensor:  # [D, D] -> [D, D], symmetric
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
