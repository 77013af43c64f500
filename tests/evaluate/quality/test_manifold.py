"""Precision, recall, density and coverage against prdc, in blocks of any size, and what they hold of memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import prdc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerep.evaluate.quality.manifold import Manifold, manifold, nearest
from tests.evaluate.quality.conftest import Sides


def numbers(found: Manifold) -> dict[str, float]:
    return {name: getattr(found, name)() for name in ("precision", "recall", "density", "coverage")}


@pytest.mark.parametrize("neighbours", [1, 3, 5, 30])
@pytest.mark.parametrize("block_elements", [1, 9_999, 2**25])
def test_numbers_are_those_of_prdc(sides: Sides, neighbours: int, block_elements: int) -> None:
    theirs = prdc.compute_prdc(sides.real.double().numpy(), sides.synthetic.double().numpy(), neighbours)
    ours = numbers(manifold(sides.real, sides.synthetic, neighbours, block_elements))
    assert ours == pytest.approx(theirs, rel=1e-3)


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 30), st.integers(3, 30), st.integers(1, 5), st.integers(0, 1000))
def test_odd_sizes(n: int, m: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    real, synthetic = random.normal(size=(n, width)), random.normal(size=(m, width)) * 1.3
    theirs = prdc.compute_prdc(real, synthetic, 1)
    ours = numbers(manifold(torch.from_numpy(real), torch.from_numpy(synthetic), 1, block_elements=17))
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_far_from_zero_the_distances_stay_exact(sides: Sides) -> None:
    ours = numbers(manifold(sides.real + 100, sides.synthetic + 100, 5))
    assert ours == pytest.approx(numbers(manifold(sides.real, sides.synthetic, 5)), rel=0.01)


def test_same_distribution_reaches_what_is_known(sides: Sides) -> None:
    found = manifold(sides.real[:350], sides.real[350:], 5)
    assert found.density() == pytest.approx(1, abs=0.15)
    assert found.coverage() == pytest.approx(1 - 0.5**5, abs=0.03)  # Naeem et al., equal sizes


def test_rows_are_those_of_a_class(sides: Sides) -> None:
    found = manifold(sides.real, sides.synthetic, 3)
    rows = torch.arange(100)
    parts = [found.precision(rows), found.precision(torch.arange(100, 450))]
    assert found.precision() == pytest.approx((100 * parts[0] + 350 * parts[1]) / 450)


def test_nearest_names_no_row_as_its_own(sides: Sides) -> None:
    distances, rows = nearest(sides.real, sides.real, 4, exclude_self=True, block_elements=5_000)
    assert (rows != torch.arange(700)[:, None]).all() and (distances.diff(dim=1) >= 0).all()
    exact = torch.cdist(sides.real.double(), sides.real.double()).fill_diagonal_(torch.inf).square()
    assert torch.allclose(distances.double(), exact.topk(4, largest=False).values, rtol=1e-4, atol=1e-5)


def test_too_few_are_refused(sides: Sides) -> None:
    with pytest.raises(ValueError, match="k=5"):
        manifold(sides.real, sides.synthetic[:5], 5)


def test_memory_is_that_of_a_block() -> None:
    """8,000 x 8,000 distances are 256 MB; in blocks of 8 MB all of it takes less than a third of that."""
    program = """
import resource, torch
from stablerep.evaluate.quality.manifold import manifold
from stablerep.evaluate.quality.memorisation import find_memorised
real, synthetic = torch.randn(8000, 16), torch.randn(8000, 16)
manifold(real[:100], synthetic[:100], 5), find_memorised(real[:100], synthetic[:100])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
manifold(real, synthetic, 5, 2 * 2**20)
find_memorised(real, synthetic, block_elements=2 * 2**20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 80, f"{run.stdout} MiB"
