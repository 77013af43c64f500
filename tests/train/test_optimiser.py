"""The optimiser, its learning rate and the metrics, each by itself."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import timm
import torch
from torch import nn

from stablerep.models import ProjectionHead
from stablerep.train.config import TrainConfig
from stablerep.train.metrics import Metrics
from stablerep.train.optimiser import Update, apply_gradients, create_optimiser, learning_rate, set_learning_rate


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [learning_rate(step, peak=2.0, steps=110, warmup_steps=10) for step in range(111)]
    assert rates[:3] == pytest.approx([0.2, 0.4, 0.6]) and rates[9] == 2.0 == rates[10]
    assert rates[60] == pytest.approx(1.0)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[110] == pytest.approx(0.0)


def test_weight_decay_spares_biases_norms_tokens_and_positions() -> None:
    model = nn.Sequential(timm.create_model("test_vit", num_classes=0), ProjectionHead(64, 16, 8))
    optimiser = create_optimiser(model, TrainConfig(data=("a",), out="b"))  # type: ignore[arg-type]
    name_of = {weight: name for name, weight in model.named_parameters()}
    decayed, others = ({name_of[w] for w in group["params"]} for group in optimiser.param_groups)
    assert len(decayed) + len(others) == len(name_of)
    assert "0.blocks.0.attn.qkv.weight" in decayed and "1.layers.0.weight" in decayed
    assert {"0.cls_token", "0.pos_embed", "0.blocks.0.attn.qkv.bias", "0.norm.weight", "1.layers.1.weight"} <= others


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_leaves_no_trace(value: float) -> None:
    model = nn.Linear(3, 2)
    optimiser = create_optimiser(model, TrainConfig(data=("a",), out="b"))  # type: ignore[arg-type]
    set_learning_rate(optimiser, 0.1)
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        assert apply_gradients(optimiser).skipped == 0
    before = [weight.clone() for weight in model.parameters()]
    moments = [state["exp_avg"].clone() for state in optimiser.state.values()]
    (model(torch.ones(1, 3)).sum() * value).backward()
    assert apply_gradients(optimiser).skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, optimiser.state.values(), strict=True))
    assert all(state["step"] == 2 for state in optimiser.state.values())


def test_metrics_are_means_of_the_finite_steps() -> None:
    metrics = Metrics(torch.device("cpu"), images_per_step=8)
    one, zero = torch.ones(()), torch.zeros(())
    metrics.add(2 * one, Update(5 * one, zero))
    metrics.add(one * math.nan, Update(one * math.inf, one))
    metrics.add(4 * one, Update(7 * one, zero))
    means = metrics.drain()
    assert (means["loss"], means["gradient_norm"], means["skipped_updates"]) == (3.0, 6.0, 1.0)
    metrics.add(one, Update(one, zero))
    assert metrics.drain()["loss"] == 1.0
