"""What the flags of augmentation mean."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stablerep.config import UserError
from stablerep.data.augment import AugmentConfig
from stablerep.ops import AugmentSpec

MEAN, STD = AugmentSpec.mean, AugmentSpec.std


def test_the_defaults_are_the_recipe() -> None:
    assert AugmentConfig().spec(224, MEAN, STD, seed=7) == AugmentSpec(seed=7)


def test_each_flag_reaches_the_spec() -> None:
    config = AugmentConfig(min_scale=0.5, jitter=0.1, jitter_strength=0.5, grey=0.3, blur=0.2, flip=0.6, downsample=0.4)
    spec = config.spec(112, MEAN, STD, seed=0)
    assert spec == replace(
        AugmentSpec(image_size=112), scale=(0.5, 1.0), jitter=0.1, brightness=0.2, contrast=0.2, saturation=0.2,
        hue=0.05, grey=0.3, blur=0.2, blur_sigma=(0.05, 1.0), flip=0.6, downsample=0.4,
    )  # fmt: skip


def test_the_blur_of_large_pictures_stays_within_the_op_s() -> None:
    assert AugmentConfig(jitter_strength=2.5).spec(2048, MEAN, STD, seed=0).blur_sigma[1] == 8


@pytest.mark.parametrize("fields", [{"grey": 1.1}, {"min_scale": 0.0}, {"jitter_strength": 3.0}])
def test_what_is_no_probability_or_size_is_refused(fields: dict[str, float]) -> None:
    (name,) = fields
    with pytest.raises(UserError, match="--" + name.replace("_", "-")):
        AugmentConfig(**fields)
