"""The multi-positive loss, forward and backward: eager against torch.compile of the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.record import Bench, Case
from stablerep.ops import multi_positive_loss
from stablerep.ops.multi_positive_loss import reference

IMAGES_PER_CAPTION = 6
SIZES = {"cpu": (1536, 8192), "cuda": (8256, 32768)}  # 8,256 is the recipe's batch


@pytest.mark.parametrize("which", [0, 1], ids=["small", "large"])
def test_multi_positive_loss(bench: Bench, device: str, which: int) -> None:
    num_rows, dim = (48, 16) if bench.quick else (SIZES[device][which], 256)
    features = torch.randn(num_rows, dim, device=device, requires_grad=True)
    labels = torch.arange(num_rows, device=device) // IMAGES_PER_CAPTION

    def step(loss_function: Case) -> Case:
        def run() -> None:
            features.grad = None
            loss_function().backward()  # type: ignore[attr-defined]

        return run

    def unit_gemms() -> None:  # 3 units of 2 N^2 D arithmetic: the least that an untiled loss does
        with torch.no_grad():
            unit = F.normalize(features)
            similarity = unit @ unit.T
            _ = similarity @ unit, similarity.T @ unit

    impls: dict[str, Case] = {"eager": step(lambda: multi_positive_loss(features, labels)), "3 GEMMs": unit_gemms}
    if not bench.quick:  # torch.compile takes half a minute
        compiled = torch.compile(reference.multi_positive_loss)
        torch.testing.assert_close(
            compiled(features, labels, 0.1), multi_positive_loss(features, labels), rtol=1e-4, atol=1e-4
        )
        impls["torch.compile"] = step(lambda: compiled(features, labels, 0.1))
    exact = multi_positive_loss(features.detach().double()[:2048], labels[:2048])
    torch.testing.assert_close(
        multi_positive_loss(features[:2048], labels[:2048]).double(), exact, rtol=1e-5, atol=1e-5
    )
    bench.compare(f"multi_positive_loss {num_rows}x{dim} float32 forward+backward", device, impls)
