"""Which painted pictures the page shows: a few of a few prompts, at each guidance scale."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stablerep.report.thumbnails import Thumbnail, Thumbnails
from stablerep.shards import done_stats, read_stats

SHARDS = 8  # of each folder are looked into, however many there are
COLUMNS = ("prompt_id", "index", "prompt", "label", "guidance_scale", "kept", "offset", "size")
MOST_GUIDANCES = 4
A_ROW = 6  # pictures of a prompt


@dataclass(frozen=True)
class Sheet:
    """Pictures by prompt (rows) and guidance scale (columns)."""

    guidances: Sequence[float]
    rows: Sequence[tuple[str, Sequence[Sequence[Thumbnail]]]]  # prompt, and of each guidance its pictures

    @property
    def shown(self) -> int:
        return sum(len(cell) for _, cells in self.rows for cell in cells)


class Painted:
    """The rows of some painted folders; pictures are read one by one when they are asked for."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.images, self.reasons = 0, Counter[str]()
        self._rows: list[tuple[Path, dict[str, Any]]] = []
        for folder in folders:
            for stats in read_stats(folder):
                self.images += stats["images"]
                self.reasons.update(stats.get("reasons", {}))
            for stats_path in _evenly(done_stats(folder), SHARDS):
                tar = stats_path.with_name(stats_path.name.replace("_stats.json", ".tar"))
                self._rows += [(tar, row) for row in _read_rows(tar) if row["size"]]
        self.prompts = len({row["prompt"] for _, row in self._rows})

    def sheets(self, thumbnails: Thumbnails, *sizes: int) -> list[Sheet]:
        """Sheets of so many prompts each, no prompt on two; prompts seen at the most guidance scales come first."""
        guidances = _evenly(sorted({row.get("guidance_scale", 0.0) for _, row in self._rows}), MOST_GUIDANCES)
        cells: dict[str, dict[float, list[tuple[Path, dict[str, Any]]]]] = defaultdict(lambda: defaultdict(list))
        for tar, row in self._rows:
            if row.get("guidance_scale", 0.0) in guidances:
                cells[row["prompt"]][row.get("guidance_scale", 0.0)].append((tar, row))
        most = max((len(each) for each in cells.values()), default=0)
        prompts = [prompt for prompt, each in cells.items() if len(each) == most]
        if len(prompts) < sum(sizes):
            prompts = sorted(cells, key=lambda prompt: -len(cells[prompt]))
        left = _evenly(prompts, sum(sizes))
        a_cell = max(1, A_ROW // max(1, len(guidances)))
        sheets = []
        for size in sizes:
            chosen = _evenly(left, size)
            left = [prompt for prompt in left if prompt not in chosen]
            rows = [
                (prompt, [_thumbnails(cells[prompt][scale][:a_cell], thumbnails) for scale in guidances])
                for prompt in chosen
            ]
            sheets.append(Sheet(guidances, rows))
        return sheets

    def of_class(self, name: str, count: int, thumbnails: Thumbnails) -> list[Thumbnail]:
        """Pictures whose label is the class, or whose prompt has its name in it, of as many prompts."""
        wanted = name.casefold()
        rows: dict[str, tuple[Path, dict[str, Any]]] = {}
        for tar, row in self._rows:
            label = row.get("label")
            if (label.casefold() == wanted) if label else (f" {wanted} " in f" {row['prompt'].casefold()} "):
                rows.setdefault(row["prompt"], (tar, row))
        return _thumbnails(_evenly(list(rows.values()), count), thumbnails)


def _thumbnails(rows: Iterable[tuple[Path, dict[str, Any]]], thumbnails: Thumbnails) -> list[Thumbnail]:
    made = [thumbnails.of(_read(tar, row)) for tar, row in rows]
    return [each for each in made if each]


def _read(tar: Path, row: dict[str, Any]) -> bytes | None:
    if not tar.is_file():
        return None
    with tar.open("rb") as file:
        file.seek(row["offset"])
        return file.read(row["size"])


def _read_rows(tar: Path) -> list[dict[str, Any]]:
    path = tar.with_suffix(".parquet")
    if not path.is_file():
        return []
    known = pq.read_schema(path).names
    return pq.read_table(path, columns=[name for name in COLUMNS if name in known]).to_pylist()


def _evenly(values: Sequence[Any], count: int) -> list[Any]:
    """count of the values, evenly spaced, in their order."""
    if len(values) <= count:
        return list(values)
    return [values[number * len(values) // count] for number in range(count)]
