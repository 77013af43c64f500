"""Charts as SVG that takes its colours from the page (currentColor, classes) and its width from where it stands.

Horizontal places are percentages and lines keep their width when stretched, so text stays as large as the page's on a
phone, on a desk and on paper. Nothing here has a style attribute: the page's policy would not let it through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

HEIGHT = 170  # pixels of a chart's field
GUTTER = 22  # pixels below it for the numbers of x
DOT = 4.0
SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Scale:
    """Values to per cent of a side."""

    low: float
    high: float
    ticks: Sequence[float]
    is_log: bool = False

    def __call__(self, value: float) -> float:
        if self.is_log:
            return 100 * math.log(value / self.low) / math.log(self.high / self.low)
        return 100 * (value - self.low) / ((self.high - self.low) or 1)


@dataclass(frozen=True)
class Line:
    """One line or cloud of points; its class gives it its colour, and a shape tells it from others without."""

    name: str
    css: str
    points: Sequence[tuple[float, float]]
    half_widths: Sequence[float | None] = ()  # of the 95 % interval at each point
    dots: bool = False
    joined: bool = True
    filled: Sequence[bool] = field(default=())  # of each dot; all where empty


def scale_of(values: Sequence[float], *, ticks: int = 4, low: float | None = None, high: float | None = None) -> Scale:
    """A scale that holds all values, with round ticks; low and high bound it where the values have a natural end."""
    least, most = min(values), max(values)
    span = (most - least) or abs(most) or 1.0
    step = _round_step(span / ticks)
    start = math.floor(least / step) * step if low is None else max(low, math.floor(least / step) * step)
    end = math.ceil(most / step) * step if high is None else min(high, math.ceil(most / step) * step)
    if end <= start:
        end = start + step
    first, last = math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9)
    return Scale(start, end, [number * step for number in range(first, last + 1)])


def log_scale_of(values: Sequence[float]) -> Scale:
    """A scale of values above 0 with powers of ten as ticks."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    last = max(last, first + 1)
    every = -(-(last - first) // 5)
    return Scale(10.0**first, 10.0**last, [10.0**power for power in range(first, last + 1, every)], is_log=True)


def interval(
    scale: Scale,
    value: float | None,
    ends: tuple[float, float] | None,
    css: str,
    shape: str = "circle",
    reference: float | None = None,
) -> Markup:
    """A row of a comparison: grid, interval, point, and a dashed line at the reference. Below the scale: an arrow."""
    parts = [_upright("grid", scale(tick)) for tick in scale.ticks]
    if reference is not None:
        parts.append(_upright("reference", scale(reference)))
    if value is not None and value < scale.low:
        parts.append(_dot(0, "50%", css, "arrow"))
    elif value is not None:
        if ends is not None:
            low, high = (min(max(scale(end), 0.0), 100.0) for end in ends)
            parts.append(f'<line class="whisker {css}" x1="{_n(low)}%" x2="{_n(high)}%" y1="50%" y2="50%"/>')
        parts.append(_dot(scale(value), "50%", css, shape))
    return Markup(f'<svg class="strip" aria-hidden="true">{"".join(parts)}</svg>')


def interval_axis(scale: Scale) -> Markup:
    """The first and the last number above such rows."""
    ends = (scale.ticks[0], scale.ticks[-1])
    texts = (f'<text x="{_n(scale(end))}%" y="10" text-anchor="{_anchor(scale(end))}">{end:g}</text>' for end in ends)
    return Markup(f'<svg class="strip-axis" aria-hidden="true">{"".join(texts)}</svg>')


def bar(share: float) -> Markup:
    """A share from 0 to 1."""
    width = _n(100 * min(max(share, 0.0), 1.0))
    return Markup(
        f'<svg class="bar" aria-hidden="true"><rect class="track" width="100%" height="6" rx="3"/>'
        f'<rect class="fill" width="{width}%" height="6" rx="3"/></svg>'
    )


def lines(lines: Sequence[Line], label: str, x_name: str, y_name: str, *, is_log: bool = False) -> Markup:
    """A chart of lines, named for those who do not see it; its numbers belong into a table beside it.

    is_log: both sides; all values are above 0 then.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [
        y + sign * (half or 0.0)
        for line in lines
        for (_, y), half in zip(line.points, line.half_widths or [None] * len(line.points), strict=True)
        for sign in (-1, 1)
    ]
    horizontal = log_scale_of(xs) if is_log else scale_of(xs, low=min(xs), high=max(xs))
    vertical = log_scale_of(ys) if is_log else scale_of(ys)
    inner = [_grid(horizontal, vertical), *(_line(line, horizontal, vertical) for line in lines)]
    marks = [
        _marks(line, SHAPES[number % len(SHAPES)], horizontal, vertical)
        for number, line in enumerate(line for line in lines if line.dots or line.half_widths)
    ]
    across = [(tick, horizontal(tick)) for tick in horizontal.ticks]
    x_texts = [
        f'<text x="{_n(x)}%" y="{HEIGHT + 15}" text-anchor="{_anchor(x)}">{_tick(tick)}</text>' for tick, x in across
    ]
    y_texts = [
        f'<text x="100%" y="{_n(_down(vertical(tick)) * HEIGHT / 100 + 4)}" text-anchor="end">{_tick(tick)}</text>'
        for tick in vertical.ticks
    ]
    return Markup(
        f'<div class="chart" role="img" aria-label="{escape(label)}">'
        f'<p class="y-name">{escape(y_name)}</p>'
        f'<svg class="y-axis" height="{HEIGHT + GUTTER}">{"".join(y_texts)}</svg>'
        f'<svg class="plot" height="{HEIGHT + GUTTER}">'
        f'<svg width="100%" height="{HEIGHT}" viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(inner)}</svg>'
        f"{''.join(marks)}{''.join(x_texts)}</svg>"
        f'<p class="x-name">{escape(x_name)}</p></div>'
    )


def _grid(horizontal: Scale, vertical: Scale) -> str:
    across = (
        f'<line class="grid" x1="0" x2="100" y1="{_n(_down(vertical(tick)))}" y2="{_n(_down(vertical(tick)))}"/>'
        for tick in vertical.ticks
    )
    return "".join(across)


def _line(line: Line, horizontal: Scale, vertical: Scale) -> str:
    if not line.joined:
        return ""
    points = " ".join(f"{_n(horizontal(x))},{_n(_down(vertical(y)))}" for x, y in line.points)
    return f'<polyline class="line {line.css}" points="{points}"/>'


def _marks(line: Line, shape: str, horizontal: Scale, vertical: Scale) -> str:
    parts = []
    for number, (x, y) in enumerate(line.points):
        across, down = horizontal(x), _down(vertical(y)) * HEIGHT / 100
        half = line.half_widths[number] if line.half_widths else None
        if half is not None:
            low, high = (_n(_down(vertical(y + sign * half)) * HEIGHT / 100) for sign in (-1, 1))
            parts.append(
                f'<line class="whisker {line.css}" x1="{_n(across)}%" x2="{_n(across)}%" y1="{low}" y2="{high}"/>'
            )
        if line.dots:
            css = line.css if not line.filled or line.filled[number] else f"{line.css} hollow"
            parts.append(_dot(across, _n(down), css, shape))
    return "".join(parts)


def _dot(across: float, down: str, css: str, shape: str) -> str:
    """A mark at a percentage: within an svg of its own, so that shapes of several points can stand there too."""
    forms = {
        "circle": f'<circle r="{DOT}"/>',
        "square": f'<rect x="-{DOT - 0.5}" y="-{DOT - 0.5}" width="{2 * DOT - 1}" height="{2 * DOT - 1}"/>',
        "diamond": '<path d="M0-5 5 0 0 5-5 0Z"/>',
        "arrow": '<path d="M0 0 7-4 7 4Z"/>',
        "triangle": '<path d="M0-5 4.8 3.6-4.8 3.6Z"/>',
    }
    return f'<svg class="mark {css}" x="{_n(across)}%" y="{down}">{forms[shape]}</svg>'


def _upright(css: str, across: float) -> str:
    return f'<line class="{css}" x1="{_n(across)}%" x2="{_n(across)}%" y1="0" y2="100%"/>'


def _down(percent: float) -> float:
    return 100 - percent


def _anchor(percent: float) -> str:
    return "start" if percent < 8 else "end" if percent > 92 else "middle"


def _tick(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value:,.10g}"


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999999)


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
