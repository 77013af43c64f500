"""Runs that no proof of concept has put together, in the form of poc.json: what was measured, and no recommendation."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stablerep.config import UserError

DATA = "data.json"  # of a training: what each --data held
BASELINES = {"pixels": "pixels", "untrained": "untrained"}
MEASURES = ("linear_top1", "few_shot_10", "knn_top1")


def poc_of_runs(folder: Path) -> dict[str, Any]:
    """Each evaluation below the folder is an arm of one seed; costs are those that runs recorded."""
    found = [
        (path, results)
        for path in sorted(folder.rglob("results.json"))
        if isinstance(results := _read(path), dict) and "linear_top1" in results
    ]
    steps = [
        _step(folder, path, "evaluate", results.get("seconds", 0.0), results["test_photos"]) for path, results in found
    ]
    for path in sorted(folder.rglob("summary.json")):
        if (summary := _read(path)) and {"images", "seconds"} <= set(summary):
            steps.append(_step(folder, path, "paint", summary["seconds"], summary["images"]))
    first = found[0][1] if found else {}
    return {
        "version": 1,
        "question": {"prompts": "", "real": str(first.get("data", "")), "budget": {}, "config": {}},
        "data": {
            "classes": [str(n) for n in range(first.get("classes", 0))],
            "train": first.get("train_photos", 0),
            "test": first.get("test_photos", 0),
        },
        "arms": [_arm(folder, path, results) for path, results in found],
        "comparisons": [],
        "recommendation": {},
        "costs": {"steps": steps, "usd_per_hour": None, "device": first.get("device", "")},
        "risks": {},
        "commands": [],
    }


def _step(folder: Path, path: Path, kind: str, seconds: float, images: int) -> dict[str, Any]:
    name = str(path.parent.relative_to(folder))
    return {"name": name, "kind": kind, "seconds": seconds, "images": images, "kwh": None}


def _arm(folder: Path, path: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    checkpoint = str(results["checkpoint"])
    train = _training_of(checkpoint, path, folder)
    config = _read_yaml(train / "config.yaml") if train else {}
    synthetic, real = _pictures_of(train, folder) if train else (0, 0)
    name = str(path.parent.relative_to(folder))
    means = {measure: results.get(measure) for measure in MEASURES}
    seed = {
        "seed": config.get("seed", results.get("config", {}).get("seed", 0)),
        **means,
        "train": os.path.relpath(train, folder) if train else None,
        "measured": name,
        "seconds": {"evaluate": results.get("seconds", 0.0)},
    }
    trained_on = "hybrid" if synthetic and real else "synthetic" if synthetic else "real" if real else "other"
    return {
        "name": name if name != "." else Path(checkpoint).name,
        "kind": BASELINES.get(checkpoint.split(":")[0], trained_on),
        "comparison": "baseline",
        "objective": config.get("objective"),
        "arch": config.get("arch"),
        "images": synthetic + real or None,
        "synthetic_images": synthetic,
        "real_images": real,
        "seeds": [seed],
        "mean": means,
        "ci95": {measure: _half_width(results, measure) for measure in MEASURES},
    }


def _half_width(results: Mapping[str, Any], measure: str) -> float | None:
    """Half the 95 % interval, which stands beside the measure or, as both ends, in the probe's part."""
    ends = (results.get("probes") or {}).get(measure.removesuffix("_top1"), {}).get("top1_ci95")
    return (ends[1] - ends[0]) / 2 if ends else results.get(f"{measure}_ci95")


def _pictures_of(train: Path, folder: Path) -> tuple[int, int]:
    """Painted pictures and photos that a training had, by its data.json: painted are those in a folder of shards."""
    counts = [0, 0]
    for row in _read(train / DATA) if (train / DATA).exists() else ():
        path = Path(re.sub(r":[\d.]+$", "", row["data"]))  # less its weight
        is_painted = any((place / "dataset.json").exists() for place in (path, folder / path.name))
        counts[0 if is_painted else 1] += row["pictures"]
    return counts[0], counts[1]


def _training_of(checkpoint: str, results: Path, folder: Path) -> Path | None:
    """The run whose encoder was measured: by its path, or by its name where the folder was moved."""
    for place in (Path(checkpoint), folder / Path(checkpoint).name, results.parent / checkpoint):
        if (place / "metrics.jsonl").exists():
            return place
    return None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run its command again") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
