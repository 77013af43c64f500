"""What a folder holds: poc.json and what lies beside it, or runs that were never put together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stablerep.config import UserError
from stablerep.report.loose_runs import poc_of_runs

VERSION = 1
# What the page cannot do without; a poc.json that lacks one is named with it.
NEEDED = {
    "": ("version", "question", "data", "arms", "comparisons", "recommendation", "costs", "risks", "commands"),
    "data": ("classes", "train", "test"),
    "recommendation": ("reason", "a", "b", "difference", "ci95"),
    "costs": ("steps", "device"),
}
NEEDED_OF_EACH = {
    "arms": ("name", "kind", "comparison", "seeds", "mean", "ci95"),
    "comparisons": ("a", "b", "measure", "difference", "ci95", "p", "verdict"),
}
NEEDED_BESIDE = {"quality": ("features", "real_images", "synthetic_images"), "search": ("trials",)}

Curve = Sequence[tuple[int, float]]  # (step, loss)


@dataclass(frozen=True)
class Evidence:
    """All that the page is made of, but for pictures."""

    folder: Path
    poc: Mapping[str, Any]  # by the contract of poc.json
    is_poc: bool  # and not put together from runs
    quality: Mapping[str, Any] | None = None
    search: Mapping[str, Any] | None = None
    measured: Mapping[str, Sequence[Mapping[str, Any]]] = field(
        default_factory=dict
    )  # arm -> results.json of each seed
    losses: Mapping[tuple[str, int], Curve] = field(default_factory=dict)  # (arm, seed)
    painted: Sequence[Path] = ()  # folders of shards
    missing: Sequence[str] = ()  # keys of words("missing.")


def gather(folder: Path) -> Evidence:
    """Read a folder of stablerep-poc, or one with evaluations, trainings and pictures somewhere below.

    Raises:
        UserError: no folder, nothing in it that a report is made of, or a file that is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"RUN {folder} is no folder; name the --out of stablerep-poc, or a folder with runs")
    path = folder / "poc.json"
    is_poc = path.exists()
    poc = check_poc(_read(path), path) if is_poc else poc_of_runs(folder)
    home = folder / "painted"  # beside it a search may have painted hundreds of folders
    painted = sorted(each.parent for each in (home if home.is_dir() else folder).rglob("dataset.json"))
    if not is_poc and not poc["arms"] and not painted:
        raise UserError(
            f"RUN {folder} holds neither poc.json nor runs of stablerep-eval or -gen; name the --out of stablerep-poc"
        )
    quality, search = (_read_beside(folder, name) for name in NEEDED_BESIDE)
    measured, losses = _measured(folder, poc), _losses(folder, poc)
    there = {
        "poc": is_poc, "quality": quality, "search": search, "painted": painted, "runs": losses, "measured": measured,
    }  # fmt: skip
    missing = [name for name, what in there.items() if not what]
    return Evidence(folder, poc, is_poc, quality, search, measured, losses, painted, missing)


def quality_folder(folder: Path) -> Path:
    """Where quality.json lies, and the pictures beside it."""
    return _find(folder, "quality").parent


def check_poc(poc: Any, path: Path) -> Mapping[str, Any]:
    """
    Raises:
        UserError: not poc.json as stablerep-poc writes it, with the first thing that is missing.
    """
    mend = "run the same stablerep-poc again to mend it"
    if not isinstance(poc, dict):
        raise UserError(f"{path} is no poc.json: it holds no mapping; {mend}")
    if poc.get("version", VERSION) != VERSION:
        raise UserError(
            f"{path} is of version {poc['version']}, this stablerep reads {VERSION}; install the one that wrote it"
        )
    for section, names in NEEDED.items():
        _check_has(poc.get(section) if section else poc, names, f"{section}." if section else "", path, mend)
    for section, names in NEEDED_OF_EACH.items():
        for number, each in enumerate(poc[section]):
            _check_has(each, names, f"{section}[{number}].", path, mend)
    return poc


def _check_has(values: Any, names: Sequence[str], where: str, path: Path, mend: str) -> None:
    for name in names:
        if not isinstance(values, dict) or name not in values:
            raise UserError(f"{path} is damaged: {where}{name} is missing; {mend}")


def _find(folder: Path, name: str) -> Path:
    """FOLDER/quality/quality.json; elsewhere below where it is not there."""
    usual = folder / name / f"{name}.json"
    return usual if usual.exists() else next(iter(sorted(folder.rglob(f"{name}.json"))), usual)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); run its command again") from error


def _read_if_there(path: Path) -> Any:
    return _read(path) if path.exists() else None


def _read_beside(folder: Path, name: str) -> Any:
    """quality.json or search.json; None where there is none."""
    found = _read_if_there(path := _find(folder, name))
    if found is not None:
        _check_has(found, NEEDED_BESIDE[name], "", path, f"run the same stablerep-{name} again to mend it")
    return found


def _measured(folder: Path, poc: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    measured: dict[str, list[Mapping[str, Any]]] = {}
    for arm in poc["arms"]:
        for seed in arm["seeds"]:
            if results := _read_if_there(folder / seed["measured"] / "results.json"):
                measured.setdefault(arm["name"], []).append(results)
    return measured


def _losses(folder: Path, poc: Mapping[str, Any]) -> dict[tuple[str, int], Curve]:
    paths = {
        (arm["name"], seed["seed"]): folder / seed["train"] / "metrics.jsonl"
        for arm in poc["arms"]
        for seed in arm["seeds"]
        if seed.get("train")
    }
    curves = {key: _read_losses(path) for key, path in paths.items() if path.exists()}
    return {key: curve for key, curve in curves.items() if curve}


def _read_losses(path: Path) -> list[tuple[int, float]]:
    """The finished lines: a run that still trains, or was cut off, may be writing the last."""
    curve = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            row = json.loads(line)
            if row.get("loss") is not None:
                curve.append((int(row["step"]), float(row["loss"])))
    return curve
