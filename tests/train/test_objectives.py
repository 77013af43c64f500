"""Each objective against the sums of its paper in float64, and on 2 and 4 ranks against itself on one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stablerep import config as configs
from stablerep import distributed
from stablerep.data.loader import Batch
from stablerep.models import create_encoder
from stablerep.train import optimiser
from stablerep.train.config import TrainConfig
from stablerep.train.objectives import create_objective

ROWS, SIZE = 16, 32
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 0, 5, 6, 6])  # of two ranks' and four ranks' batches too
NAMES = ("stablerep", "simclr", "supcon", "clip", "siglip", "stablerep+")


def config_of(objective: str, **fields: Any) -> TrainConfig:
    tiny = {"data": "none", "out": Path("none"), "arch": "test_vit", "image_size": SIZE, "batch_size": ROWS}
    tiny |= {"views_per_prompt": 2, "head_hidden": 16, "head_out": 8, "base_lr": 0.01, "temperature": 0.2}
    tiny |= {"context_length": 8, "text_layers": 1, "text_width": 16, "text_heads": 2, "embed_dim": 8}
    return configs.from_fields(TrainConfig, tiny | {"objective": objective} | fields)


def build(config: TrainConfig) -> nn.Module:
    torch.manual_seed(0)
    return create_objective(create_encoder(config.arch, SIZE), config, bf16=False).double().train()


def batch_of(step: int, rows: slice = slice(None)) -> Batch:
    draws = torch.Generator().manual_seed(step)
    images = torch.randn(ROWS, 3, SIZE, SIZE, generator=draws, dtype=torch.float64)
    tokens = torch.randint(2, 400, (7, 8), generator=draws)
    tokens[:, 0], tokens[:, -1] = 0, 1
    texts, text_of = LABELS[rows].unique(return_inverse=True)
    return Batch(images[rows], LABELS[rows], tokens[texts], text_of)


def five_steps(config: TrainConfig) -> tuple[list[float], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Losses, the first step's gradients as DDP leaves them, and the state after five."""
    model = build(config)
    adamw = optimiser.create_optimiser(model, config)
    forward = DistributedDataParallel(model) if distributed.world_size() > 1 else model
    each = ROWS // distributed.world_size()
    rows = slice(distributed.rank() * each, (distributed.rank() + 1) * each)
    losses: list[float] = []
    gradients: dict[str, np.ndarray] = {}
    for step in range(5):
        loss = forward(batch_of(step, rows))
        loss.backward()
        losses.append(loss.item())
        gradients = gradients or gradients_of(model)
        optimiser.update(adamw, 1e-3)
    return losses, gradients, {name: value.numpy() for name, value in model.state_dict().items()}


def gradients_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {n: weight.grad.numpy().copy() for n, weight in model.named_parameters() if weight.grad is not None}


def five_steps_of_each(names: tuple[str, ...]) -> list[Any]:
    return [five_steps(config_of(name)) for name in names]


def test_two_and_four_ranks_train_what_one_does(run_ranks: Callable[..., list[Any]], one_thread: None) -> None:
    expected = five_steps_of_each(NAMES)
    for ranks in (2, 4):
        for found in run_ranks(ranks, five_steps_of_each, NAMES):
            for name, (losses, gradients, state), ours in zip(NAMES, expected, found, strict=True):
                np.testing.assert_allclose(ours[0], losses, rtol=1e-9, err_msg=name)
                for mine, theirs in ((ours[1], gradients), (ours[2], state)):
                    assert mine.keys() == theirs.keys()
                    for key, value in theirs.items():
                        atol = (
                            1e-7 * np.abs(value).max() + 1e-8
                        )  # of a bias without effect, AdamW makes steps of rounding
                        np.testing.assert_allclose(mine[key], value, rtol=1e-5, atol=atol, err_msg=f"{name} {key}")


def cosines(rows: Tensor, others: Tensor) -> Tensor:
    return (rows / rows.norm(dim=1, keepdim=True)) @ (others / others.norm(dim=1, keepdim=True)).T


def multi_positive(rows: Tensor, temperature: float) -> Tensor:
    """Row by row: the cross-entropy between the softmax over all others and equal shares for the positives."""
    score, total = cosines(rows, rows) / temperature, rows.new_zeros(())
    for i in range(ROWS):
        others = [j for j in range(ROWS) if j != i]
        positives = [j for j in others if LABELS[j] == LABELS[i]]
        denominator = torch.stack([score[i, j].exp() for j in others]).sum()
        for j in positives:
            total = total - (score[i, j].exp() / denominator).log() / len(positives)
    return total / ROWS


def image_text(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    total = images.new_zeros(())
    for score in (scale * cosines(images, texts), scale * cosines(texts, images)):
        for i in range(ROWS):
            right = [j for j in range(ROWS) if LABELS[j] == LABELS[i]]
            total = total - sum((score[i].softmax(0)[j].log() for j in right), start=images.new_zeros(())) / len(right)
    return total / (2 * ROWS)


def sigmoid_pairs(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    score, total = scale * cosines(images, texts) + bias, images.new_zeros(())
    for i in range(ROWS):
        for j in range(ROWS):
            sign = 1 if LABELS[i] == LABELS[j] else -1
            total = total + (1 + (-sign * score[i, j]).exp()).log()
    return total / ROWS


def by_the_paper(name: str, model: Any, batch: Batch, config: TrainConfig) -> Tensor:
    features = model.encoder(batch.images)
    texts = model.text_tower(batch.texts)[batch.text_of] if "text_tower" in dict(model.named_children()) else None
    if name == "clip":
        return image_text(model.head(features), texts, model.logit_scale.exp())
    if name == "siglip":
        return sigmoid_pairs(model.head(features), texts, model.logit_scale.exp(), model.logit_bias)
    loss = multi_positive(model.head(features), config.temperature)
    if name == "stablerep+":
        loss = loss + image_text(model.image_projection(features), texts, model.logit_scale.exp())
    return loss


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_those_of_the_paper(name: str) -> None:
    config = config_of(name)
    model, batch = build(config), batch_of(0)
    expected = by_the_paper(name, model, batch, config)
    expected.backward()
    theirs = gradients_of(model)
    model.zero_grad(set_to_none=True)
    loss = model(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    ours = gradients_of(model)
    assert ours.keys() == theirs.keys() == {name for name, _ in model.named_parameters()}  # DDP needs all of them
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-6, atol=1e-9 * np.abs(value).max() + 1e-14, err_msg=key)


def test_loss_of_the_features_is_the_loss() -> None:
    """What gradient caching rests on: features of parts of a batch, one after the other, then the loss of all."""
    for name in NAMES:
        model, batch = build(config_of(name)), batch_of(0)
        halves = [replace(batch, images=half) for half in batch.images.chunk(2)]
        features = torch.cat([model.features(half) for half in halves])
        assert model.loss(features, batch).item() == pytest.approx(model(batch).item(), rel=1e-10)


def test_the_logit_scale_stays_at_most_100_and_comes_down_again() -> None:
    model: Any = build(config_of("clip"))
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
    model(batch_of(0)).backward()
    assert model.logit_scale.item() == pytest.approx(math.log(100)) and model.logit_scale.grad != 0
