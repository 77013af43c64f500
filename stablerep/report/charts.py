"""Charts as SVG text, for the report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#2a5c8a", "#d9822b", "#3b8f5a", "#8a5ca8", "#b0483c")
SMOOTHING = 0.9  # of the loss, per logged value


def loss_chart(losses: Mapping[str, Sequence[tuple[int, float]]], names: Mapping[str, str]) -> Markup:
    """A line per run over its steps."""
    figure = Figure(figsize=(7.2, 3.0))
    axes = figure.subplots()
    for (run, points), colour in zip(losses.items(), COLOURS, strict=False):
        smooth, values = None, []
        for _, loss in points:
            smooth = loss if smooth is None else SMOOTHING * smooth + (1 - SMOOTHING) * loss
            values.append(smooth)
        axes.plot([step for step, _ in points], values, label=names.get(run, run), color=colour, linewidth=1.6)
    axes.set_xlabel("step")
    axes.set_ylabel("contrastive loss")
    axes.legend(frameon=False)
    return _svg(figure, axes)


def results_chart(results: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Markup:
    """Bars of few-shot accuracy with its 95 % interval, and points of the linear probe and kNN."""
    figure = Figure(figsize=(7.2, 0.62 * len(results) + 1.0))
    axes = figure.subplots()
    rows = range(len(results))
    few_shot = [row["few_shot_10"] for row in results]
    interval = [row["few_shot_10_ci95"] for row in results]
    axes.barh(rows, few_shot, xerr=interval, color="#c9d6e2", height=0.6, label="10 photos a class", capsize=3)
    axes.plot([row["linear_top1"] for row in results], rows, "o", color=COLOURS[0], label="linear probe")
    axes.plot([row["knn_top1"] for row in results], rows, "D", color=COLOURS[1], markersize=5, label="kNN")
    axes.set_yticks(rows, [names.get(row["features"], row["features"]) for row in results])
    axes.invert_yaxis()
    lowest = min(min(few_shot), min(row["knn_top1"] for row in results))
    axes.set_xlim(max(0, 10 * (lowest // 10) - 10), 100)
    axes.set_xlabel("top-1 on real test photos, %")
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    return _svg(figure, axes)


def _svg(figure: Figure, axes: Axes) -> Markup:
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    text = io.StringIO()
    # Text stays text, in the page's font; the salt makes the same chart the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": axes.get_xlabel(), "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return Markup(text.getvalue()[text.getvalue().index("<svg") :])
