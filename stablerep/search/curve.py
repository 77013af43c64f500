"""The curve of a grid: the score against guidance, with intervals over seeds, as numbers and as a chart."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import t  # type: ignore[import-untyped]

from stablerep import atomic

CHART = "guidance.png"
COLOUR = "#1f5a8a"

Point = Mapping[str, Any]  # guidance_scale, score, ci95


def guidance_curve(scores: Mapping[float, Sequence[float]]) -> list[dict[str, float | None]]:
    """The mean score at each guidance scale and half the width of its 95 % interval over seeds.

    The deviation is pooled over all scales: three seeds alone would say little of their own. So it takes for granted
    that scores scatter alike at each scale. The validation photos are the same for all points, so that the interval is
    of painting and training. None where no scale has two scores.
    """
    freedom = sum(len(values) - 1 for values in scores.values())
    ci95 = {scale: None for scale in scores} | dict[float, float | None]()
    if freedom:
        squares = sum(np.square(np.subtract(values, np.mean(values))).sum() for values in scores.values())
        deviation = math.sqrt(squares / freedom)
        width = float(t.ppf(0.975, freedom))
        ci95 = {scale: width * deviation / math.sqrt(len(values)) for scale, values in scores.items()}
    return [
        {
            "guidance_scale": scale,
            "score": round(float(np.mean(scores[scale])), 4),
            "ci95": None if (half := ci95[scale]) is None else round(half, 4),
        }
        for scale in sorted(scores)
    ]


def draw_curve(points: Sequence[Point], label: str, path: Path) -> None:
    """Write the chart, whole or not at all."""
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.subplots()
    scales, scores = ([point[name] for point in points] for name in ("guidance_scale", "score"))
    known = [point["ci95"] for point in points if point["ci95"] is not None]
    axes.errorbar(
        scales, scores, yerr=known if len(known) == len(points) else None, color=COLOUR, marker="o", markersize=4.5,
        linewidth=1.6, elinewidth=1.0, capsize=3,
    )  # fmt: skip
    axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axes.set_xlabel("guidance scale")
    axes.set_ylabel(label)
    axes.grid(axis="y", color="#e3e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    data = io.BytesIO()
    with rc_context({"font.family": "sans-serif"}):
        figure.savefig(data, format="png", dpi=150, metadata={"Software": None})
    atomic.write(path, data.getvalue())
