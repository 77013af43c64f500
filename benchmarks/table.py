"""`python -m benchmarks.table [FILE...]` prints recorded rows, by default the newest file of each device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def read(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def newest() -> list[Path]:
    by_device = {path.stem.split("_", 1)[1]: path for path in sorted(RESULTS.glob("*_*.jsonl"))}
    return sorted(by_device.values())


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """A table per device and case, the fastest first; `times` is p50 over that of the fastest."""
    latest = {(row["device"], row["case"], row["impl"]): row for row in rows}  # the last measurement counts
    cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (device, case, _), row in sorted(latest.items()):
        cases.setdefault((device, case), []).append(row)
    return [_table(f"{case} on {device}", rows) for (device, case), rows in cases.items()]


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    view = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    view.add_column("implementation", no_wrap=True)
    for name in ("p20 ms", "p50 ms", "p80 ms", "times", "peak MiB", "commit"):
        view.add_column(name, justify="right", no_wrap=True)
    rows = sorted(rows, key=lambda row: row["p50_ms"])
    for row in rows:
        milliseconds = (f"{row[f'p{share}_ms']:.3f}" for share in (20, 50, 80))
        times = f"{row['p50_ms'] / max(rows[0]['p50_ms'], 1e-6):.2f}"
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}"
        view.add_row(row["impl"], *milliseconds, times, peak, row["commit"][:8] + "*" * row["dirty"])
    return view


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[1:]] or newest()
    if not files:
        sys.exit("nothing is recorded yet; run `make bench`")
    Console().print(*tables(read(files)), sep="\n")
