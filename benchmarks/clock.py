"""Time and memory of calls, side by side in one run."""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Case = Callable[[], object]
WARM_SECONDS = {"cpu": 0.5, "cuda": 0.1}  # a GPU repeats itself to the percent
MEASURE_SECONDS = {"cpu": 2.0, "cuda": 0.4}
HEAD_START_CYCLES = 10_000_000  # 5 ms in which the host runs ahead, as in a loop that never waits: else launches count
MOST_ROUNDS = 200
FEWEST_ROUNDS = 5


def interleaved(device: str, impls: Mapping[str, Case]) -> dict[str, list[float]]:
    """Milliseconds of warm calls; implementations take turns, so that clocks and neighbours are the same for each."""
    for run in impls.values():  # compiles, fills caches, wakes clocks
        start = time.perf_counter()
        while time.perf_counter() - start < WARM_SECONDS[device]:
            run()
            _wait(device)
    samples: dict[str, list[float]] = {impl: [] for impl in impls}
    start = time.perf_counter()
    for round_ in range(MOST_ROUNDS):
        for impl, run in impls.items():
            samples[impl].append(_milliseconds(device, run))
        if round_ + 1 >= FEWEST_ROUNDS and time.perf_counter() - start > MEASURE_SECONDS[device] * len(impls):
            break
    return samples


def peak_mib(device: str, run: Case) -> float | None:
    """The most that one call holds beyond what was there before; None where the system does not say."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed must not hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to the present
        before_kib = _status_kib("VmRSS")
        run()
        return round((_status_kib("VmHWM") - before_kib) / 2**10, 1)
    except (OSError, AttributeError):  # not Linux with glibc
        return None


def _milliseconds(device: str, run: Case) -> float:
    if device == "cuda":
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(HEAD_START_CYCLES)
        before.record()
        run()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _status_kib(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1])
