"""What screening sees, and what it does not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn
from torch import Tensor

from stablerep.generate.screen import BatchQuality, Limits, PictureQuality, judge, measure


def smooth(seed: int, side: int = 64) -> np.ndarray:
    corners = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(corners).resize((side, side), Image.Resampling.BICUBIC))


def quality_of(*pictures: np.ndarray) -> list[PictureQuality]:
    pixels = torch.from_numpy(np.stack(pictures))
    return measure(torch.zeros(len(pixels), 3, 2, 2), pixels).split()


def distance(one: PictureQuality, other: PictureQuality) -> int:
    return (one.phash ^ other.phash).bit_count()


def test_near_duplicates_are_near_and_others_far() -> None:
    picture = smooth(0)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=60)
    jpeg = np.asarray(Image.open(buffer))
    darker = (picture * 0.8).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(picture).resize((40, 40)).resize((64, 64)))
    original, *near = quality_of(picture, jpeg, darker, smaller)
    assert all(distance(original, each) <= 4 for each in near)
    others = quality_of(*[smooth(seed) for seed in range(1, 20)], picture[:, ::-1].copy())
    assert min(distance(original, each) for each in others) >= 12


def test_the_hash_is_the_sign_of_the_cosine_transform() -> None:
    picture = smooth(3, side=32)  # no resizing: scipy is the oracle
    grey = picture @ np.array([0.299, 0.587, 0.114])
    waves = dctn(grey, norm="ortho")[:8, :8].ravel()
    expected = sum(1 << bit for bit in range(1, 64) if waves[bit] > np.sort(waves[1:])[31])
    (found,) = quality_of(picture)
    assert found.phash == expected
    assert found.contrast == pytest.approx(grey.std(), rel=1e-4)


def test_flat_and_non_finite() -> None:
    pixels = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    pixels[1] = torch.from_numpy(smooth(1, side=16))
    pixels[2:] = pixels[1]
    decoded = torch.zeros(4, 3, 16, 16, dtype=torch.float16)
    decoded[2, 1, 7, 7] = float("nan")
    decoded[3, 0, 0, 0] = float("inf")
    pictures = measure(decoded, pixels).split()
    assert judge(pictures, Limits(flat_below=4, duplicate_within=2)) == ["flat", "", "non-finite", "non-finite"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(1, 7))
def test_quality_does_not_depend_on_the_batch(seeds: list[int], batch: int) -> None:
    pictures = [smooth(seed, side=24) for seed in seeds]
    together = quality_of(*pictures)
    apart = [each for at in range(0, len(pictures), batch) for each in quality_of(*pictures[at : at + batch])]
    assert [each.phash for each in together] == [each.phash for each in apart]
    assert [each.contrast for each in together] == pytest.approx([each.contrast for each in apart], rel=1e-5)


@given(st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 3, 7]), max_size=12), st.integers(-1, 64))
def test_later_pictures_never_change_an_earlier_verdict(hashes: list[int], within: int) -> None:
    pictures, limits = [PictureQuality(True, 50.0, value) for value in hashes], Limits(4.0, within)
    reasons = judge(pictures, limits)
    for count in range(len(pictures)):
        assert judge(pictures[:count], limits) == reasons[:count]
    good = [picture for picture, why in zip(pictures, reasons, strict=True) if not why]
    assert all(distance(a, b) > within for i, a in enumerate(good) for b in good[:i])
    for at, why in enumerate(reasons):  # and every duplicate has an earlier good one that it is near
        assert bool(why) == any(distance(pictures[at], pictures[j]) <= within for j in range(at) if not reasons[j])


def test_a_hash_with_its_highest_bit_survives_the_way_to_the_host() -> None:
    top = Tensor([-(2**63)]).long()
    one = torch.tensor([1.0])
    (found,) = BatchQuality(torch.tensor([True]), one, top, one, one).split()
    assert found.phash == 2**63
