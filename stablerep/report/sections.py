"""What each of the seven sections shows, as numbers and texts that the template sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stablerep.report import charts
from stablerep.report.config import ReportConfig
from stablerep.report.costs import Bill, BreakEven
from stablerep.report.evidence import Evidence, quality_folder
from stablerep.report.failures import ClassResult, Failures
from stablerep.report.painted import Painted
from stablerep.report.thumbnails import Thumbnail, Thumbnails, read_where
from stablerep.report.words import Verdict, Words

MEASURES = ("linear_top1", "few_shot_10", "knn_top1")
COMPARISONS = ("equal_pictures", "equal_cost", "baseline")
SHAPES = {"real": "square", "supervised": "square", "hybrid": "diamond", "pretrained": "triangle"}
NO_CHOICE = ("pixels", "untrained")
TOP_CLASSES, CLASS_PICTURES = 5, 2
SHARES = ("precision", "recall", "density", "coverage")  # of 0 to about 1, shown as bars
NUMBERS = ("frechet_distance", "kid", "vendi_score", "diversity_within_prompt", "prompt_agreement")
TELLING, PAIRS = 6, 12  # pictures that give the domain away; memorised pairs
HARDLY, EASILY = 60.0, 85.0  # percent of held-out pictures that are told apart
FAR = 100  # break-evens further than this many times the pictures painted are beyond the chart
CURVE = 24  # pieces of a curve


@dataclass(frozen=True)
class Picture:
    thumbnail: Thumbnail
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Basis:
    confidence: str
    why: str
    right: str  # both accuracies


def basis_of(verdict: Verdict, words: Words) -> Basis | None:
    """What the answer stands on; None where there is no recommendation."""
    if verdict.first is None or verdict.second is None:
        return None
    means = [arm["mean"].get(verdict.measure) for arm in (verdict.first, verdict.second)]
    measure = words(f"comparison.{verdict.measure}")
    right = words("answer.right", a=words.fixed(means[0]), b=words.fixed(means[1]), measure=measure)
    if verdict.ci95 is not None:
        right = words.together(right, words("answer.interval"))
    return Basis(words(f"answer.{verdict.confidence}"), _why(verdict, words), right)


def _why(verdict: Verdict, words: Words) -> str:
    if verdict.reason == "one_seed":
        return words("answer.why_one_seed")
    if verdict.reason == "synthetic_as_good" and verdict.confidence != "low":
        return words("answer.why_equal", points=words.fixed(verdict.worst))
    return words(f"answer.why_{verdict.confidence}")


def facts(verdict: Verdict, bill: Bill, words: Words) -> list[tuple[str, str]]:
    """Four numbers that a decision asks for first."""
    told = []
    if verdict.first is not None:
        shown = words.signed(verdict.lead) + ("" if verdict.ci95 is None else f" ± {words.fixed(verdict.ci95)}")
        told.append((words("facts.difference"), words("number.points", n=shown)))
    if bill.painted:
        told.append((words("facts.pictures"), words.whole(bill.painted)))
    if bill.seconds:
        told.append((words("facts.hours"), words.seconds(bill.seconds)))
    if bill.usd is not None:
        told.append((words("facts.spent"), words.usd(bill.usd)))
    return told


@dataclass(frozen=True)
class Row:
    name: str
    css: str
    pictures: int | None
    cells: Sequence[tuple[Markup, str, str]]  # strip, value, ± half-width


@dataclass(frozen=True)
class Comparison:
    measures: Sequence[tuple[str, Markup]]  # heading, axis
    groups: Sequence[tuple[str, Sequence[Row]]]
    note: str


def comparison_view(evidence: Evidence, names: Mapping[str, str], words: Words) -> Comparison | None:
    """Arms by measures, with intervals; measures that no arm has are left out."""
    arms = evidence.poc["arms"]
    measures = [measure for measure in MEASURES if any(arm["mean"].get(measure) is not None for arm in arms)]
    if not measures:
        return None
    scales = {measure: _scale(arms, measure) for measure in measures}
    real: Mapping[str, float] = next((arm["mean"] for arm in arms if arm["kind"] == "real"), {})
    is_clipped = any(
        arm["mean"].get(measure) is not None and arm["mean"][measure] < scales[measure].low
        for arm in arms
        for measure in measures
    )
    groups: dict[str, list[Row]] = {}
    for arm in arms:
        cells = []
        for measure in measures:
            value, half = arm["mean"].get(measure), arm["ci95"].get(measure)
            shape = SHAPES.get(arm["kind"], "circle")
            ends = (value - half, value + half) if value is not None and half is not None else None
            strip = charts.interval(scales[measure], value, ends, arm["kind"], shape, real.get(measure))
            cells.append((strip, words.fixed(value), "" if half is None else f"± {words.fixed(half)}"))
        groups.setdefault(arm["comparison"], []).append(Row(names[arm["name"]], arm["kind"], arm.get("images"), cells))
    order = sorted(groups, key=lambda name: COMPARISONS.index(name) if name in COMPARISONS else len(COMPARISONS))
    titles = {name: words(f"comparison.{name}") if name in COMPARISONS else name for name in order}
    return Comparison(
        [(words(f"comparison.{measure}"), charts.interval_axis(scales[measure])) for measure in measures],
        [(titles[name] if evidence.is_poc else "", groups[name]) for name in order],
        _comparison_note(evidence, names, is_clipped, words),
    )


def _scale(arms: Sequence[Mapping[str, Any]], measure: str) -> charts.Scale:
    """Of the arms that are a choice: pixels and untrained encoders far below would press all others together."""
    measured = [arm for arm in arms if arm["mean"].get(measure) is not None]
    choices = [arm for arm in measured if arm["kind"] not in NO_CHOICE] or measured
    ends = [arm["mean"][measure] + sign * (arm["ci95"].get(measure) or 0.0) for arm in choices for sign in (-1, 1)]
    return charts.scale_of(ends, ticks=3, low=0.0, high=100.0)


def _comparison_note(evidence: Evidence, names: Mapping[str, str], is_clipped: bool, words: Words) -> str:
    if not evidence.is_poc:
        return words("comparison.note_unknown")
    arms = evidence.poc["arms"]
    seeds = max((len(arm["seeds"]) for arm in arms), default=1)
    over = words("comparison.seeds", n=seeds) if seeds > 1 else words("comparison.one_seed")
    real = next((names[arm["name"]] for arm in arms if arm["kind"] == "real"), None)
    dashed = words("comparison.dashed", name=real) if real else ""
    note = words("comparison.note", test=words.whole(evidence.poc["data"]["test"]), seeds=over, dashed=dashed)
    return words.together(note, words("comparison.clipped")) if is_clipped else note


@dataclass(frozen=True)
class Cost:
    rows: Sequence[tuple[str, str]]
    statement: str
    ask: str  # for the prices that are missing
    chart: Markup | None
    table: Sequence[tuple[str, str, str]]  # pictures, photos, synthetic
    by_kind: Sequence[tuple[str, str, Markup]]  # what was done, its time, a bar of its share; where there is no chart


def cost_view(bill: Bill, config: ReportConfig, words: Words) -> Cost:
    hours = words("cost.gpu_hours" if bill.is_gpu else "cost.hours")
    rows = [(hours, words("number.hours", n=words.short(round(bill.seconds / 3600, 2))))]
    if bill.kwh is not None:
        title = words("cost.energy")
        if bill.is_entered:
            title = words("cost.energy_entered", watts=words.short(config.watts))
        elif bill.kwh_steps < len(bill.steps):
            title = words("cost.energy_part", n=bill.kwh_steps, all=len(bill.steps))
        rows.append((title, words("number.kwh", n=words.short(bill.kwh))))
    if bill.usd is not None:
        rows.append((words("cost.spent"), words.usd(bill.usd)))
    if bill.per_thousand is not None:
        rows.append((words("cost.per_thousand"), words.usd(bill.per_thousand)))
    if bill.break_even is not None:
        chart, table = _break_even_chart(bill.break_even, bill.painted, words)
        return Cost(rows, _break_even_text(bill.break_even, words), "", chart, table, [])
    threshold = "" if bill.threshold is None else words("cost.threshold", usd=words.usd(bill.threshold))
    return Cost(
        rows, threshold, words("cost.none" if bill.usd is None else "cost.ask"), None, [], _by_kind(bill, words)
    )


def _by_kind(bill: Bill, words: Words) -> list[tuple[str, str, Markup]]:
    seconds: dict[str, float] = {}
    for step in bill.steps:
        seconds[step.kind] = seconds.get(step.kind, 0.0) + step.seconds
    most = max(seconds.values(), default=0.0) or 1.0
    return [
        (words(f"step.{kind}") if words.has(f"step.{kind}") else kind, words.seconds(took), charts.bar(took / most))
        for kind, took in sorted(seconds.items(), key=lambda item: -item[1])
    ]


def _break_even_text(even: BreakEven, words: Words) -> str:
    if even.pictures is None:
        return words("cost.never", paint=words.usd(even.paint), photo=words.usd(even.photo))
    if even.pictures <= 1:
        return words("cost.at_once", paint=words.usd(even.paint), photo=words.usd(even.photo))
    return words("cost.breakeven", n=words.whole(math.ceil(even.pictures)), usd=words.usd(even.photo))


def _break_even_chart(even: BreakEven, painted: int, words: Words) -> tuple[Markup, list[tuple[str, str, str]]]:
    """Both sides in powers of ten: a photo may well cost a thousand times what a painted picture does."""
    meet = even.pictures if even.pictures is not None and 1 <= even.pictures <= FAR * painted else None
    most = 10 ** math.ceil(math.log10(max(painted, 10, 2 * (meet or 0))))
    numbers = [most ** (at / CURVE) for at in range(CURVE + 1)]
    costs = {"real": [n * even.photo for n in numbers], "synthetic": [even.fixed + n * even.paint for n in numbers]}
    if min(costs["real"] + costs["synthetic"]) <= 0:  # what is free has no place there, and needs no chart
        return Markup(), []
    lines = [
        charts.Line(words(f"cost.{name}"), name, list(zip(numbers, costs[name], strict=True)))
        for name in ("real", "synthetic")
    ]
    if meet is not None:
        lines.append(charts.Line("", "meeting", [(meet, meet * even.photo)], dots=True, joined=False))
    chart = charts.lines(lines, words("cost.chart"), words("cost.x"), words("cost.y"), is_log=True)
    powers = [10**power for power in range(round(math.log10(most)) + 1)]
    table = [(words.whole(n), words.usd(n * even.photo), words.usd(even.fixed + n * even.paint)) for n in powers]
    return chart, table


@dataclass(frozen=True)
class FailedClass:
    result: ClassResult
    strip: Markup
    photos: Sequence[Picture]
    painted: Sequence[Picture]


@dataclass(frozen=True)
class FailureView:
    note: str
    classes: Sequence[FailedClass]
    everything: Sequence[ClassResult]
    arm: str
    rival: str | None


def failure_view(
    failures: Failures | None,
    names: Mapping[str, str],
    test_photos: Mapping[str, Sequence[Path]],
    painted: Painted,
    thumbnails: Thumbnails,
    words: Words,
) -> FailureView | None:
    if failures is None:
        return None
    arm, rival = names[failures.arm], names[failures.rival] if failures.rival else None
    worst = [each for each in failures.classes if each.behind > 0][:TOP_CLASSES]
    shown = []
    for each in worst:
        real_alt, made_alt = (words(f"fail.{name}", **{"class": each.name}) for name in ("real_photo", "painted"))
        photos = _pictures(test_photos.get(each.name, ())[:CLASS_PICTURES], real_alt, thumbnails)
        made = [Picture(one, made_alt) for one in painted.of_class(each.name, CLASS_PICTURES, thumbnails)]
        shown.append(FailedClass(each, _class_strip(each, worst), photos, made))
    if not worst:
        note = words("fail.nowhere", synthetic=arm, real=rival)
    elif rival:
        note = words("fail.note", synthetic=arm, real=rival)
    else:
        note = words("fail.note_alone", synthetic=arm)
    return FailureView(note, shown, failures.classes, arm, rival)


def _class_strip(each: ClassResult, among: Sequence[ClassResult]) -> Markup:
    ends = [value for row in among for value in (row.low, row.high, row.rival_low, row.rival_high) if value is not None]
    scale = charts.scale_of(ends, ticks=3, low=0.0, high=100.0)
    return charts.interval(scale, each.accuracy, (each.low, each.high), "synthetic", reference=each.rival)


def _pictures(paths: Sequence[Path], alt: str, thumbnails: Thumbnails) -> list[Picture]:
    made = [thumbnails.of(path.read_bytes() if path.is_file() else None) for path in paths]
    return [Picture(each, alt) for each in made if each]


@dataclass(frozen=True)
class QualityView:
    note: str
    gap: str
    shares: Sequence[tuple[str, str, str, Markup]]  # name, value, meaning, bar
    numbers: Sequence[tuple[str, str, str]]
    most_synthetic: Sequence[Picture]
    most_real_like: Sequence[Picture]


def quality_view(evidence: Evidence, thumbnails: Thumbnails, words: Words) -> QualityView | None:
    quality = evidence.quality
    if quality is None:
        return None
    shares = [
        (*_told(name, words.fixed(quality[name], 2), words), charts.bar(quality[name]))
        for name in SHARES
        if quality.get(name) is not None
    ]
    numbers = []
    for name in NUMBERS:
        if quality.get(name) is not None:
            value = words.short(quality[name])
            if name == "kid" and quality.get("kid_std") is not None:
                value += f" ± {words.short(quality['kid_std'])}"
            numbers.append(_told(name, value, words))
    gap = quality.get("domain_gap") or {}
    return QualityView(
        words(
            "quality.note",
            synthetic=words.whole(quality["synthetic_images"]),
            real=words.whole(quality["real_images"]),
            features=quality["features"],
        ),
        _gap_text(gap, words),
        shares,
        numbers,
        _named("most_synthetic", "quality.alt_synthetic", evidence, thumbnails, words),
        _named("most_real_like", "quality.alt_real_like", evidence, thumbnails, words),
    )


def _told(name: str, value: str, words: Words) -> tuple[str, str, str]:
    return words(f"quality.{name}"), value, words(f"quality.{name}_means")


def _gap_text(gap: Mapping[str, Any], words: Words) -> str:
    if not gap:
        return ""
    accuracy = gap["accuracy"] if gap["accuracy"] > 1 else 100 * gap["accuracy"]
    ci95 = gap["ci95"] if gap["accuracy"] > 1 else 100 * gap["ci95"]
    size = "gap_small" if accuracy < HARDLY else "gap_large" if accuracy >= EASILY else "gap_some"
    told = words("quality.gap", accuracy=words.fixed(accuracy), ci=words.fixed(ci95))
    return words.together(told, words(f"quality.{size}"))


def _named(name: str, alt: str, evidence: Evidence, thumbnails: Thumbnails, words: Words) -> list[Picture]:
    """Pictures that quality.json names: as stablerep-quality has kept them in NAME/NNN.png, or where they lie."""
    roots, folder = _roots(evidence), quality_folder(evidence.folder) / name
    wheres = ((evidence.quality or {}).get("domain_gap") or {}).get(name) or ()
    made = []
    for number, where in enumerate(wheres[:TELLING]):
        kept = folder / f"{number:03}.png"
        made.append(thumbnails.of(kept.read_bytes() if kept.is_file() else read_where(where, roots)))
    return [Picture(each, words(alt, n=number)) for number, each in enumerate(made, start=1) if each]


def memorised_pairs(evidence: Evidence, thumbnails: Thumbnails, words: Words) -> list[Picture]:
    """The thumbnails pairs/NNN.png that stablerep-quality has made: painted and real side by side."""
    pairs = ((evidence.quality or {}).get("memorised") or {}).get("pairs") or ()
    made = []
    for number, pair in enumerate(pairs[:PAIRS]):
        path = quality_folder(evidence.folder) / pair.get("picture", f"pairs/{number:03}.png")
        thumbnail = thumbnails.of(path.read_bytes() if path.is_file() else None)
        similarity = words.fixed(pair["similarity"], 3)
        alt = words("risk.pair", synthetic=pair["synthetic"], real=pair["real"], similarity=similarity)
        made += [Picture(thumbnail, alt, similarity)] if thumbnail else []
    return made


def _roots(evidence: Evidence) -> list[Path]:
    """What a path in quality.json may be from: the folder, its parent, where the command was run."""
    return [evidence.folder, quality_folder(evidence.folder), evidence.folder.parent, Path()]
