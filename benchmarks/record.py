"""Time implementations against each other and keep the rows, so that each number can be made again."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ceilings import Work
from benchmarks.clock import Case, interleaved, peak_mib

__all__ = ["Bench", "Case", "Work"]


@dataclass(frozen=True)
class Row:
    case: str
    impl: str
    p25_ms: float
    p50_ms: float
    p75_ms: float
    rounds: int
    peak_mib: float | None  # the most that one call held beyond what was there before
    bytes: float  # what the case must move and compute at least; 0: not stated
    flops: float
    roofline_share: float | None  # the time that the measured ceilings allow over p50_ms
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

    def compare(self, case: str, device: str, impls: Mapping[str, Case], work: Work | None = None) -> list[Row]:
        """Time all implementations in one run, taking turns; `work` is what the case needs at least."""
        if self.out is None:
            for run in impls.values():
                run()
            return []
        samples = interleaved(device, impls)
        peaks = {impl: peak_mib(device, run) for impl, run in impls.items()}
        return self.keep(case, device, samples, peaks, work)

    def keep(
        self,
        case: str,
        device: str,
        samples: Mapping[str, list[float]],  # milliseconds
        peaks: Mapping[str, float | None] | None = None,
        work: Work | None = None,
    ) -> list[Row]:
        """Record what was timed elsewhere; out=None records nothing."""
        if self.out is None:
            return []
        rows = [_row(case, impl, device, each, (peaks or {}).get(impl), work) for impl, each in samples.items()]
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / f"{datetime.date.today()}_{device_slug(device)}.jsonl").open("a") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        return rows


def _row(case: str, impl: str, device: str, samples: list[float], peak: float | None, work: Work | None) -> Row:
    p25, p50, p75 = (round(float(value), 4) for value in np.percentile(samples, (25, 50, 75)))
    return Row(
        case=case,
        impl=impl,
        p25_ms=p25,
        p50_ms=p50,
        p75_ms=p75,
        rounds=len(samples),
        peak_mib=peak,
        bytes=work.bytes if work else 0.0,
        flops=work.flops if work else 0.0,
        roofline_share=round(work.least_ms(device) / p50, 4) if work else None,
        clocks=_nvidia_smi("clocks.sm,clocks.mem") if device == "cuda" else None,
        **environment(device),
    )


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
    """The commit, or "unknown" outside a checkout, and whether files differ from it, records like these apart."""
    commit = _output(["git", "rev-parse", "--short=12", "HEAD"])
    changed = ["git", "status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results"]
    return commit or "unknown", commit is None or bool(_output(changed))


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
