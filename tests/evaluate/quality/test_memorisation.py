"""What is taken for memorised, and how many fresh photos would be."""

from __future__ import annotations

import pytest
import torch

from stablerep.evaluate.quality.memorisation import COPY, find_memorised
from tests.evaluate.quality.conftest import Sides


def fresh(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def test_copies_are_found_with_their_photo(sides: Sides) -> None:
    synthetic = sides.synthetic.clone()
    synthetic[5], synthetic[9] = sides.real[123], sides.real[7] * 1.001
    found = find_memorised(sides.real, synthetic, block_elements=5_000)
    assert found.memorised[[5, 9]].all() and found.nearest[[5, 9]].tolist() == [123, 7]
    assert found.similarity[5] > COPY and found.memorised.sum() < 6


@pytest.mark.parametrize("quantile", [0.99, 0.9])
def test_threshold_lets_through_as_many_fresh_photos_as_it_says(quantile: float) -> None:
    found = find_memorised(fresh(4000, 0), fresh(4000, 1), quantile)
    assert found.memorised.double().mean().item() == pytest.approx(found.expected_share, rel=0.4)


def test_photos_held_twice_do_not_hide_what_is_memorised() -> None:
    training = fresh(2000, 0)
    doubled = torch.cat([training, training[:300]])
    assert find_memorised(doubled, fresh(10, 1)).threshold == pytest.approx(
        find_memorised(training, fresh(10, 1)).threshold, abs=0.005
    )
    all_doubled = find_memorised(training.repeat(2, 1), torch.cat([fresh(10, 1), training[:1]]))
    assert all_doubled.threshold == COPY and all_doubled.memorised.tolist() == [False] * 10 + [True]


def test_one_photo_sets_no_threshold() -> None:
    with pytest.raises(ValueError, match="two training photos"):
        find_memorised(fresh(1, 0), fresh(3, 1))
