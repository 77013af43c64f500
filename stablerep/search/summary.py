"""What a person reads at the end of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stablerep.search.curve import CHART
from stablerep.search.results import BEST, BEST_TRAIN, RESULTS
from stablerep.search.space import Settings

MOST_NAMED = 5  # trials in a line

Row = Mapping[str, Any]  # of search.json


def summarise(results: dict[str, Any]) -> list[str]:
    """What a search has found, a line each."""
    out = results["config"]["out"]
    rows = {row["number"]: row for row in results["trials"]}
    best = rows[results["best"]]
    lines = [_count_line(results["trials"]), *_curve_lines(results), _best_line(results, best)]
    front = ", ".join(_on_front(rows[number], results["pareto_cost"]) for number in results["pareto"])
    lines.append(f"front of score against {results['pareto_cost']}: {front}")
    if results["importances"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in results["importances"].items())
        lines.append(f"importances: {shares}")
    lines.append(_proxy_line(results["proxy"]))
    lines.append(
        f"a rerun of trial {best['number']} costs {_cost([best])}; the whole search, {_cost(results['trials'])}"
    )
    mixing = f"; {BEST_TRAIN} beside it mixes them with the real photos" if best["params"]["real_share"] else ""
    lines.append(f"stablerep-gen --config {out}/{BEST} paints its pictures again{mixing}")
    chart = f", the chart: {out}/{CHART}" if results["guidance_curve"] else ""
    return [*lines, f"all numbers: {out}/{RESULTS}{chart}"]


def _count_line(rows: Sequence[Row]) -> str:
    states = [row["state"] for row in rows]
    kinds = ", ".join(f"{states.count(kind)} {kind}" for kind in ("complete", "pruned", "failed") if kind in states)
    return f"{len(rows)} trials ({kinds}), {_cost(rows)}"


def _curve_lines(results: dict[str, Any]) -> list[str]:
    points = [
        f"{point['guidance_scale']:g}: {point['score']:.4g}" + (f" ± {point['ci95']:.2g}" if point["ci95"] else "")
        for point in results["guidance_curve"]
    ]
    return [f"score by guidance scale: {', '.join(points)}"] if points else []


def _best_line(results: dict[str, Any], best: Row) -> str:
    """The best trial, and which others the photos cannot tell from it."""
    values, config = best["values"], results["config"]
    line = f"best: trial {best['number']}, {Settings(**best['params'])}: "
    if config["score"] != "train":
        return f"{line}{config['proxy']} {values['score']:.4g}"
    line += (
        f"{config['measure']} {values['score']:.1f} ± {values['measured_ci95']:.1f} % of "
        f"{results['validation_photos']} validation photos"
    )
    lowest = values["score"] - values["measured_ci95"]
    near = [
        row["number"]
        for row in results["trials"]
        if row["values"]["score"] is not None
        and row["values"]["score"] >= lowest
        and {**row["params"], "seed": 0} != {**best["params"], "seed": 0}
    ]
    more = f" and {len(near) - MOST_NAMED} more" if len(near) > MOST_NAMED else ""
    trials = "trials" if len(near) > 1 else "trial"
    within = f"; within that interval too: {trials} {', '.join(map(str, near[:MOST_NAMED]))}{more}"
    return line + (within if near else "")


def _proxy_line(proxy: Mapping[str, Any]) -> str:
    if proxy["rank_correlation"] is None:
        return f"proxy {proxy['name']}: {proxy['trials']} trials have it and a measured score, too few to compare both"
    interval = "" if proxy["ci95"] is None else f" ± {proxy['ci95']:.2f}"
    return (
        f"proxy {proxy['name']}: rank correlation {proxy['rank_correlation']:.2f}{interval} with the measured score, "
        f"over {proxy['trials']} trials"
    )


def _on_front(row: Row, cost: str) -> str:
    unit = "pictures" if cost == "images" else "s"
    return f"trial {row['number']} {row['values']['score']:.4g} at {row['values'][cost]:,.0f} {unit}"


def _cost(rows: Sequence[Row]) -> str:
    images, seconds = (sum(row["values"][name] for row in rows) for name in ("images", "seconds"))
    priced = rows[0]["values"]["usd"] is not None
    usd = f", ${sum(row['values']['usd'] for row in rows):,.2f}" if priced else ""
    return f"{images:,} pictures, {seconds:,.0f} s{usd}"
