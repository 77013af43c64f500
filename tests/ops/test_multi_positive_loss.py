"""The loss against a float64 oracle in loops, with METHOD's closed gradient, on one rank and on several."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stablerep.ops import ImplUnavailable, impls, multi_positive_loss
from stablerep.ops.contrastive import batch
from tests.ops import contrastive
from tests.ops.contrastive import IMPLS, RAGGED, TILES


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


def loss_and_gradient(features: Tensor, labels: Tensor, temperature: float, impl: str) -> tuple[Tensor, Tensor]:
    leaf = features.clone().requires_grad_()
    loss = multi_positive_loss(leaf, labels, temperature, impl=impl)  # type: ignore[arg-type]
    loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == features.dtype
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("impl", IMPLS)
@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    dim=st.integers(1, 9),
    temperature=st.sampled_from([0.001, 0.01, 0.1, 1.0]),
    tile=st.sampled_from(TILES),
)
def test_is_the_oracle(impl: str, labels: list[int], dim: int, temperature: float, tile: tuple[int, int]) -> None:
    features, label = features_and_labels(labels, dim)
    with contrastive.tiles_of(*tile):
        loss, gradient = loss_and_gradient(features, label, temperature, impl)
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(oracle(features, label, temperature), rel=1e-9, abs=1e-9)
    exact = closed_gradient(features, label, temperature).nan_to_num()  # NaN where there is one row only
    torch.testing.assert_close(gradient, exact, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 0.01])  # without and with a maximum carried along
@pytest.mark.parametrize("labels", [RAGGED, [0, 1, 2], [4, 4], [1] * 21])
def test_gradient(labels: list[int], temperature: float) -> None:
    features, label = features_and_labels(labels)
    with contrastive.tiles_of(4, 6):
        _, gradient = loss_and_gradient(features, label, temperature, "tiled")
        torch.testing.assert_close(gradient, closed_gradient(features, label, temperature), rtol=1e-9, atol=1e-11)
        assert torch.autograd.gradcheck(
            lambda f: multi_positive_loss(f, label, temperature, impl="tiled"), features.requires_grad_()
        )


def run_rounded(rows: int, dim: int, temperature: float, impl: str, dtype: torch.dtype) -> contrastive.Results:
    generator = torch.Generator().manual_seed(rows)
    label = torch.randint(0, max(1, rows // 5), (rows,), generator=generator)
    features = torch.randn(rows, dim, generator=generator).to(dtype)
    if impl == "reference in float64":
        features, impl = features.double(), "reference"
    return loss_and_gradient(features, label, temperature, impl)


def check_precision(rows: int, dim: int, temperature: float, dtype: torch.dtype, impl: str, floor: float) -> None:
    contrastive.check_precision(lambda *args: run_rounded(rows, dim, temperature, *args), impl, dtype, floor)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "dim"), [(63, 2), (127, 64), (1000, 127), (1300, 1500)])
def test_error_of_tiles_is_that_of_the_reference(rows: int, dim: int, dtype: torch.dtype, temperature: float) -> None:
    check_precision(rows, dim, temperature, dtype, "tiled", floor=torch.finfo(torch.float32).eps)


# Weights of the gradient are rounded to half precision, and the interpreter cuts bfloat16 where a GPU rounds.
TRITON_FLOOR = {torch.float32: 2e-7, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.mark.parametrize("temperature", [0.1, 0.01])
@pytest.mark.parametrize("dtype", TRITON_FLOOR)
@pytest.mark.parametrize(("rows", "dim"), [(63, 2), (127, 64), (259, 30), (70, 300)])
def test_error_of_triton_is_that_of_the_reference(
    interpreted: Callable[..., Any], rows: int, dim: int, dtype: torch.dtype, temperature: float
) -> None:
    interpreted(check_precision, rows, dim, temperature, dtype, "triton", TRITON_FLOOR[dtype])


def run_collapsed(towards: float, temperature: float, impl: str, dtype: torch.dtype) -> contrastive.Results:
    """One caption whose rows are nearly one vector: what a collapsing run needs its gradient for."""
    generator = torch.Generator().manual_seed(int(towards))
    features = torch.randn(96, 32, generator=generator) + towards * torch.randn(32, generator=generator)
    if impl == "reference in float64":
        features, impl = features.double(), "reference"
    return loss_and_gradient(features, torch.zeros(96, dtype=torch.int64), temperature, impl)


def check_collapsed(towards: float, temperature: float, impl: str) -> None:
    run = functools.partial(run_collapsed, towards, temperature)
    contrastive.check_precision(run, impl, torch.float32, floor=4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("towards", [5.0, 10.0, 100.0])
def test_error_of_collapsed_features_is_that_of_the_reference(
    interpreted: Callable[..., Any], towards: float, temperature: float
) -> None:
    check_collapsed(towards, temperature, "tiled")
    interpreted(check_collapsed, towards, temperature, "triton")


@pytest.mark.parametrize(
    ("dtype", "taken"), [(torch.float32, "tiled"), (torch.float64, "tiled"), (torch.bfloat16, "triton")]
)
def test_auto_takes_triton_for_half_precision_only(dtype: torch.dtype, taken: str) -> None:
    everywhere = dict.fromkeys(("triton", "tiled"), impls.anywhere)
    assert batch.choose_impl("some_loss", "auto", torch.zeros(2, 3, dtype=dtype), everywhere) == taken
    assert batch.choose_impl("some_loss", "triton", torch.zeros(2, 3, dtype=dtype), everywhere) == "triton"


def lse_and_gradient(impl: str, dtype: torch.dtype, labels: list[int], share: int) -> tuple[Tensor, Tensor, Tensor]:
    """LSE and gradient of every rank's rows, put together, and the gradient as one rank has it."""
    features, label = features_and_labels(labels, 20)
    features = features.to(dtype)
    norms, captions = batch.inverse_norm(features), batch.captions_of(label)
    firsts = range(0, len(labels), share)
    forward, backward = torch.ops.stablerep.multi_positive_lse, torch.ops.stablerep.multi_positive_loss_backward
    lse = torch.cat([forward(features, norms, first, share, 10.0, impl) for first in firsts])
    one = torch.ones((), dtype=norms.dtype)
    gradient = [backward(one, features, norms, *captions, lse, first, share, 10.0, impl) for first in firsts]
    return lse, torch.cat(gradient), backward(one, features, norms, *captions, lse, 0, len(labels), 10.0, impl)


