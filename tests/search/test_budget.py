"""A budget is not overspent, however many workers there are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerep.config import UserError, from_fields
from stablerep.search.budget import Budget, Cost, budget_of
from stablerep.search.config import SearchConfig


@given(st.data(), st.integers(1, 3000), st.integers(1, 300), st.integers(1, 4))
def test_pictures_are_never_overspent(data: st.DataObject, limit: int, most: int, workers: int) -> None:
    budget = Budget(limit, math.inf, 50, most, None)
    ended: list[Cost] = []
    at_work: list[int] = []
    for _ in range(200):
        if len(at_work) < workers and budget.allows(ended, len(at_work)):
            at_work.append(data.draw(st.integers(1, most)))
        elif at_work:
            ended.append(Cost(at_work.pop(0), 1.0))
        else:
            break
    spent = sum(cost.images for cost in ended)
    assert spent + sum(at_work) <= limit and len(ended) + len(at_work) <= 50
    if not at_work and len(ended) < 50:
        assert spent + most > limit  # none that surely fits was left out


def test_seconds_count_the_dearest_trial_so_far() -> None:
    budget = Budget(math.inf, 100.0, math.inf, 10, None)
    assert budget.allows([], 0)
    assert budget.allows([Cost(1, 30.0), Cost(1, 20.0)], 0) and not budget.allows([Cost(1, 30.0), Cost(1, 20.0)], 1)
    assert not budget.allows([Cost(1, 30.0), Cost(1, 45.0)], 0)
    assert not budget.allows([Cost(1, 100.0)], 0)


def test_dollars_are_seconds_at_a_price() -> None:
    fields = {"prompts": "p", "real": "r", "out": "o", "budget_usd": 2.0, "usd_per_hour": 4.0, "budget_seconds": 3600.0}
    budget = budget_of(from_fields(SearchConfig, fields), 10)
    assert budget.seconds == 1800
    assert budget.left([Cost(5, 900.0)]) == "left: 900 s, $1.00"
    assert budget.trials_of(Cost(5, 400.0)) == 4


def test_fewer_pictures_than_a_trial_paints_is_one_line() -> None:
    config = from_fields(SearchConfig, {"prompts": "p", "real": "r", "out": "o", "budget_pictures": 99})
    with pytest.raises(UserError, match="--budget-pictures 99 is less than the 100 pictures that one trial may paint"):
        budget_of(config, 100)
    assert budget_of(config, 99).allows([], 0)
