"""What the device can do at most, measured: the ceilings of the roofline."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from benchmarks.clock import interleaved

COPY_BYTES = 2**28  # far beyond every cache but the largest servers' third level
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Work:
    """What a call must do at least, however it is done."""

    bytes: float = 0.0  # read once and written once
    flops: float = 0.0  # of the products; a fused multiply-add counts two
    dtype: torch.dtype = torch.float32  # in which the products run

    def least_ms(self, device: str) -> float:
        """The time that the slower of memory and arithmetic allows on as many threads as torch uses now."""
        threads = torch.get_num_threads()
        memory = self.bytes / (copy_gb_per_second(device, threads) * 1e6)
        if not self.flops:
            return memory
        return max(memory, self.flops / (gemm_gflop_per_second(device, self.dtype, threads) * 1e6))


@functools.cache
def copy_gb_per_second(device: str, threads: int) -> float:
    """Bytes read plus bytes written by torch's copy, in 1e9 a second."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / (_median_ms(device, lambda: target.copy_(source)) * 1e6)


@functools.cache
def gemm_gflop_per_second(device: str, dtype: torch.dtype, threads: int) -> float:
    """Rate of the BLAS's square product, in 1e9 a second."""
    size = GEMM_SIZE[device]
    a = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)
    return 2 * size**3 / (_median_ms(device, lambda: torch.mm(a, a, out=out)) * 1e6)


def _median_ms(device: str, run: object) -> float:
    samples = sorted(interleaved(device, {"": run})[""])  # type: ignore[dict-item]
    return samples[len(samples) // 2]
