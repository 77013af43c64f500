"""What the trials of a search say together: search.json, best.yaml, best_train.yaml and guidance.png."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from stablerep import atomic
from stablerep import config as configs
from stablerep.generate.config import GenerateConfig
from stablerep.search.budget import HOUR
from stablerep.search.curve import CHART, draw_curve, guidance_curve
from stablerep.search.front import pareto, rank_correlation
from stablerep.search.plan import Plan
from stablerep.search.space import Settings
from stablerep.search.study import Ended, Study
from stablerep.search.trial import PAINTING, folder_of, generate_config, train_config
from stablerep.train.config import TrainConfig

RESULTS, BEST, BEST_TRAIN = "search.json", "best.yaml", "best_train.yaml"
BEST_FOLDER = "best"  # what best.yaml paints into
VERSION = 1
FEWEST_FOR_IMPORTANCES = 6
LABELS = {"linear_top1": "linear probe, validation photos, %", "knn_top1": "kNN, validation photos, %"}


def write_results(plan: Plan, study: Study, proxy_name: str, out: Path) -> dict[str, Any]:
    """Write what the trials say so far, and return it."""
    ended, config = study.ended(), plan.config
    complete = [each for each in ended if each.outcome.state == "complete"]
    best = best_of(ended)
    both = [each.outcome for each in ended if each.outcome.proxy is not None and each.outcome.measured is not None]
    correlation, interval = rank_correlation(
        [each.proxy for each in both if each.proxy is not None],
        [each.measured for each in both if each.measured is not None],
        config.seed,
    )
    cost = "images" if config.budget_pictures is not None else "seconds"
    rows = [_row(each, config.usd_per_hour) for each in ended]
    values = {row["number"]: row["values"] for row in rows}
    numbers = [each.number for each in complete]
    front = pareto([values[n]["score"] for n in numbers], [values[n][cost] for n in numbers])
    results: dict[str, Any] = {
        "version": VERSION,
        "trials": rows,
        "pareto": [numbers[i] for i in front],
        "pareto_cost": cost,
        "importances": study.importances(FEWEST_FOR_IMPORTANCES),
        "best": best.number if best else None,
        "validation_photos": len(plan.real.validation),
        "guidance_curve": _curve(plan, complete),
        "proxy": {
            "name": proxy_name, "rank_correlation": correlation, "ci95": interval, "trials": len(both),
        },
        "config": configs.to_dict(config),
    }  # fmt: skip
    if best:
        _write_best(plan, best.settings, out, best.number)
    if results["guidance_curve"]:
        label = LABELS[config.measure] if config.score == "train" else proxy_name
        draw_curve(results["guidance_curve"], label, out / CHART)
    atomic.write(out / RESULTS, json.dumps(results, indent=1) + "\n")
    return results


def best_of(ended: Iterable[Ended]) -> Ended | None:
    """The complete trial with the highest score; of a grid with several seeds, the settings with the highest mean."""
    groups: dict[str, list[Ended]] = defaultdict(list)
    for each in ended:
        if each.outcome.state == "complete":
            groups[json.dumps(each.settings.as_dict() | {"seed": 0})].append(each)
    if not groups:
        return None
    return max(groups.values(), key=lambda group: sum(_score(each) for each in group) / len(group))[0]


def _row(ended: Ended, usd_per_hour: float | None) -> dict[str, Any]:
    outcome = ended.outcome
    seconds = round(outcome.total_seconds, 2)
    values: dict[str, Any] = {
        "score": outcome.score,
        "images": outcome.images,
        "seconds": seconds,
        "usd": None if usd_per_hour is None else round(seconds * usd_per_hour / HOUR, 6),
        "measured": outcome.measured,
        "measured_ci95": outcome.ci95,
        "proxy": outcome.proxy,
        "few_step_knn": outcome.few_step,
    }
    row = {"number": ended.number, "params": ended.settings.as_dict(), "values": values, "state": outcome.state}
    return row | ({"reason": outcome.reason} if outcome.reason else {})


def _score(ended: Ended) -> float:
    assert ended.outcome.score is not None
    return ended.outcome.score


def _curve(plan: Plan, complete: Sequence[Ended]) -> list[dict[str, float | None]]:
    """Of a grid over guidance alone; where it has other axes too, of the values that the best trial has."""
    if "guidance_scale" not in plan.space.axes or not complete:
        return []
    best = best_of(complete)
    assert best is not None
    others = [name for name in plan.space.axes if name not in ("guidance_scale", "seed")]
    scores: dict[float, list[float]] = defaultdict(list)
    for each in complete:
        if all(getattr(each.settings, name) == getattr(best.settings, name) for name in others):
            scores[each.settings.guidance_scale].append(_score(each))
    return guidance_curve(scores)


def _write_best(plan: Plan, settings: Settings, out: Path, number: int) -> None:
    """The flags of stablerep-gen, and of stablerep-train, that the best trial had; they work as they stand."""
    bench = plan.bench(out, proxy=None)  # type: ignore[arg-type]  # nothing is scored
    folder, painted = folder_of(out, number), out / BEST_FOLDER
    chosen = generate_config(bench, settings, folder)
    flags = _changed(GenerateConfig, chosen) | {name: getattr(chosen, name) for name in PAINTING}
    flags |= {"prompts": str(_absolute(flags["prompts"])), "out": str(_absolute(painted))}
    training = _changed(TrainConfig, train_config(bench, settings, _absolute(painted), _absolute(out / "best_encoder")))
    title = f"# Trial {number} of the search in {out.name}: {settings}.\n"
    atomic.write(out / BEST, title + yaml.safe_dump(flags, sort_keys=False, allow_unicode=True))
    atomic.write(out / BEST_TRAIN, title + yaml.safe_dump(training, sort_keys=False, allow_unicode=True))


def _changed(cls: type, config: Any) -> dict[str, Any]:
    """The fields that are not as by default."""
    defaults = {field.name: field.default for _, field in configs.flat_fields(cls)}
    return {
        name: value
        for name, value in configs.to_dict(config).items()
        if value != (list(d) if isinstance(d := defaults[name], tuple) else d)
    }


def _absolute(path: Path | str) -> Path:
    return Path(path).absolute()
