"""A training step on a CUDA device that is none: devices, dtypes, and that nothing is copied or waited for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stablerep.data.loader import Batch
from stablerep.train import loop
from stablerep.train.config import TrainConfig
from stablerep.train.metrics import Metrics
from stablerep.train.optimiser import apply_gradients, set_learning_rate
from tests.fake_cuda import CUDA, NoWaiting, fake_cuda, move

ROWS = 12


@pytest.mark.parametrize(("arch", "size", "precision"), [
    ("test_vit", 160, "bf16"), ("test_vit", 160, "fp32"), ("test_resnet", 32, "bf16"),
])  # fmt: skip
def test_a_step_launches_and_goes_on(arch: str, size: int, precision: str) -> None:
    config = TrainConfig(
        data=("none",), out=Path("none"), arch=arch, image_size=size, batch_size=ROWS, device="cpu", precision=precision
    )
    objective, optimiser = loop.build(config, torch.device("cpu"))
    with fake_cuda():
        moved = move(objective)
        for group in optimiser.param_groups:
            group["params"] = [moved[weight] for weight in group["params"]]
            group["lr"] = torch.zeros((), device=CUDA)  # as create_optimiser has it there
        batch = Batch(torch.empty(ROWS, 3, size, size, device=CUDA), torch.arange(ROWS, device=CUDA) // config.views)
        metrics = Metrics(CUDA, ROWS)
        with NoWaiting() as step:
            loss = objective(batch)
            for weight in moved.values():  # what backward would leave
                weight.grad = torch.empty_like(weight)
            set_learning_rate(optimiser, 0.1)
            metrics.add(loss, apply_gradients(optimiser))
        assert (loss.device, loss.dtype, loss.shape) == (CUDA, torch.float32, ())
        assert all(each.device == CUDA for state in optimiser.state.values() for each in state.values())
        assert {"multi_positive_lse", "multi_positive_loss", "_fused_adamw_"} <= set(step.launched)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_gradient_of_the_loss_has_the_form_of_the_features(dtype: torch.dtype) -> None:
    ops = torch.ops.stablerep
    with fake_cuda(), NoWaiting():
        features, norms = torch.empty(ROWS, 8, device=CUDA, dtype=dtype), torch.empty(ROWS, device=CUDA)
        captions = [torch.arange(ROWS, device=CUDA)] * 3
        gradient = ops.multi_positive_loss_backward(
            norms[0], features, norms, *captions, norms, 0, ROWS, 10.0, "triton"
        )
    assert (gradient.shape, gradient.dtype, gradient.device) == (features.shape, dtype, CUDA)


@pytest.mark.parametrize(("mistake", "said"), [
    (lambda images: images.cpu(), "copies between"),
    (lambda images: images * images.sum().item(), "waits for the device"),
    (lambda images: images[images.mean((1, 2, 3)) > 0], "nonzero"),
    (lambda images: images + torch.zeros(ROWS, 1, 1, 1), "device"),
])  # fmt: skip
def test_mistakes_are_seen(mistake, said: str) -> None:
    with fake_cuda():
        images: Tensor = torch.empty(ROWS, 3, 8, 8, device=CUDA)
        with pytest.raises((AssertionError, RuntimeError), match=said), NoWaiting():
            mistake(images)
