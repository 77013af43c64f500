"""The multi-positive loss, forward and backward: against N x N in eager and compiled, open_clip's form, bare GEMMs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import Bench, Case, Work
from stablerep.ops import multi_positive_loss
from stablerep.ops.contrastive import reference

IMAGES_PER_CAPTION = 6
TEMPERATURE = 0.1
# 8,256 is the recipe's batch.
CASES = [
    ("cpu", 1536, torch.float32),
    ("cpu", 8192, torch.float32),
    *(("cuda", rows, dtype) for rows in (8256, 32768) for dtype in (torch.float32, torch.bfloat16)),
]


def eager(features: Tensor, labels: Tensor) -> Tensor:
    return reference.multi_positive_loss(features.float(), labels, TEMPERATURE)


def open_clip_form(features: Tensor, labels: Tensor, everyone: Tensor, all_labels: Tensor, first: int) -> Tensor:
    """Local rows against gathered ones as open_clip's local_loss has it: b x N logits, here with soft targets.

    On one process b is N. The paper's own code has this form too: a mask of positives, and cross-entropy.
    """
    logits = F.normalize(features) @ F.normalize(everyone).T / TEMPERATURE
    itself = torch.arange(len(features), device=features.device)[:, None] + first == torch.arange(
        len(everyone), device=features.device
    )
    logits = logits.masked_fill(itself, -1e4)
    targets = ((labels[:, None] == all_labels) & ~itself).to(logits.dtype)
    targets = targets / targets.sum(1, keepdim=True).clamp(min=1)
    return F.cross_entropy(logits.float(), targets.float())


@pytest.mark.parametrize(("device", "num_rows", "dtype"), CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_multi_positive_loss(bench: Bench, device: str, num_rows: int, dtype: torch.dtype) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    num_rows, dim = (48, 16) if bench.quick else (num_rows, 256)
    generator = torch.Generator(device).manual_seed(0)
    features = torch.randn(num_rows, dim, device=device, generator=generator).to(dtype).requires_grad_()
    labels = torch.arange(num_rows, device=device) // IMAGES_PER_CAPTION

    def gradient(case: Case) -> Tensor:
        features.grad = None
        case()
        assert features.grad is not None
        return features.grad.float()

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

    ours = step(lambda: multi_positive_loss(features, labels, TEMPERATURE))
    peers = {
        "eager N x N": step(lambda: eager(features, labels)),
        "open_clip b x N": step(lambda: open_clip_form(features, labels, features, labels, 0)),
    }
    if not bench.quick:  # torch.compile takes half a minute
        compiled = torch.compile(eager)
        peers["torch.compile of eager"] = step(lambda: compiled(features, labels))
    expected = gradient(peers["eager N x N"])
    for run in (ours, *peers.values()):  # half precision: open_clip's logits are rounded too
        error = (gradient(run) - expected).norm() / expected.norm()
        assert error < (1e-4 if dtype == torch.float32 else 0.05)
    impls = {"stablerep": ours, **peers, "3 GEMMs": unit_gemms}
    # Two units: what the symmetry of the scores leaves to do.
    work = Work(bytes=2 * features.nbytes, flops=2 * 2 * num_rows**2 * dim, dtype=dtype)
    bench.compare(f"multi_positive_loss {num_rows}x{dim} {str(dtype)[6:]} forward+backward", device, impls, work)
