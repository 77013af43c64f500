"""The report: one HTML file that holds its pictures and charts, so that it can be mailed."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from stablerep import atomic
from stablerep.report.charts import loss_chart, results_chart

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


def _data_url(data: bytes) -> str:
    return f"data:image/{MEDIA_TYPES[data[:2]]};base64,{base64.b64encode(data).decode()}"