def test_shares_of_the_ranks(interpreted: Callable[..., Any]) -> None:
    features, label = features_and_labels(RAGGED * 2, 20)
    exact = closed_gradient(features, label, 0.1)
    for share in (4, 6, 12):
        lse, gradient, whole = lse_and_gradient("tiled", torch.float64, RAGGED * 2, share)
        torch.testing.assert_close(gradient, exact, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(whole, exact, rtol=1e-9, atol=1e-11)
        triton_lse, triton_gradient, _ = interpreted(lse_and_gradient, "triton", torch.float32, RAGGED * 2, share)
        torch.testing.assert_close(triton_lse.double() * math.log(2), lse, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(triton_gradient.double(), exact, rtol=1e-4, atol=1e-5)


def test_autocast_does_not_lower_the_precision() -> None:
    features, label = features_and_labels(RAGGED, dim=32)
    expected = loss_and_gradient(features.float(), label, 0.1, "tiled")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(multi_positive_loss(features.float(), label, impl="reference"), expected[0])
        loss, gradient = loss_and_gradient(features.float(), label, 0.1, "tiled")
    assert loss.dtype == torch.float32
    torch.testing.assert_close((loss, gradient), expected, rtol=1e-6, atol=1e-7)


def check_bad_rows(impl: str, dtype: torch.dtype) -> None:
    features, label = features_and_labels(RAGGED)
    features = features.to(dtype)
    features[1] = 0
    loss, gradient = loss_and_gradient(features, label, 0.1, impl)
    assert float(loss) == pytest.approx(oracle(features, label, 0.1), rel=1e-5)
    assert gradient.isfinite().all()
    assert torch.equal(gradient[1], torch.zeros(5, dtype=dtype))
    for bad in (torch.nan, torch.inf, -torch.inf):
        for temperature in (0.1, 0.01):
            for row in (2, 5):  # with and without a positive
                worse = features.clone()
                worse[row, 3] = bad
                loss, gradient = loss_and_gradient(worse, label, temperature, impl)
                assert loss.isnan()
                assert not gradient.isfinite().all()
    for labels in ([0], [0, 1, 2]):
        alone, label = features_and_labels(labels)
        loss, gradient = loss_and_gradient(alone.to(dtype), label, 0.1, impl)
        assert float(loss) == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))
    empty = torch.zeros(0, 5, dtype=dtype)
    loss, gradient = loss_and_gradient(empty, torch.zeros(0, dtype=torch.int64), 0.1, impl)
    assert float(loss) == 0
    strided = torch.randn(12, 10).to(dtype)[:, ::2]
    torch.testing.assert_close(
        loss_and_gradient(strided, torch.tensor(RAGGED), 0.1, impl),
        loss_and_gradient(strided.contiguous(), torch.tensor(RAGGED), 0.1, impl),
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_bad_rows_lone_rows_empty_batch_and_strides(impl: str) -> None:
    check_bad_rows(impl, torch.float64)


def test_bad_rows_in_triton(interpreted: Callable[..., Any]) -> None:
    interpreted(check_bad_rows, "triton", torch.float32)


def test_rows_without_a_positive_are_only_negatives() -> None:
    features, label = features_and_labels([0, 0, 1])
    _, gradient = loss_and_gradient(features, label, 0.1, "tiled")
    assert gradient[2].abs().max() > 0  # pushed away by the pair


def what_triton_refuses() -> list[str]:
    label = torch.tensor([0, 0])
    answers = []
    for features in (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 1025)):
        try:
            multi_positive_loss(features, label, impl="triton")
        except (TypeError, ValueError) as error:
            answers.append(f"{type(error).__name__} {error}")
    return answers


