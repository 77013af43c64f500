"""Noise of a batch of images: native against the reference, torch.randn, and writing as many bytes."""

from __future__ import annotations

import pytest
import torch

from benchmarks.record import Bench, Case, Work
from stablerep import native
from stablerep.ops import philox_normal

SHAPES = {"sd15": (64, 4, 64, 64), "fashion": (512, 4, 8, 8)}


@pytest.mark.parametrize("name", SHAPES)
def test_philox_normal(bench: Bench, device: str, name: str) -> None:
    batch, *shape = (2, 4, 8, 8) if bench.quick else SHAPES[name]
    ids, indices = torch.arange(batch, device=device), torch.zeros(batch, dtype=torch.int64, device=device)
    size = tuple(shape)

    expected = philox_normal(1, ids, indices, size, impl="reference")
    impls: dict[str, Case] = {
        "reference": lambda: philox_normal(1, ids, indices, size, impl="reference"),
        "torch.randn": lambda: torch.randn(batch, *size, device=device),
        "copy of as many bytes": lambda: expected.clone(),
    }
    if native.why_not(device) is None:
        actual = philox_normal(1, ids, indices, size, impl="native")
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
        impls = {"native": lambda: philox_normal(1, ids, indices, size, impl="native"), **impls}
    bench.compare(
        f"philox_normal {name} {batch}x{'x'.join(map(str, size))}", device, impls, Work(bytes=expected.nbytes)
    )
