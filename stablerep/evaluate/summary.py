"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

METRICS = {"top1": "top-1", "mean_class": "mean-class accuracy"}
LONG_NAMES = {
    "linear": "linear probe", "10 a class": "10 photos a class", "few-shot": "few-shot episodes",
    "logistic": "logistic regression", "augmented": "linear probe, augmented", "fine-tuned": "fine-tuning",
    "mAP": "retrieval, mAP", "AUROC": "anomalies, AUROC",
}  # fmt: skip
MOST_COLUMNS = 4
WORST = 5  # classes shown, of those that the probe names worst


def table(*results: dict[str, Any]) -> Table:
    """A row an evaluation, for the terminal: what each protocol found, with its 95 % interval where it has one."""
    what = METRICS[results[0]["metric"]]
    shown = Table(title=f"{what} on {results[0]['test_photos']:,} test photos of {results[0]['data']}, %")
    shown.add_column("features", overflow="fold")
    columns = {name: cell for name, cell in COLUMNS.items() if any(cell(row) is not None for row in results)}
    if len(results) == 1 and len(columns) > MOST_COLUMNS:
        return _upright(results[0], columns, what)
    for column in ("photos", *columns, "seconds"):
        shown.add_column(column, justify="right")
    for row in results:
        cells = [cell(row) or "-" for cell in columns.values()]
        shown.add_row(row["checkpoint"], f"{row['train_photos']:,}", *cells, f"{row['seconds']:.0f}")
    return shown


def _upright(row: dict[str, Any], columns: dict[str, Callable[[dict[str, Any]], str | None]], what: str) -> Table:
    """A row a protocol: many do not fit beside each other."""
    shown = Table(title=f"{row['checkpoint']} on {row['test_photos']:,} test photos of {row['data']}, %")
    shown.add_column("protocol")
    shown.add_column(what, justify="right")
    for name, cell in columns.items():
        shown.add_row(LONG_NAMES.get(name, name), cell(row) or "-")
    shown.caption = f"{row['train_photos']:,} training photos, {row['seconds']:.0f} seconds"
    return shown


def worst_classes(results: dict[str, Any]) -> list[str]:
    """The classes that the first probe names worst, a line each, where there are more than two."""
    probe = next(iter(results["probes"].values()), None)
    if probe is None or results["classes"] <= 2:
        return []
    seen = [each for each in probe["per_class"] if each["recall"] is not None and each["recall"] < 100]
    seen.sort(key=lambda each: each["recall"])
    return [
        f"{each['class']}: {each['recall']:.1f} % of {each['photos']:,}, mostly taken for {each['taken_for']}"
        for each in seen[:WORST]
    ]


def _accuracy(key: str, probe: str) -> Callable[[dict[str, Any]], str | None]:
    def cell(row: dict[str, Any]) -> str | None:
        if row.get(key) is None:
            return None
        about = row["probes"][probe]
        low, high = about[f"{row['metric']}_ci95"]
        return f"{about[row['metric']]:.1f} ± {(high - low) / 2:.1f}"

    return cell


def _few_shot(row: dict[str, Any]) -> str | None:
    if row.get("few_shot_10") is None:
        return "too few" if "few-shot" in row["config"]["protocols"].split(",") else None
    return f"{row['few_shot_10']:.1f} ± {row['few_shot_10_ci95']:.1f}"


def _episodes(row: dict[str, Any]) -> str | None:
    found = row.get("few_shot_episodes")
    return f"{found['way']}x{found['shot']}: {found['top1']:.1f} ± {found['ci95']:.1f}" if found else None


def _with_interval(key: str) -> Callable[[dict[str, Any]], str | None]:
    return lambda row: f"{row[key]:.1f} ± {row[f'{key}_ci95']:.1f}" if row.get(key) is not None else None


COLUMNS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "linear": _accuracy("linear_top1", "linear"),
    "10 a class": _few_shot,
    "few-shot": _episodes,
    "kNN": _accuracy("knn_top1", "knn"),
    "logistic": _accuracy("logistic_top1", "logistic"),
    "zero-shot": _accuracy("zero_shot_top1", "zero-shot"),
    "augmented": _accuracy("linear_augmented_top1", "linear-augmented"),
    "fine-tuned": _accuracy("fine_tune_top1", "fine-tune"),
    "mAP": _with_interval("retrieval_map"),
    "AUROC": _with_interval("anomaly_auroc"),
}
