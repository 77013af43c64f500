"""The image-text loss, forward and backward: against N x N in eager and compiled, and bare GEMMs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import Bench, Case, Work
from stablerep.ops import image_text_loss
from stablerep.ops.contrastive import reference

IMAGES_PER_CAPTION = 6
CASES = [
    ("cpu", 1536, torch.float32),
    ("cpu", 8192, torch.float32),
    *(("cuda", rows, dtype) for rows in (8256, 32768) for dtype in (torch.float32, torch.bfloat16)),
]


def eager(images: Tensor, texts: Tensor, labels: Tensor, logit_scale: Tensor) -> Tensor:
    """On one process open_clip's own form, with soft targets."""
    return reference.image_text_loss(images.float(), texts.float(), labels, logit_scale)


@pytest.mark.parametrize(("device", "num_rows", "dtype"), CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_image_text_loss(bench: Bench, device: str, num_rows: int, dtype: torch.dtype) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    num_rows, dim = (48, 16) if bench.quick else (num_rows, 512)  # the width of StableRep+'s text tower
    generator = torch.Generator(device).manual_seed(0)
    images, texts = (
        torch.randn(num_rows, dim, device=device, generator=generator).to(dtype).requires_grad_() for _ in range(2)
    )
    labels = torch.arange(num_rows, device=device) // IMAGES_PER_CAPTION
    logit_scale = torch.tensor(1 / 0.07, device=device, requires_grad=True)
    inputs = images, texts, labels, logit_scale

    def gradient(case: Case) -> Tensor:
        case()
        assert images.grad is not None
        return images.grad.float()

    def step(loss_function: Case) -> Case:
        def run() -> None:
            images.grad = texts.grad = logit_scale.grad = None
            loss_function().backward()  # type: ignore[attr-defined]

        return run

    def unit_gemms() -> None:  # 3 units of 2 N^2 D arithmetic: the least that an untiled loss does
        with torch.no_grad():
            u, v = F.normalize(images), F.normalize(texts)
            similarity = u @ v.T
            _ = similarity @ v, similarity.T @ u

    impls = {
        "stablerep": step(lambda: image_text_loss(*inputs)),
        "eager N x N": step(lambda: eager(*inputs)),
    }
    if not bench.quick:  # torch.compile takes half a minute
        compiled = torch.compile(eager)
        impls["torch.compile of eager"] = step(lambda: compiled(*inputs))
    expected = gradient(impls["eager N x N"])
    for run in impls.values():
        error = (gradient(run) - expected).norm() / expected.norm()
        assert error < (1e-4 if dtype == torch.float32 else 0.05)
    impls["3 GEMMs"] = unit_gemms
    # Four units: scores once forward and once backward, and a product for the gradient of each side.
    work = Work(bytes=4 * images.nbytes, flops=4 * 2 * num_rows**2 * dim, dtype=dtype)
    bench.compare(f"image_text_loss {num_rows}x{dim} {str(dtype)[6:]} forward+backward", device, impls, work)
