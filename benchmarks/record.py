"""Time implementations against each other and keep the rows, so that each number can be made again."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Case = Callable[[], object]
WARM_SECONDS = 0.5
MEASURE_SECONDS = 2.0
MOST_ROUNDS = 200
FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class Row:
    case: str
    impl: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    rounds: int
    peak_mib: float | None  # CUDA only: the most that one call held beyond what was there before
    device: str
    clocks: str | None  # of SM and memory, just after the measurement
    threads: int
    driver: str | None
    python: str
    torch: str
    triton: str | None
    commit: str
    dirty: bool


@dataclass(frozen=True)
class Bench:
    """Runs the implementations of a case; out=None runs each once and records nothing."""

    out: Path | None

    @property
    def quick(self) -> bool:
        return self.out is None

    def compare(self, case: str, device: str, impls: Mapping[str, Case]) -> list[Row]:
        """Time all implementations in one run, taking turns, so that clocks and neighbours are the same for each."""
        if self.out is None:
            for run in impls.values():
                run()
            return []
        samples = _interleaved(device, impls)
        rows = [_row(case, impl, device, samples[impl], _peak_mib(device, run)) for impl, run in impls.items()]
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / f"{datetime.date.today()}_{device_slug(device)}.jsonl").open("a") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        return rows


def _interleaved(device: str, impls: Mapping[str, Case]) -> dict[str, list[float]]:
    for run in impls.values():  # compiles, fills caches, wakes clocks
        start = time.perf_counter()
        while time.perf_counter() - start < WARM_SECONDS:
            run()
            _wait(device)
    samples: dict[str, list[float]] = {impl: [] for impl in impls}
    start = time.perf_counter()
    for round_ in range(MOST_ROUNDS):
        for impl, run in impls.items():
            samples[impl].append(_milliseconds(device, run))
        if round_ + 1 >= FEWEST_ROUNDS and time.perf_counter() - start > MEASURE_SECONDS * len(impls):
            break
    return samples


def _milliseconds(device: str, run: Case) -> float:
    if device == "cuda":
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        before.record()
        run()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _peak_mib(device: str, run: Case) -> float | None:
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _row(case: str, impl: str, device: str, samples: list[float], peak_mib: float | None) -> Row:
    p20, p50, p80 = (round(float(value), 4) for value in np.percentile(samples, (20, 50, 80)))
    times = {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "rounds": len(samples)}
    clocks = _nvidia_smi("clocks.sm,clocks.mem") if device == "cuda" else None
    return Row(case=case, impl=impl, **times, peak_mib=peak_mib, clocks=clocks, **environment(device))  # type: ignore[arg-type]


def environment(device: str) -> dict[str, Any]:
    """What a number depends on besides the code that is timed."""
    commit, dirty = _commit()
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "driver": _nvidia_smi("driver_version") if device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "commit": commit,
        "dirty": dirty,
    }


def device_slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


@functools.cache
def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return f"cpu {names[0] if names else platform.machine()}"


def _nvidia_smi(fields: str) -> str | None:
    return _output(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])


@functools.cache
def _commit() -> tuple[str, bool]:
    """The commit, or "unknown" outside a checkout, and whether files differ from it."""
    commit = _output(["git", "rev-parse", "--short=12", "HEAD"])
    return commit or "unknown", commit is None or bool(_output(["git", "status", "--porcelain"]))


def _output(command: list[str]) -> str | None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
