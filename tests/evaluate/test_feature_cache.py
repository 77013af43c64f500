"""Features kept by what they are of; computed in shares by several ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stablerep.data.labelled import fashion_mnist, open_labelled
from stablerep.evaluate import feature_cache
from stablerep.evaluate.feature_cache import FeatureCache
from stablerep.evaluate.features import features_of
from stablerep.models import InputTransform
from tests.data.pictures import encode, random_pixels

CPU = torch.device("cpu")
TRANSFORM = InputTransform(8)
BROKEN = 7  # where a/4.png comes in the order of names: 0, 1, 10, 11, 12, 2, 3, 4


class Flat(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) * self.factor


def folder_of(path: Path) -> Path:
    for split, count in (("train", 13), ("test", 3)):
        for name in ("a", "b"):
            (path / split / name).mkdir(parents=True)
            for i in range(count):
                (path / split / name / f"{i}.png").write_bytes(encode(random_pixels(100 * count + 20 * ord(name) + i)))
    (path / "train/a/4.png").write_bytes(b"a letter")
    return path


def test_a_second_look_reads_the_first(tmp_path: Path) -> None:
    photos, cache = open_labelled(str(folder_of(tmp_path / "photos"))).train, FeatureCache(tmp_path / "cache")
    plain = features_of(Flat(), TRANSFORM, photos, device=CPU, show=False)
    first, second = (cache.get(Flat(), TRANSFORM, photos, device=CPU) for _ in range(2))
    assert first is not None and second is not None
    assert (first.from_cache, second.from_cache) == (False, True)
    for found in (first, second):
        assert torch.equal(found.x, plain.x) and torch.equal(found.y, plain.y)
        assert found.left_out.tolist() == plain.left_out.tolist() == [BROKEN]


@pytest.mark.parametrize("change", ["weights", "transform", "photos", "labels", "one photo"])
def test_what_features_depend_on_is_in_the_key(tmp_path: Path, change: str) -> None:
    folder = folder_of(tmp_path / "photos")
    photos, cache = open_labelled(str(folder)).train, FeatureCache(tmp_path / "cache")
    cache.get(Flat(), TRANSFORM, photos, device=CPU)
    encoder, transform = Flat(2.0 if change == "weights" else 1.0), TRANSFORM
    if change == "transform":
        transform = InputTransform(8, crop_pct=0.5)
    elif change == "photos":
        photos = photos.take(np.arange(5))
    elif change == "labels":
        (folder / "train/a/1.png").rename(folder / "train/b/20.png")
        photos = open_labelled(str(folder)).train
    elif change == "one photo":
        os.utime(folder / "train/b/3.png", (0, 1))
        photos = open_labelled(str(folder)).train
    found = cache.get(encoder, transform, photos, device=CPU)
    assert found is not None and not found.from_cache
    oracle = features_of(encoder, transform, photos, device=CPU, show=False)
    assert torch.equal(found.x, oracle.x)


def test_large_sets_are_kept_in_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "HALF_ABOVE", 1000)
    photos = fashion_mnist("test").take(np.arange(50))
    found = FeatureCache(tmp_path).get(Flat(), TRANSFORM, photos, device=CPU)
    plain = features_of(Flat(), TRANSFORM, photos, device=CPU, show=False)
    assert found is not None and found.x.dtype == torch.float16
    torch.testing.assert_close(found.x.float(), plain.x, rtol=1e-3, atol=1e-3)


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = fashion_mnist("test").take(np.arange(10))
    cache = FeatureCache(tmp_path)
    for factor in (1.0, 2.0):
        cache.get(Flat(factor), TRANSFORM, photos, device=CPU)
    for number, about in enumerate(sorted(tmp_path.glob("*/about.json"), key=os.path.getmtime)):
        os.utime(about, (number, number))
    cache.get(Flat(1.0), TRANSFORM, photos, device=CPU)  # the first is used again
    monkeypatch.setattr(feature_cache, "MOST_BYTES", 200 + 4 * 10 * 192 + 4 * 10 * feature_cache.LIKELY_WIDTH)
    cache.get(Flat(3.0), TRANSFORM, photos, device=CPU)
    assert [cache.get(Flat(factor), TRANSFORM, photos, device=CPU).from_cache for factor in (1.0, 3.0)] == [True, True]  # type: ignore[union-attr]
    assert len(list(tmp_path.glob("*/about.json"))) == 2


def of_rank(folder: str, cache: str) -> Any:
    photos = open_labelled(folder).train
    found = FeatureCache(Path(cache)).get(Flat(), TRANSFORM, photos, device=CPU)
    return None if found is None else (found.x.numpy().copy(), found.y.numpy(), found.left_out)


def test_ranks_compute_a_share_each(tmp_path: Path, run_ranks: Callable[..., list[Any]]) -> None:
    folder = folder_of(tmp_path / "photos")
    plain = features_of(Flat(), TRANSFORM, open_labelled(str(folder)).train, device=CPU, show=False)
    for _ in range(2):  # computed, and read
        first, *others = run_ranks(3, of_rank, str(folder), str(tmp_path / "cache"))
        assert others == [None, None]
        assert np.array_equal(first[0], plain.x) and np.array_equal(first[1], plain.y)
        assert first[2].tolist() == [BROKEN]
