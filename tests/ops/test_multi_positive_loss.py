"""The loss against a float64 oracle in loops, with METHOD's closed gradient, on one rank and on several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stablerep.ops import multi_positive_loss

RAGGED = [0, 0, 0, 7, 7, 3, 5, 5, 5, 5, -2, 7]  # captions with 3, 3, 1, 4 and 1 images


def oracle(features: Tensor, labels: Tensor, temperature: float) -> float:
    """Row by row, pair by pair, in float64."""
    unit = [row / row.norm() if row.norm() > 0 else row for row in features.double()]
    total = 0.0
    for i, z in enumerate(unit):
        others = [j for j in range(len(unit)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if positives:
            s = {j: z @ unit[j] / temperature for j in others}
            total += float(torch.stack(list(s.values())).logsumexp(0) - sum(s[j] for j in positives) / len(positives))
    return total / len(unit)


def closed_gradient(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """dL/dfeatures by the algebra of the symmetric similarity matrix, no autograd."""
    n = len(features)
    norm = features.norm(dim=1, keepdim=True)
    z = features / norm
    s = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    p = (s - s.logsumexp(1, keepdim=True)).exp()
    same = (labels[:, None] == labels).double()
    count = same.sum(1, keepdim=True) - 1
    r = (count > 0).double()
    pull = torch.where(count > 0, (same @ z - z) / count, 0.0)
    dz = ((r * p + (r * p).T) @ z - 2 * r * pull) / (n * temperature)
    return (dz - (dz * z).sum(1, keepdim=True) * z) / norm


def features_and_labels(labels: list[int], dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(len(labels), 1, generator=generator, dtype=torch.float64) * 10 + 0.01  # any norm
    return torch.randn(len(labels), dim, generator=generator, dtype=torch.float64) * scale, torch.tensor(labels)


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    dim=st.integers(1, 9),
    temperature=st.sampled_from([0.01, 0.1, 1.0]),
)
def test_is_the_oracle(labels: list[int], dim: int, temperature: float) -> None:
    features, label = features_and_labels(labels, dim)
    loss = multi_positive_loss(features, label, temperature)
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(oracle(features, label, temperature), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("labels", [RAGGED, [0, 1, 2], [4, 4], [1] * 63])
def test_gradient(labels: list[int]) -> None:
    features, label = features_and_labels(labels)
    features.requires_grad_()
    multi_positive_loss(features, label).backward()
    torch.testing.assert_close(features.grad, closed_gradient(features.detach(), label, 0.1), rtol=1e-9, atol=1e-11)
    assert torch.autograd.gradcheck(lambda f: multi_positive_loss(f, label, 0.5), features.detach().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_features_are_computed_in_float32(dtype: torch.dtype) -> None:
    features, label = features_and_labels(RAGGED, dim=32)
    rounded = features.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = multi_positive_loss(rounded, label)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(oracle(rounded.detach(), label, 0.1), rel=1e-5)
    loss.backward()
    assert rounded.grad is not None
    assert rounded.grad.dtype == dtype
    exact = closed_gradient(rounded.detach().double(), label, 0.1)
    torch.testing.assert_close(rounded.grad.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


def test_rows_without_a_positive_are_only_negatives() -> None:
    features, label = features_and_labels([0, 0, 1])
    features.requires_grad_()
    multi_positive_loss(features, label).backward()
    assert features.grad is not None
    assert features.grad[2].abs().max() > 0  # pushed away by the pair
    for labels in ([0], [0, 1, 2]):
        alone, label = features_and_labels(labels)
        alone.requires_grad_()
        loss = multi_positive_loss(alone, label)
        loss.backward()
        assert alone.grad is not None
        assert float(loss.detach()) == 0
        assert torch.equal(alone.grad, torch.zeros_like(alone))


def test_zero_rows_and_empty_batch() -> None:
    features, label = features_and_labels(RAGGED)
    features[1] = 0
    features.requires_grad_()
    loss = multi_positive_loss(features, label)
    loss.backward()
    assert features.grad is not None
    assert float(loss) == pytest.approx(oracle(features.detach(), label, 0.1))
    assert features.grad.isfinite().all()
    assert torch.equal(features.grad[1], torch.zeros(5, dtype=torch.float64))

    empty = torch.zeros(0, 5, requires_grad=True)
    loss = multi_positive_loss(empty, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0


def test_bad_input() -> None:
    features, label = features_and_labels(RAGGED)
    with pytest.raises(ValueError, match=r"\[N\]"):
        multi_positive_loss(features, label[:-1])
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        multi_positive_loss(features[0], label)
    with pytest.raises(TypeError, match="int64"):
        multi_positive_loss(features, label.int())
    with pytest.raises(TypeError, match="floating"):
        multi_positive_loss(features.long(), label)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature"):
            multi_positive_loss(features, label, temperature)


def own_part(labels: list[int]) -> tuple[float, Tensor]:
    """Loss and gradient of this rank, which holds an equal share of the rows."""
    features, label = features_and_labels(labels)
    share = len(labels) // dist.get_world_size()
    rows = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)
    own = features[rows].clone().requires_grad_()
    loss = multi_positive_loss(own, label[rows])
    loss.backward()
    assert own.grad is not None
    return float(loss.detach()), own.grad


@pytest.mark.parametrize("world_size", [2, 4])
def test_captions_that_span_ranks(run_ranks: Callable[..., list[Any]], world_size: int) -> None:
    parts = run_ranks(world_size, own_part, RAGGED)
    features, label = features_and_labels(RAGGED)
    exact = closed_gradient(features, label, 0.1)
    for loss, _ in parts:
        assert loss == pytest.approx(oracle(features, label, 0.1), rel=1e-9)
    gradient = torch.cat([part for _, part in parts])
    torch.testing.assert_close(gradient, world_size * exact, rtol=1e-9, atol=1e-11)  # DDP divides by world_size


def fail_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise ValueError("no room at the inn")
    dist.barrier()


def test_run_ranks_shows_the_first_traceback(run_ranks: Callable[..., list[Any]]) -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 1 of 2:.*fail_on_rank_1.*no room at the inn"):
        run_ranks(2, fail_on_rank_1)
