"""`python -m benchmarks.table [FILE...]` prints recorded rows, by default the newest file of each device.

With --plot FILE.png it draws them too: a bar an implementation, on a scale of the fastest of its case.
"""

from __future__ import annotations

import argparse
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
    paths = sorted(path for path in RESULTS.glob("*_*.jsonl") if not path.stem.endswith("_gpu_check"))
    by_device = {path.stem.split("_", 1)[1]: path for path in paths}
    return sorted(by_device.values())


def by_case(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The last measurement of each implementation by case and device, the fastest first."""
    latest = {(row["device"], row["case"], row["impl"]): row for row in rows}
    cases: dict[str, list[dict[str, Any]]] = {}
    for (device, case, _), row in sorted(latest.items()):
        cases.setdefault(f"{case} on {device}", []).append(row)
    return {title: sorted(rows, key=lambda row: row["p50_ms"]) for title, rows in cases.items()}


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    view = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    view.add_column("implementation", no_wrap=True)
    for name in ("p25 ms", "p50 ms", "p75 ms", "times", "roofline", "peak MiB", "commit"):
        view.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        milliseconds = (f"{row[f'p{share}_ms']:.3f}" for share in (25, 50, 75))
        times = f"{row['p50_ms'] / max(rows[0]['p50_ms'], 1e-6):.2f}"
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}"
        share = "" if row["roofline_share"] is None else f"{row['roofline_share']:.0%}"
        view.add_row(row["impl"], *milliseconds, times, share, peak, row["commit"][:8] + "*" * row["dirty"])
    return view


def plot(cases: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Write bars of p50 with the interquartile range as whiskers; each case on a logarithmic axis of its own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [0.9 + 0.3 * len(rows) for rows in cases.values()]
    figure, axes = pyplot.subplots(
        len(cases), 1, figsize=(10, sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    for axis, (title, rows) in zip(axes[:, 0], cases.items(), strict=True):
        middle = [row["p50_ms"] for row in rows]
        spread = [
            [row["p50_ms"] - row["p25_ms"] for row in rows],
            [row["p75_ms"] - row["p50_ms"] for row in rows],
        ]
        bars = axis.barh([row["impl"] for row in rows], middle, xerr=spread, color="#4c78a8", ecolor="#444444")
        labels = [f" {value:.3g} ms, {value / middle[0]:.3g} x" for value in middle]
        axis.bar_label(bars, labels, fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(right=axis.get_xlim()[1] * 4)
        axis.invert_yaxis()
        axis.set_title(title, loc="left", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG to write")
    args = parser.parse_args()
    files = args.files or newest()
    if not files:
        sys.exit("nothing is recorded yet; run `make bench`")
    cases = by_case(read(files))
    console = Console(width=None if sys.stdout.isatty() else 110)  # a file has no width of its own
    console.print(*(_table(title, rows) for title, rows in cases.items()), sep="\n")
    if args.plot:
        plot(cases, args.plot)
        print(args.plot)


if __name__ == "__main__":
    main()
