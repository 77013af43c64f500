"""The Fréchet distance beside its textbook form, and what agreement counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from stablerep.config import UserError
from stablerep.search.proxy import class_key, frechet_distance, pictures_of
from tests.data.pictures import write_shards


@pytest.mark.parametrize(("n", "m", "width"), [(200, 150, 8), (40, 300, 16), (1000, 1000, 5)])
def test_frechet_distance_is_the_textbooks(n: int, m: int, width: int) -> None:
    draw = np.random.default_rng(n)
    a = draw.normal(size=(n, width)) @ draw.normal(size=(width, width))
    b = draw.normal(1, 2, size=(m, width)) @ draw.normal(size=(width, width))
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(one + other - 2 * sqrtm(one @ other).real)
    assert frechet_distance(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_fewer_pictures_than_features() -> None:
    a = torch.randn(6, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 3) == pytest.approx(9 * 50, rel=1e-9)  # the means alone
    wide = torch.cat([a, torch.zeros(6, 30)], 1)  # features that are always 0 change nothing
    b = torch.randn(7, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    padded = torch.cat([b, torch.zeros(7, 30)], 1)
    assert frechet_distance(wide, padded) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    with pytest.raises(UserError, match="two pictures"):
        frechet_distance(a[:1], b)


def test_a_class_is_known_however_it_is_written() -> None:
    assert class_key("Ankle_boot") == class_key("ankle  boot") == class_key("ankle-boot")
    assert class_key("boot") != class_key("ankle boot")


def test_pictures_are_spread_over_all_prompts(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 10, 4)
    pictures = pictures_of(shards, ("a", "b"), most=10)
    assert len(pictures) == 10 and len(set(pictures.index.group[pictures.rows].tolist())) == 10
    assert (pictures.labels == -1).all()  # no labels
    assert len(pictures_of(shards, ("a", "b"), most=1000)) == 40
