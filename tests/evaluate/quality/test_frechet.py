"""Fréchet distance and KID against torch-fidelity, scipy and what is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from stablerep.evaluate.quality.frechet import frechet_distance, kernel_distance
from tests.evaluate.quality.conftest import Sides

KID = {
    "kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1,
    "verbose": False,
}  # fmt: skip


def by_scipy(a: Tensor, b: Tensor) -> float:
    means = [x.double().mean(0).numpy() for x in (a, b)]
    covariances = [np.cov(x.double().numpy(), rowvar=False) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize(("n", "m"), [(700, 450), (30, 450), (700, 20), (30, 20), (2, 3), (40, 41)])
def test_frechet_distance_is_that_of_scipy_and_torch_fidelity(sides: Sides, n: int, m: int) -> None:
    a, b = sides.real[:n], sides.synthetic[:m]  # 40 features: few rows and many take other ways
    found = frechet_distance(a, b)
    assert found == pytest.approx(by_scipy(a, b), rel=1e-5)
    stats = [fid_features_to_statistics(x.double()) for x in (a, b)]
    assert found == pytest.approx(
        fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"], rel=1e-5
    )
    assert found == pytest.approx(frechet_distance(b, a), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "width"), [(200, 150, 8), (40, 300, 16), (1000, 1000, 5)])
def test_frechet_distance_is_the_textbooks(n: int, m: int, width: int) -> None:
    draw = np.random.default_rng(n)
    a = draw.normal(size=(n, width)) @ draw.normal(size=(width, width))
    b = draw.normal(1, 2, size=(m, width)) @ draw.normal(size=(width, width))
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(one + other - 2 * scipy.linalg.sqrtm(one @ other).real)
    assert frechet_distance(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_fewer_pictures_than_features() -> None:
    a = torch.randn(6, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 3) == pytest.approx(9 * 50, rel=1e-9)  # the means alone
    wide = torch.cat([a, torch.zeros(6, 30)], 1)  # features that are always 0 change nothing
    b = torch.randn(7, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    padded = torch.cat([b, torch.zeros(7, 30)], 1)
    assert frechet_distance(wide, padded) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_frechet_distance_of_known_gaussians() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(200_000, 3, generator=generator)
    b = 2 * torch.randn(200_000, 3, generator=generator) + torch.tensor([1.0, 0.0, 0.0])
    assert frechet_distance(a, b) == pytest.approx(1 + 3 * (2 - 1) ** 2, rel=0.01)


def test_frechet_distance_far_from_zero_and_of_a_set_to_itself(sides: Sides) -> None:
    assert frechet_distance(sides.real, sides.real) < 1e-6
    near = frechet_distance(sides.real, sides.synthetic)
    far = frechet_distance((sides.real.double() + 1000).float(), (sides.synthetic.double() + 1000).float())
    assert far == pytest.approx(near, rel=1e-3)  # what float32 of such values keeps


@pytest.mark.parametrize("shape", [(1, 40), (5, 39)])
def test_frechet_distance_refuses(sides: Sides, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="two or more rows of one width"):
        frechet_distance(sides.real, torch.zeros(shape))


@pytest.mark.parametrize("size", [2, 63, 450])
def test_kernel_distance_is_that_of_torch_fidelity(sides: Sides, size: int) -> None:
    found = kernel_distance(sides.real, sides.synthetic, subsets=20, subset_size=size, seed=4)
    theirs = kid_features_to_metric(
        sides.real.double(), sides.synthetic.double(), kid_subsets=20, kid_subset_size=size, rng_seed=4, **KID
    )
    assert found.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3, abs=1e-6)
    assert found.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3, abs=1e-6)
    assert found.subset_size == size


def test_kernel_distance_of_one_distribution_is_none(sides: Sides) -> None:
    halves = kernel_distance(sides.real[:350], sides.real[350:], subset_size=200)
    apart = kernel_distance(sides.real, sides.synthetic + 1, subset_size=200)
    assert abs(halves.mean) < halves.std and abs(halves.mean) < 0.01 * apart.mean
    with pytest.raises(ValueError, match="two rows"):
        kernel_distance(sides.real, sides.synthetic[:1])
