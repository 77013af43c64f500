"""The guidance curve: means, pooled intervals, and a chart that is a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import t

from stablerep.search.curve import draw_curve, guidance_curve


def test_the_interval_pools_the_deviation_of_all_scales() -> None:
    scores = {2.0: [70.0, 72.0, 74.0], 1.0: [60.0, 61.0], 6.0: [50.0]}
    curve = guidance_curve(scores)
    assert [point["guidance_scale"] for point in curve] == [1.0, 2.0, 6.0]
    assert [point["score"] for point in curve] == [60.5, 72.0, 50.0]
    pooled = ((2 * np.var([70, 72, 74], ddof=1) + np.var([60, 61], ddof=1)) / 3) ** 0.5
    for point, size in zip(curve, (2, 3, 1), strict=True):
        assert point["ci95"] == pytest.approx(t.ppf(0.975, 3) * pooled / size**0.5, abs=1e-3)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    curve = guidance_curve({1.0: [60.0], 2.0: [70.0]})
    assert [point["ci95"] for point in curve] == [None, None]
    draw_curve(curve, "score", tmp_path / "one.png")
    draw_curve(guidance_curve({1.0: [60.0, 62.0], 2.0: [70.0, 71.0]}), "score", tmp_path / "two.png")
    for name in ("one", "two"):
        with Image.open(tmp_path / f"{name}.png") as chart:
            assert min(chart.size) > 300 and len(set(np.asarray(chart.convert("L")).ravel())) > 10


def test_pooled_intervals_cover_the_truth() -> None:
    draw, covered = np.random.default_rng(0), 0
    for _ in range(200):
        curve = guidance_curve({scale: (scale + draw.normal(size=3)).tolist() for scale in (1.0, 2.0, 3.0)})
        covered += sum(abs(point["score"] - point["guidance_scale"]) <= point["ci95"] for point in curve)  # type: ignore[operator]
    assert 0.92 < covered / 600 < 0.98
