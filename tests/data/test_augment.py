"""The numbers drawn for each picture."""

from __future__ import annotations

import numpy as np
import pytest

from stablerep.config import UserError
from stablerep.data.augment import AugmentConfig, draw


def test_the_draws_have_the_recipe_s_ranges_and_probabilities() -> None:
    n = 20_000
    drawn = draw(AugmentConfig(), n, 224, seed=0, step=3)
    assert drawn.area.min() >= 0.08 and drawn.area.max() <= 1 and abs(drawn.area.mean() - 0.54) < 0.01
    grey = drawn.twist[:, 2] == 0
    assert abs(grey.mean() - 0.2) < 0.01
    jittered = drawn.twist[:, 0] != 1
    assert abs(jittered.mean() - 0.8) < 0.01
    assert 0.6 <= drawn.twist[~grey].min() < 0.61 and 1.39 < drawn.twist.max() <= 1.4
    assert -36 <= drawn.hue.min() < -35 and 35 < drawn.hue.max() <= 36 and (drawn.hue[~jittered] == 0).all()
    blurred = drawn.blur_window > 1
    assert abs(blurred.mean() - 0.5) < 0.01
    assert 0.1 <= drawn.blur_sigma.min() < 0.11 and 1.99 < drawn.blur_sigma.max() <= 2
    assert (drawn.blur_window[blurred] == 2 * np.ceil(3 * drawn.blur_sigma[blurred]) + 1).all()
    assert abs(drawn.mirror.mean() - 0.5) < 0.01


def test_the_draws_depend_on_seed_and_step_alone() -> None:
    first, again, other = (draw(AugmentConfig(), 8, 32, seed=5, step=step) for step in (7, 7, 8))
    np.testing.assert_array_equal(first.place, again.place)
    assert (first.place != other.place).all()


@pytest.mark.parametrize("fields", [{"grey": 1.1}, {"min_scale": 0.0}, {"jitter_strength": 3.0}])
def test_what_is_no_probability_or_size_is_refused(fields: dict[str, float]) -> None:
    (name,) = fields
    with pytest.raises(UserError, match="--" + name.replace("_", "-")):
        AugmentConfig(**fields)
