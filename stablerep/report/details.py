"""Below the seven sections: curves, tables, settings and commands, for who wants to check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from stablerep.report import charts
from stablerep.report.evidence import Curve, Evidence
from stablerep.report.words import Words
from stablerep.shards import read_dataset

SMOOTHING = 0.9  # of the loss, per logged value
MOST_ROWS = 200  # of a table of classes or prompts
LONG = 12  # rows, from which a table is folded
MOST_POINTS = 150  # of a curve; more cannot be seen
FOLDERS = 4  # of painted pictures, whose settings are shown
PER_CLASS = ("frechet_distance", "kid", "precision", "recall", "density", "coverage", "vendi_score")


@dataclass(frozen=True)
class Table:
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def is_long(self) -> bool:
        return len(self.rows) > LONG


@dataclass(frozen=True)
class Chart:
    title: str
    chart: Markup
    legend: Sequence[tuple[str, str]]  # name, css; empty for one line
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Details:
    charts: Sequence[Chart]
    tables: Sequence[tuple[str, Table]]
    settings: Sequence[tuple[str, Table]]
    versions: Sequence[tuple[str, str]]


def details_of(evidence: Evidence, names: Mapping[str, str], words: Words) -> Details:
    search = evidence.search or {}
    drawn = [_losses(evidence, names, words), _guidance(search, words), _pareto(search, words)]
    tables = [
        (words("details.comparisons"), _comparisons(evidence.poc, names, words)),
        (words("details.results"), _results(evidence.poc, names, words)),
        (words("details.importances"), _importances(search, words)),
        *((words(f"quality.{by}"), _quality(evidence.quality or {}, by, words)) for by in ("per_class", "per_prompt")),
    ]
    return Details(
        [chart for chart in drawn if chart],
        [(title, table) for title, table in tables if table.rows],
        _settings(evidence, words),
        _versions(evidence),
    )


def _losses(evidence: Evidence, names: Mapping[str, str], words: Words) -> Chart | None:
    if not evidence.losses:
        return None
    kinds = {arm["name"]: arm["kind"] for arm in evidence.poc["arms"]}
    several = len({arm for arm, _ in evidence.losses}) < len(evidence.losses)
    lines, rows = [], []
    legend: dict[str, list[str]] = {}
    for (arm, seed), curve in evidence.losses.items():
        name = f"{names[arm]} · {words('details.seed')} {seed}" if several else names[arm]
        lines.append(charts.Line(name, kinds[arm], _smooth(curve)))
        of_kind = legend.setdefault(kinds[arm], [])
        of_kind += [names[arm]] if names[arm] not in of_kind else []
        losses = [loss for _, loss in curve]
        rows.append([name, *(words.fixed(value, 3) for value in (losses[0], losses[-1], min(losses)))])
    heads = [words(f"details.{name}") for name in ("run", "first", "last", "lowest")]
    chart = charts.lines(lines, words("details.losses_alt", n=len(lines)), words("details.step"), words("details.loss"))
    return Chart(
        words("details.losses"),
        chart,
        [(" / ".join(of_kind), css) for css, of_kind in legend.items()],
        Table(heads, rows),
    )


def _smooth(curve: Curve) -> list[tuple[float, float]]:
    """A running mean that starts as an even one, so that the first value does not hang on."""
    total, weight, points = 0.0, 0.0, []
    for step, loss in curve:
        total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1
        points.append((float(step), total / weight))
    every = max(1, -(-len(points) // MOST_POINTS))
    return points[::every] if (len(points) - 1) % every == 0 else [*points[::every], points[-1]]


def _guidance(search: Mapping[str, Any], words: Words) -> Chart | None:
    curve = sorted(search.get("guidance_curve") or (), key=lambda point: point["guidance_scale"])
    if not curve:
        return None
    points = [(point["guidance_scale"], point["score"]) for point in curve]
    halves = [point.get("ci95") for point in curve]
    line = charts.Line("", "synthetic", points, halves, dots=True)
    best = max(points, key=lambda point: point[1])[0]
    chart = charts.lines(
        [line], words("details.guidance_alt", best=f"{best:g}"), words("details.guidance_x"), words("details.score")
    )
    rows = [
        [f"{scale:g}", words.fixed(score, 2) + ("" if half is None else f" ± {words.fixed(half, 2)}")]
        for (scale, score), half in zip(points, halves, strict=True)
    ]
    heads = [words("details.guidance_x"), words("details.score")]
    return Chart(words("details.guidance"), chart, [], Table(heads, rows))


def _pareto(search: Mapping[str, Any], words: Words) -> Chart | None:
    trials = [trial for trial in search.get("trials") or () if (trial.get("values") or {}).get("score") is not None]
    if not trials:
        return None
    front, cost = set(search.get("pareto") or ()), search.get("pareto_cost", "seconds")
    trials = sorted(trials, key=lambda trial: trial["values"][cost])
    points = [(trial["values"][cost], trial["values"]["score"]) for trial in trials]
    cost_name = words(f"details.pareto_{cost}")
    on_front = [trial["number"] in front for trial in trials]
    cloud = charts.Line("", "synthetic", points, dots=True, joined=False, filled=on_front)
    best = charts.Line("", "front", [point for point, is_so in zip(points, on_front, strict=True) if is_so])
    label = words("details.pareto_alt", n=len(trials), front=sum(on_front))
    drawn = [best, cloud] if best.points else [cloud]
    chart = charts.lines(drawn, label, cost_name, words("details.score"))
    rows = [
        [str(trial["number"]), _params(trial["params"]), words.short(spent), words.fixed(score, 2)]
        for trial, (spent, score) in zip(trials, points, strict=True)
    ]
    heads = [words("details.trial"), words("details.settings"), cost_name, words("details.score")]
    return Chart(words("details.pareto"), chart, [], Table(heads, rows), _proxy(search, words))


def _proxy(search: Mapping[str, Any], words: Words) -> str:
    note, proxy = words("details.pareto_note"), search.get("proxy") or {}
    if proxy.get("rank_correlation") is None:
        return note
    rho, ci95 = words.fixed(proxy["rank_correlation"], 2), words.fixed(proxy.get("ci95"), 2)
    return words.together(note, words("details.proxy", name=proxy["name"], rho=rho, ci=ci95))


def _params(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in params.items())


def _comparisons(poc: Mapping[str, Any], names: Mapping[str, str], words: Words) -> Table:
    heads = [words(f"details.{name}") for name in ("a", "b", "measure", "difference", "p", "verdict")]
    rows = []
    for each in poc["comparisons"]:
        measure, verdict = each["measure"], each["verdict"]
        ci95 = "" if each["ci95"] is None else f" ± {words.fixed(each['ci95'])}"
        rows.append(
            [
                names.get(each["a"], each["a"]),
                names.get(each["b"], each["b"]),
                words(f"comparison.{measure}") if words.has(f"comparison.{measure}") else measure,
                words.signed(each["difference"]) + ci95,
                "–" if each["p"] is None else "< 0.001" if each["p"] < 0.001 else words.fixed(each["p"], 3),
                words(f"details.{verdict}") if words.has(f"details.{verdict}") else verdict,
            ]
        )
    return Table(heads, rows)


def _results(poc: Mapping[str, Any], names: Mapping[str, str], words: Words) -> Table:
    measures = ("linear_top1", "few_shot_10", "knn_top1")
    heads = [words("details.run"), words("details.seed"), *(words(f"comparison.{measure}") for measure in measures)]
    rows = [
        [names[arm["name"]], str(seed["seed"]), *(words.fixed(seed.get(measure), 2) for measure in measures)]
        for arm in poc["arms"]
        for seed in arm["seeds"]
    ]
    return Table(heads, rows)


def _importances(search: Mapping[str, Any], words: Words) -> Table:
    found = sorted((search.get("importances") or {}).items(), key=lambda item: -item[1])
    heads = [words("details.parameter"), words("details.importance")]
    return Table(heads, [[name, words.fixed(share, 2)] for name, share in found])


def _quality(quality: Mapping[str, Any], name: str, words: Words) -> Table:
    rows, first = quality.get(name) or (), "class" if name == "per_class" else "prompt"
    shown = [key for key in ("images", *PER_CLASS) if any(row.get(key) is not None for row in rows)]
    heads = [words("fail.class" if first == "class" else "pictures.prompt")]
    heads += [words("cost.images") if key == "images" else words(f"quality.{key}") for key in shown]
    cells = [[str(row[first]), *(words.short(row.get(key)) for key in shown)] for row in rows[:MOST_ROWS]]
    return Table(heads, cells)


def _settings(evidence: Evidence, words: Words) -> list[tuple[str, Table]]:
    heads = [words("details.setting"), words("details.value")]
    found = []
    if config := evidence.poc["question"].get("config"):
        found.append(("stablerep-poc", config))
    for folder in evidence.painted[:FOLDERS]:
        flags = ((read_dataset(folder) or {}).get("run") or {}).get("flags") or {}
        given = {name: value for name, value in flags.items() if value not in (None, "", [])}
        found.append((f"stablerep-gen · {folder.name}", given))
    return [
        (title, Table(heads, [[name, _value(value)] for name, value in values.items()]))
        for title, values in found
        if values
    ]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _versions(evidence: Evidence) -> list[tuple[str, str]]:
    """What painted each folder: the version, the model and its hash."""
    told = []
    for folder in evidence.painted[:FOLDERS]:
        dataset = read_dataset(folder) or {}
        origin, hashed = (dataset.get("run") or {}).get("origin") or {}, dataset.get("config", {}).get("model")
        about = [f"stablerep {origin['stablerep']}"] if origin.get("stablerep") else []
        about += [str(name) for name in (origin.get("model"), hashed) if name]
        if about:
            told.append((folder.name, ", ".join(about)))
    return told
