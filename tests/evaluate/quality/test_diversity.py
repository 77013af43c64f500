"""Vendi score against vendi-score, diversity of prompts against all pairs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from vendi_score import vendi

from stablerep.evaluate.quality.diversity import prompt_diversity, vendi_score
from tests.evaluate.quality.conftest import Sides


@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
@pytest.mark.parametrize("count", [1, 2, 39, 40, 41, 450])
def test_vendi_score_is_that_of_vendi_score(sides: Sides, count: int) -> None:
    x = sides.synthetic[:count]
    unit = functional.normalize(x.double()).numpy()
    assert vendi_score(x) == pytest.approx(vendi.score_K(unit @ unit.T), rel=1e-6)


def test_vendi_score_counts_what_is_different() -> None:
    assert vendi_score(torch.eye(9)) == pytest.approx(9)
    assert vendi_score(torch.eye(9).repeat(7, 1)) == pytest.approx(9)
    assert vendi_score(torch.ones(50, 9)) == pytest.approx(1)
    with pytest.raises(ValueError, match="no rows"):
        vendi_score(torch.empty(0, 9))


def test_prompt_diversity_is_that_of_all_pairs(sides: Sides) -> None:
    x, centre = sides.synthetic[:60], sides.real.mean(0)
    prompts = torch.randint(12, (60,), generator=torch.Generator().manual_seed(2))
    prompts[0] = 12  # a prompt of one picture
    unit = functional.normalize((x - centre).double())
    distance, pairs = 1 - unit @ unit.T, ~torch.eye(60, dtype=torch.bool)
    same = (prompts[:, None] == prompts) & pairs
    found = prompt_diversity(x, prompts, centre)
    assert found is not None
    assert found.within == pytest.approx(distance[same].mean().item())
    assert found.between == pytest.approx(distance[pairs & ~same].mean().item())
    own = same & (prompts == 3)[:, None]
    assert found.of_prompt[3].item() == pytest.approx(distance[own].mean().item())
    assert found.of_prompt[12].isnan()


def test_copies_and_strangers() -> None:
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(3))
    copies = prompt_diversity(x.repeat_interleave(4, 0), torch.arange(200).repeat_interleave(4), torch.zeros(64))
    strangers = prompt_diversity(x, torch.arange(200) // 4, torch.zeros(64))
    assert copies is not None and strangers is not None
    assert copies.ratio == pytest.approx(0, abs=1e-9)
    assert strangers.ratio == pytest.approx(1, abs=0.02)
    assert prompt_diversity(x, torch.arange(200), torch.zeros(64)) is None
    assert prompt_diversity(x, torch.zeros(200, dtype=torch.int64), torch.zeros(64)) is None
