"""poc.json, and the table that a terminal shows of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from stablerep import config as configs
from stablerep.poc.compare import Scores, mean_of
from stablerep.poc.config import PocConfig
from stablerep.poc.inputs import Inputs
from stablerep.poc.ledger import Entry
from stablerep.poc.photos import TRAIN, VALIDATION
from stablerep.poc.plan import Arm, Plan
from stablerep.poc.recommend import compare_all, pairs_of, recommend

VERSION = 1
PREDICTIONS = "predictions.npz"  # of an evaluation: `label` and, by probe, what each test photo was named
MEASURES = ("linear_top1", "few_shot_10", "knn_top1")


@dataclass(frozen=True)
class Measured:
    """One encoder, measured."""

    arm: Arm
    seed: int
    place: Path
    run: Path | None
    results: Mapping[str, Any]
    validation_top1: float | None  # of hybrids among which is chosen
    paint_seconds: float
    train_seconds: float
    evaluate_seconds: float


def make_summary(
    config: PocConfig,
    inputs: Inputs,
    plan: Plan,
    entries: Mapping[str, Entry],
    measured: Sequence[Measured],
    risks: Mapping[str, int],
    commands: Sequence[str],
    device: str,
) -> dict[str, Any]:
    """All that was asked and found, as poc.json has it."""
    out = Path(config.out).resolve()
    of_arm = {arm.name: [each for each in measured if each.arm == arm] for arm in plan.arms}
    scores = {name: scores_of(each) for name, each in of_arm.items()}
    comparisons = compare_all(scores, pairs_of(plan.arms))
    test_photos = int(measured[0].results["test_photos"])
    hybrid = choose_hybrid(of_arm, plan.arms)
    split = inputs.split
    found = recommend(comparisons, plan.arms, hybrid, config.seeds, test_photos)
    return {
        "version": VERSION,
        "question": {
            "prompts": str(config.prompts),
            "real": config.real,
            "budget": {
                "pictures": config.budget_pictures, "seconds": config.budget_seconds, "usd": config.budget_usd,
            },
            "config": configs.to_dict(config),
        },
        "data": {
            "classes": list(inputs.class_names),
            "train": inputs.measured[0] if inputs.measured else len(split.of(TRAIN, labelled=True)),
            "validation": len(split.of(VALIDATION)),
            "test": test_photos,
            "unlabelled": len(split.of(TRAIN)) - len(split.of(TRAIN, labelled=True)),
            "split": "split.csv",
        },
        "arms": [_arm(arm, of_arm[arm.name], scores[arm.name], inputs, out) for arm in plan.arms],
        "comparisons": [_rounded(asdict(each)) for each in comparisons],
        "recommendation": _rounded(asdict(found)),
        "chosen_hybrid": hybrid,
        "costs": {
            "steps": [
                {"name": name, "kind": entry.kind, "seconds": entry.seconds, "images": entry.images, "kwh": entry.kwh}
                for name, entry in entries.items()
            ],
            "usd_per_hour": config.usd_per_hour,
            "device": device,
        },
        "risks": dict(risks),
        "commands": list(commands),
    }  # fmt: skip


def scores_of(measured: Sequence[Measured]) -> dict[str, Scores]:
    """By measure; without those that some seed has not, as few-shot of a class with fewer than ten photos."""
    photos = int(measured[0].results["test_photos"])
    found = {}
    for measure in MEASURES:
        values = [each.results[measure] for each in measured]
        if all(value is not None for value in values):
            right = [read_right(each.place / PREDICTIONS, measure) for each in measured]
            kept = [row for row in right if row is not None and len(row) == photos]
            found[measure] = Scores(
                tuple(map(float, values)), photos, np.stack(kept) if len(kept) == len(measured) else None
            )
    return found


def read_right(predictions: Path, measure: str) -> NDArray[np.bool_] | None:  # [M]
    """Which test photos a probe named right, where the evaluation kept what it named."""
    if not predictions.exists():
        return None
    with np.load(predictions) as arrays:
        probe = measure.removesuffix("_top1")
        return arrays[probe] == arrays["label"] if probe in arrays and "label" in arrays else None


def choose_hybrid(of_arm: Mapping[str, Sequence[Measured]], arms: Sequence[Arm]) -> str | None:
    """The hybrid that does best on the validation photos, or the only one; the test photos have no say."""
    hybrids = [arm.name for arm in arms if arm.kind == "hybrid"]
    if len(hybrids) < 2:
        return hybrids[0] if hybrids else None
    return max(hybrids, key=lambda name: fmean(each.validation_top1 or -math.inf for each in of_arm[name]))


def _arm(
    arm: Arm, measured: Sequence[Measured], scores: Mapping[str, Scores], inputs: Inputs, out: Path
) -> dict[str, Any]:
    estimates = {measure: mean_of(each) for measure, each in scores.items()}
    return {
        "name": arm.name, "kind": arm.kind, "comparison": arm.comparison, "objective": arm.objective,
        "arch": inputs.settings.example.arch if arm.is_trained or arm.kind == "untrained" else None,
        "images": arm.images, "synthetic_images": arm.synthetic_images, "real_images": len(arm.photos),
        "seeds": [_seed(each, out) for each in measured],
        "mean": {name: round(estimates[name].mean, 3) if name in estimates else None for name in MEASURES},
        "ci95": {name: round(estimates[name].ci95, 3) if name in estimates else None for name in MEASURES},
    }  # fmt: skip


def _seed(each: Measured, out: Path) -> dict[str, Any]:
    return {
        "seed": each.seed,
        **{measure: each.results[measure] for measure in MEASURES},
        "validation_top1": each.validation_top1,
        "train": str(each.run.relative_to(out)) if each.run else None,
        "measured": str(each.place.relative_to(out)),
        "seconds": {
            "paint": round(each.paint_seconds, 2),
            "train": round(each.train_seconds, 2),
            "evaluate": round(each.evaluate_seconds, 2),
        },
    }


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}


def table(poc: Mapping[str, Any]) -> Table:
    """A row an arm: what it was trained on, how well it does with its 95 % interval, what it took."""
    data = poc["data"]
    title = f"top-1 on {data['test']:,} real test photos, %"
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 80 columns hold it
    shown.add_column("features", overflow="fold")
    for heading in ("painted", "real", "linear", "10 a class", "kNN", "seconds"):
        shown.add_column(heading, justify="right")
    for arm in poc["arms"]:
        seconds = fmean(sum(each["seconds"][step] for step in ("paint", "train")) for each in arm["seeds"])
        shown.add_row(
            arm["name"],
            f"{arm['synthetic_images']:,}" if arm["synthetic_images"] else "-",
            f"{arm['real_images']:,}" if arm["real_images"] else "-",
            *(_with_interval(arm, measure) for measure in MEASURES),
            f"{seconds:,.0f}" if arm["objective"] else "-",
        )
    return shown


def bill_line(poc: Mapping[str, Any]) -> str:
    """What all of it took."""
    steps, price = poc["costs"]["steps"], poc["costs"]["usd_per_hour"]
    seconds = sum(step["seconds"] for step in steps)
    kwh = [step["kwh"] for step in steps if step["kwh"] is not None]
    parts = [f"together {seconds:,.0f} s on {poc['costs']['device']}"]
    parts += [f"{sum(kwh):.3g} kWh"] if kwh else []
    parts += [f"${seconds / 3600 * price:,.2f}"] if price is not None else []
    return ", ".join(parts)


def _with_interval(arm: Mapping[str, Any], measure: str) -> str:
    mean, interval = arm["mean"][measure], arm["ci95"][measure]
    return "too few" if mean is None else f"{mean:.1f} ± {interval:.1f}"
