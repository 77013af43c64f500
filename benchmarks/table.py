"""`python -m benchmarks.table [FILE...]` prints recorded rows, by default the newest file of each device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def read(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def newest() -> list[Path]:
    by_device = {path.stem.split("_", 1)[1]: path for path in sorted(RESULTS.glob("*_*.jsonl"))}
    return sorted(by_device.values())


def table(rows: list[dict[str, Any]]) -> Table:
    """A line per row; `times` is how often the fastest implementation of the case runs in the same time."""
    latest = {(row["device"], row["case"], row["impl"]): row for row in rows}  # the last measurement counts
    fastest: dict[tuple[str, str], float] = {}
    for (device, case, _), row in latest.items():
        fastest[device, case] = min(row["p50_ms"], fastest.get((device, case), float("inf")))
    view = Table("case", "implementation", "p20 ms", "p50 ms", "p80 ms", "times", "peak MiB", "commit")
    previous = None
    for (device, case, impl), row in sorted(latest.items(), key=lambda item: (item[0][:2], item[1]["p50_ms"])):
        if (device, case) != previous:
            view.add_section()
        times = row["p50_ms"] / fastest[device, case]
        milliseconds = (f"{row[f'p{share}_ms']:.3f}" for share in (20, 50, 80))
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}"
        first = f"{case} [{device}]" if (device, case) != previous else ""
        view.add_row(first, impl, *milliseconds, f"{times:.2f}", peak, row["commit"] + "*" * row["dirty"])
        previous = (device, case)
    return view


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[1:]] or newest()
    if not files:
        sys.exit("nothing is recorded yet; run `make bench`")
    Console().print(table(read(files)))