def test_bad_input(interpreted: Callable[..., Any]) -> None:
    features, label = features_and_labels(RAGGED)
    with pytest.raises(ValueError, match=r"multi_positive_loss: features must be \[N, D\] and labels \[N\]"):
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
    with pytest.raises(ImplUnavailable, match=r"impl='triton' cannot run: .*; have \['tiled', 'reference'\]"):
        multi_positive_loss(features, label, impl="triton")
    float64, wide = interpreted(what_triton_refuses)
    assert float64.startswith("TypeError multi_positive_loss: impl='triton' takes float32, bfloat16 and float16")
    assert wide.startswith("ValueError multi_positive_loss: impl='triton' takes up to 1024 features a row, got 1025")


def test_torch_sees_through() -> None:
    features, label = features_and_labels(RAGGED)
    norms, captions, ops = batch.inverse_norm(features), batch.captions_of(label), torch.ops.stablerep
    arguments = features, norms, 2, 6, 10.0, "tiled"
    torch.library.opcheck(ops.multi_positive_lse.default, arguments)
    lse = ops.multi_positive_lse(features, norms, 0, len(features), 10.0, "tiled")
    one = torch.ones((), dtype=torch.float64)
    torch.library.opcheck(
        ops.multi_positive_loss_backward.default, (one, features, norms, *captions, lse, *arguments[2:])
    )
    own = features[2:8].clone().requires_grad_()
    torch.library.opcheck(ops.multi_positive_loss.default, (own, features, norms, *captions, lse, 2, 2, 10.0, "tiled"))

    compiled = torch.compile(loss_of_twice, fullgraph=True, backend="aot_eager")
    leaves = features.clone().requires_grad_(), features.clone().requires_grad_()
    losses = [function(leaf, label) for function, leaf in zip((compiled, loss_of_twice), leaves, strict=True)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def loss_of_twice(features: Tensor, label: Tensor) -> Tensor:
    return multi_positive_loss(features * 2, label) * 3


def loss_and_gradient_of_this_rank(labels: list[int], impl: str) -> tuple[float, Tensor]:
    """Loss and gradient of this rank, which holds an equal share of the rows."""
    features, label = features_and_labels(labels)
    rows = slice(*(len(labels) // dist.get_world_size() * (dist.get_rank() + end) for end in (0, 1)))
    loss, gradient = loss_and_gradient(features[rows], label[rows], 0.1, impl)
    assert batch.rank(None) == dist.get_rank()
    return float(loss), gradient


@pytest.mark.parametrize(("world_size", "impl"), [(2, "tiled"), (4, "tiled"), (2, "reference")])
@pytest.mark.filterwarnings("error")
def test_captions_that_span_ranks(run_ranks: Callable[..., list[Any]], world_size: int, impl: str) -> None:
    features, label = features_and_labels(RAGGED)
    exact = closed_gradient(features, label, 0.1)
    shares = run_ranks(world_size, loss_and_gradient_of_this_rank, RAGGED, impl)
    for loss, _ in shares:
        assert loss == pytest.approx(oracle(features, label, 0.1), rel=1e-9)
    gradient = torch.cat([rows for _, rows in shares])
    torch.testing.assert_close(gradient, world_size * exact, rtol=1e-9, atol=1e-11)  # DDP divides by world_size


def fail_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise ValueError("no room at the inn")
    dist.barrier()


def test_run_ranks_shows_the_first_traceback(run_ranks: Callable[..., list[Any]]) -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 1 of 2:.*fail_on_rank_1.*no room at the inn"):
        run_ranks(2, fail_on_rank_1)
