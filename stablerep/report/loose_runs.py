"""Runs that no proof of concept has put together, in the form of poc.json: what was measured, and no recommendation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stablerep.config import UserError

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
    name = str(path.parent.relative_to(folder))
    means = {measure: results.get(measure) for measure in MEASURES}
    seed = {
        "seed": config.get("seed", results.get("config", {}).get("seed", 0)),
        **means,
        "train": os.path.relpath(train, folder) if train else None,
        "measured": name,
        "seconds": {"evaluate": results.get("seconds", 0.0)},
    }
    return {
        "name": name if name != "." else Path(checkpoint).name,
        "kind": BASELINES.get(checkpoint.split(":")[0], "other"),
        "comparison": "baseline",
        "objective": config.get("objective"),
        "arch": config.get("arch"),
        "images": None,
        "synthetic_images": None,
        "real_images": None,
        "seeds": [seed],
        "mean": means,
        "ci95": {"linear_top1": None, "few_shot_10": results.get("few_shot_10_ci95"), "knn_top1": None},
    }


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
