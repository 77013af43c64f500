"""An engine's part against torch's: as close as the precision allows, or not used."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stablerep.engines import parts
from stablerep.engines.parts import Part

Run = Callable[[dict[str, Tensor]], Tensor]

# dtype -> least cosine of a row, largest error as a share of the largest number in the reference. Two orders of the
# same sums differ by 2e-6 in fp32 (embedded default); half precisions by what their mantissas lose over the depth.
BOUNDS = {"fp32": (0.99999, 1e-3), "fp16": (0.999, 0.05), "bf16": (0.99, 0.2)}
TIMED_RUNS = 5
MOST_NUMBERS = {"cpu": 1 << 16, "cuda": 1 << 20}  # of latents at once: 4 and 64 rows of Stable Diffusion 1.5 at 512


def verify(part: Part, run: Run, rows: int) -> dict[str, Any]:
    """Compare on one row and on many, and time both; the result is what engine.json keeps.

    The reference is the pipeline's module in the same dtype on the same device.
    """
    cosine, error = 1.0, 0.0
    fits = MOST_NUMBERS[part.device.type] // math.prod(part.row_shapes["latents"])
    rows = max(1, min(rows, fits))
    for count in sorted({1, rows}):
        inputs = part.example(count, seed=count)
        expected, got = part.reference(inputs), run(inputs)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            reason = f"gives {got.dtype} {list(got.shape)}, torch {expected.dtype} {list(expected.shape)}"
            return {"ok": False, "reason": reason}
        for values, whose in ((got, "it"), (expected, "torch itself")):
            if not values.isfinite().all():
                return {"ok": False, "reason": f"{whose} gives numbers that are not finite in {values.dtype}"}
        cosine = min(cosine, _cosine(got, expected))
        error = max(error, _error(got, expected))
    least, most = BOUNDS[parts.dtype_name(part.dtype)]
    result: dict[str, Any] = {"cosine": round(cosine, 7), "max_error": float(f"{error:.3g}"), "rows": rows}
    if cosine < least or error > most:
        reason = f"differs from torch: cosine {cosine:.5f} (at least {least}), error {error:.3g} (at most {most})"
        return result | {"ok": False, "reason": reason}
    torch_ms, engine_ms = _milliseconds(part.device, (lambda: part.reference(inputs), lambda: run(inputs)))
    return result | {"ok": True, "torch_ms": round(torch_ms, 2), "engine_ms": round(engine_ms, 2)}


def _cosine(got: Tensor, expected: Tensor) -> float:
    got, expected = got.flatten(1).double(), expected.flatten(1).double()
    return torch.cosine_similarity(got, expected, dim=1).min().item()


def _error(got: Tensor, expected: Tensor) -> float:
    difference = (got.double() - expected.double()).abs().max()
    return (difference / expected.double().abs().max().clamp_min(1e-12)).item()


def _milliseconds(device: torch.device, runs: tuple[Callable[[], Tensor], ...]) -> list[float]:
    """The shortest of a few runs each, taking turns; what else the machine does only adds."""
    best = [float("inf")] * len(runs)
    for _ in range(TIMED_RUNS):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[i] = min(best[i], (time.perf_counter() - start) * 1e3)
    return best
