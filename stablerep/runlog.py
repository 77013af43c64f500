"""What a run reports while it works: metrics on disk, and one progress line or bar."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from stablerep import atomic

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_LINE_SECONDS = 10.0


class Tracker(Protocol):
    """Another place for a run's numbers."""

    id: str

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """A run's numbers: a JSON line a step in metrics.jsonl, and the same as TensorBoard events.

    first_step is the first step this process will write. Lines from there on, left by a run that was cut off after
    its last checkpoint, are dropped. Other ranks than the first pass enabled=False: they write nothing.
    Trackers get the same numbers, and are closed with it.
    """

    def __init__(
        self, folder: Path, first_step: int = 0, *, enabled: bool = True, trackers: Sequence[Tracker] = ()
    ) -> None:
        self._enabled, self._trackers = enabled, trackers
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter  # 1 s: only a run that logs pays for it

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _drop_lines_from(path, first_step)
        self._lines = path.open("a")
        self._events = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, step: int, **scalars: float) -> None:
        """Add one line; a value that is not finite is written as null, which JSON can hold."""
        if not self._enabled:
            return
        values = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.write(step, scalars)

    def close(self) -> None:
        if self._enabled:
            self._lines.close()
            self._events.close()
            for tracker in self._trackers:
                tracker.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Progress(Protocol):
    def update(self, completed: int, note: str = "") -> None:
        """Say how far the work is, counted from its start; note is short free text."""


@contextmanager
def progress(
    title: str, total: int, unit: str, *, start: int = 0, show: bool = True, line_seconds: float = PLAIN_LINE_SECONDS
) -> Iterator[Progress]:
    """Show how far a loop is: a bar on a terminal, a line every line_seconds elsewhere.

    start is what an earlier run had already done (kept out of the rate). Other ranks than the first pass show=False.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, quiet=not show)
    if console.is_terminal and show:
        with _Bar(console, title, total, unit, start) as bar:
            yield bar
    else:
        lines = _Lines(console, title, total, unit, start, line_seconds)
        yield lines
        lines.finish()


class _Bar:
    def __init__(self, console: Console, title: str, total: int, unit: str, start: int) -> None:
        from rich import progress as rich

        columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn())
        rate, left, note = rich.TextColumn("{task.fields[rate]}"), rich.TimeRemainingColumn(), "{task.fields[note]}"
        self._bar = rich.Progress(*columns, rate, left, rich.TextColumn(note), console=console)
        self._task = self._bar.add_task(title, total=total, completed=start, rate="", note="")
        self._rate = _Rate(unit, start)

    def update(self, completed: int, note: str = "") -> None:
        self._bar.update(self._task, completed=completed, rate=self._rate.text(completed), note=note)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


class _Lines:
    def __init__(self, console: Console, title: str, total: int, unit: str, start: int, line_seconds: float) -> None:
        self._console, self._title, self._total, self._unit = console, title, total, unit
        self._rate = _Rate(unit, start)
        self._line_seconds = line_seconds
        self._printed_at, self._printed = time.monotonic(), -1
        self._completed, self._note = start, ""

    def update(self, completed: int, note: str = "") -> None:
        self._completed, self._note = completed, note
        if time.monotonic() - self._printed_at >= self._line_seconds:
            self._print()

    def finish(self) -> None:
        if self._printed != self._completed:
            self._print()

    def _print(self) -> None:
        self._printed_at, self._printed = time.monotonic(), self._completed
        texts = [f"{self._title}: {self._completed:,}/{self._total:,} {self._unit}", self._rate.text(self._completed)]
        left = self._rate.seconds_left(self._completed, self._total)
        if left >= 1:
            texts.append(f"{int(left) // 60}:{int(left) % 60:02} left")
        self._console.print(", ".join(text for text in [*texts, self._note] if text), soft_wrap=True)


class _Rate:
    """Units a second since the start of this process."""

    def __init__(self, unit: str, start: int) -> None:
        self._unit, self._start, self._began = unit, start, time.monotonic()

    def _rate(self, completed: int) -> float:
        return (completed - self._start) / max(time.monotonic() - self._began, 1e-9)

    def text(self, completed: int) -> str:
        rate = self._rate(completed)
        return f"{rate:,.0f} {self._unit}/s" if rate >= 100 else f"{rate:.2g} {self._unit}/s"

    def seconds_left(self, completed: int, total: int) -> float:
        rate = self._rate(completed)
        return (total - completed) / rate if rate > 0 else 0.0


def as_bytes(count: float) -> str:
    """`1.2 GB`, to three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def as_number(value: float) -> str:
    """`1,234`, or below 100 two digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _drop_lines_from(path: Path, first_step: int) -> None:
    """Keep the lines of earlier steps; a line cut short by a crash goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] < first_step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    atomic.write(path, "".join(kept))
