"""BatchNorm over ranks: a model on 1, 2 and 4 of them is the same model, to the last digits of float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stablerep import distributed
from stablerep.config import UserError
from stablerep.data.loader import Batch
from stablerep.models import batch_norm
from stablerep.train import optimiser
from stablerep.train.config import TrainConfig
from stablerep.train.objectives import create_objective

ROWS, VIEWS = 16, 2


def five_steps(arch: str) -> tuple[list[float], list[np.ndarray], dict[str, np.ndarray]]:
    """Losses, gradients of the first step, and all weights and buffers after five; this rank's share of each batch."""
    config = TrainConfig(
        data="none", out=Path("none"), arch=arch, objective="simclr", batch_size=ROWS, head_hidden=16, head_out=8
    )
    torch.manual_seed(0)
    encoder = timm.create_model(arch, num_classes=0)
    model = create_objective(encoder, config, bf16=False).double().train()
    adamw = optimiser.create_optimiser(model, config)
    forward = DistributedDataParallel(model) if distributed.world_size() > 1 else model
    mine = slice(
        *(ROWS // distributed.world_size() * number for number in (distributed.rank(), distributed.rank() + 1))
    )
    losses, gradients = [], []
    for step in range(5):
        draws = torch.Generator().manual_seed(step)
        images = torch.randn(ROWS, 3, 32, 32, generator=draws, dtype=torch.float64)
        labels = torch.arange(ROWS) // VIEWS
        loss = forward(Batch(images[mine], labels[mine]))
        loss.backward()
        gradients = gradients or [weight.grad.numpy().copy() for weight in model.parameters()]
        losses.append(loss.item())
        optimiser.set_learning_rate(adamw, 1e-3)
        optimiser.apply_gradients(adamw)
    return losses, gradients, {name: value.numpy() for name, value in model.state_dict().items()}


ARCHS = ("test_resnet", "test_efficientnet")  # BatchNorm2d, timm's BatchNormAct2d


def five_steps_of_each() -> list[Any]:
    return [five_steps(arch) for arch in ARCHS]


def test_two_and_four_ranks_train_the_model_of_one(run_ranks: Callable[..., list[Any]], one_thread: None) -> None:
    expected = five_steps_of_each()
    for ranks in (2, 4):
        for found in run_ranks(ranks, five_steps_of_each):
            for (losses, gradients, state), (ours, our_gradients, our_state) in zip(expected, found, strict=True):
                np.testing.assert_allclose(ours, losses, rtol=1e-9)
                for one, other in zip(our_gradients, gradients, strict=True):
                    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9 * np.abs(other).max() + 1e-12)
                assert our_state.keys() == state.keys()  # plain names: what is exported opens in timm
                assert any("running_var" in name for name in state)
                for name, value in state.items():
                    np.testing.assert_allclose(our_state[name], value, rtol=1e-5, atol=1e-8, err_msg=name)


def normalised(mean: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of both ranks far from 0, in float32; on one rank all of them."""
    rows = torch.randn(4096, 3, generator=torch.Generator().manual_seed(0)) + mean
    norm = batch_norm.over_ranks(nn.BatchNorm1d(3))
    mine = rows.chunk(distributed.world_size())[distributed.rank()]
    return norm(mine).detach().numpy(), norm.running_mean.numpy(), norm.running_var.numpy()  # type: ignore[union-attr]


def test_a_large_mean_costs_no_digits(run_ranks: Callable[..., list[Any]]) -> None:
    rows = (torch.randn(4096, 3, generator=torch.Generator().manual_seed(0)) + 1e4).double()
    expected = ((rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()).numpy()
    parts = run_ranks(2, normalised, 1e4)
    np.testing.assert_allclose(np.concatenate([part[0] for part in parts]), expected, atol=2e-3)  # 1e4 has 1e-3 ulps
    for _, running_mean, running_var in parts:
        np.testing.assert_allclose(running_mean, 0.1 * rows.mean(0).numpy(), rtol=1e-6)
        np.testing.assert_allclose(running_var, 0.9 + 0.1 * rows.var(0).numpy(), rtol=1e-5)


class Scaled(nn.BatchNorm2d):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(rows)


class Frozen(nn.Module):
    pass


def converted() -> str:
    frozen, evaluated = Frozen(), nn.BatchNorm2d(2).eval()
    model = nn.Sequential(frozen, batch_norm.over_ranks(evaluated))
    rows = torch.randn(3, 2, 4, 4)
    assert type(frozen) is Frozen and torch.equal(evaluated(rows), nn.BatchNorm2d(2).eval()(rows))
    assert isinstance(model[1], nn.BatchNorm2d)
    with pytest.raises(UserError) as error:
        batch_norm.over_ranks(Scaled(2))
    return str(error.value)


def test_what_is_no_known_batch_norm_is_refused_and_frozen_ones_are_left_alone(
    run_ranks: Callable[..., list[Any]],
) -> None:
    for message in run_ranks(2, converted):
        assert "Scaled, which cannot be computed over several ranks; train on one" in message
