"""The report: one HTML file that holds its pictures and charts, so that it can be mailed."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stablerep import atomic

COLOURS = ("#2a5c8a", "#d9822b", "#3b8f5a", "#8a5ca8", "#b0483c")
SMOOTHING = 0.9  # of the loss, per logged value
MEDIA_TYPES = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"RI": "webp"}  # by the first two bytes


@dataclass(frozen=True, kw_only=True)
class Report:
    title: str
    answer: str
    """One sentence that answers the question the run was made for."""
    pictures: Mapping[str, Sequence[bytes]]
    """Prompt to encoded pictures, in the order shown."""
    losses: Mapping[str, Sequence[tuple[int, float]]]
    """Run to (step, loss)."""
    results: Sequence[Mapping[str, Any]]
    """Rows as in results.json: features, images, linear_top1, few_shot_10, few_shot_10_ci95, knn_top1, seconds."""
    names: Mapping[str, str]
    """A row's features to what a reader calls them."""
    costs: Sequence[tuple[str, float]]
    """What was done and the seconds it took."""
    settings: Mapping[str, Any]


def write_report(report: Report, path: Path) -> None:
    """Write the report to `path`, whole or not at all. Text is escaped; nothing is fetched when it is opened."""
    environment = Environment(
        loader=PackageLoader("stablerep.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("report.html.jinja").render(
        report=report,
        pictures={prompt: [_data_url(data) for data in row] for prompt, row in report.pictures.items()},
        loss_chart=loss_chart(report.losses, report.names),
        results_chart=results_chart(report.results, report.names),
        best={
            column: max(row[column] for row in report.results) for column in ("linear_top1", "few_shot_10", "knn_top1")
        },
    )
    atomic.write(path, html)


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


def _data_url(data: bytes) -> str:
    return f"data:image/{MEDIA_TYPES[data[:2]]};base64,{base64.b64encode(data).decode()}"
