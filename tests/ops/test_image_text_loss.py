"""The image-text loss against a float64 oracle in loops and autograd of it, on one rank and on several."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stablerep.ops import ImplUnavailable, image_text_loss
from stablerep.ops.contrastive import batch
from tests.ops import contrastive
from tests.ops.contrastive import IMPLS, RAGGED, TILES

Sides = tuple[Tensor, Tensor, Tensor, Tensor]  # images, texts, labels, logit_scale


def oracle(images: Tensor, texts: Tensor, labels: Tensor, logit_scale: Tensor) -> Tensor:
    """Row by row, pair by pair."""
    u, v = ([row / row.norm() if row.norm() > 0 else row for row in side] for side in (images, texts))
    total = images.new_zeros(())
    for i in range(len(labels)):
        positives = [j for j in range(len(labels)) if labels[j] == labels[i]]
        for q, k in ((u, v), (v, u)):
            s = [logit_scale * (q[i] @ row) for row in k]
            total = total + torch.stack(s).logsumexp(0) - sum(s[j] for j in positives) / len(positives)
    return total / (2 * len(labels))


def sides(labels: list[int], dim: int = 5, logit_scale: float = 14.3) -> Sides:
    generator = torch.Generator().manual_seed(dim)

    def rows() -> Tensor:
        norm = torch.rand(len(labels), 1, generator=generator, dtype=torch.float64) * 10 + 0.01  # any
        return torch.randn(len(labels), dim, generator=generator, dtype=torch.float64) * norm

    return rows(), rows(), torch.tensor(labels), torch.tensor(logit_scale, dtype=torch.float64)


def loss_and_gradients(given: Sides, impl: str | None) -> list[Tensor]:
    images, texts, labels, logit_scale = given
    leaves = [tensor.clone().requires_grad_() for tensor in (images, texts, logit_scale)]
    if impl is None:
        loss = oracle(leaves[0], leaves[1], labels, leaves[2])
    else:
        loss = image_text_loss(leaves[0], leaves[1], labels, leaves[2], impl=impl)  # type: ignore[arg-type]
    loss.backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert [gradient.dtype for gradient in gradients] == [leaf.dtype for leaf in leaves]
    return [loss.detach(), *gradients]


@pytest.mark.parametrize("impl", IMPLS)
@settings(deadline=None, max_examples=40)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=10),
    dim=st.integers(1, 9),
    logit_scale=st.sampled_from([0.5, 14.3, 100.0, 1000.0]),
    tile=st.sampled_from(TILES),
)
def test_is_the_oracle(impl: str, labels: list[int], dim: int, logit_scale: float, tile: tuple[int, int]) -> None:
    given_sides = sides(labels, dim, logit_scale)
    with contrastive.tiles_of(*tile):
        actual = loss_and_gradients(given_sides, impl)
    torch.testing.assert_close(actual, loss_and_gradients(given_sides, None), rtol=1e-7, atol=1e-9)


def test_one_image_a_caption_is_clip() -> None:
    images, texts, labels, logit_scale = sides(list(range(40)), 8)
    logits = logit_scale * F.normalize(images) @ F.normalize(texts).T
    clip = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(image_text_loss(images, texts, labels, logit_scale), clip)


@pytest.mark.parametrize("logit_scale", [3.0, 80.0])  # without and with a maximum carried along
def test_gradcheck(logit_scale: float) -> None:
    images, texts, labels, scale = sides(RAGGED, logit_scale=logit_scale)
    leaves = [tensor.requires_grad_() for tensor in (images, texts, scale)]
    with contrastive.tiles_of(4, 6):
        assert torch.autograd.gradcheck(lambda u, v, s: image_text_loss(u, v, labels, s, impl="tiled"), leaves)


def run_rounded(rows: int, dim: int, logit_scale: float, impl: str, dtype: torch.dtype) -> contrastive.Results:
    generator = torch.Generator().manual_seed(rows)
    labels = torch.randint(0, max(1, rows // 5), (rows,), generator=generator)
    images, texts = (torch.randn(rows, dim, generator=generator).to(dtype) for _ in range(2))
    if impl == "reference in float64":
        images, texts, impl = images.double(), texts.double(), "reference"
    return loss_and_gradients((images, texts, labels, torch.tensor(logit_scale)), impl)


def check_precision(rows: int, dim: int, logit_scale: float, dtype: torch.dtype, impl: str, floor: float) -> None:
    contrastive.check_precision(lambda *args: run_rounded(rows, dim, logit_scale, *args), impl, dtype, floor)


@pytest.mark.parametrize("logit_scale", [14.3, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "dim"), [(63, 2), (127, 64), (1000, 127)])
def test_error_of_tiles_is_that_of_the_reference(rows: int, dim: int, dtype: torch.dtype, logit_scale: float) -> None:
    check_precision(rows, dim, logit_scale, dtype, "tiled", floor=4 * torch.finfo(torch.float32).eps)


# Weights of the gradient are rounded to half precision, and the interpreter cuts bfloat16 where a GPU rounds.
TRITON_FLOOR = {torch.float32: 4e-7, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.mark.parametrize("dtype", TRITON_FLOOR)
@pytest.mark.parametrize(("rows", "dim"), [(63, 2), (127, 64), (33, 300)])
def test_error_of_triton_is_that_of_the_reference(
    interpreted: Callable[..., Any], rows: int, dim: int, dtype: torch.dtype
) -> None:
    interpreted(check_precision, rows, dim, 50.0, dtype, "triton", TRITON_FLOOR[dtype])


def gradients_of_shares(impl: str, dtype: torch.dtype, share: int) -> list[Tensor]:
    """Gradients of every rank's rows, put together; of the scale, summed."""
    images, texts, labels, logit_scale = sides(RAGGED * 2, 20)
    images, texts = images.to(dtype), texts.to(dtype)
    logit_scale = logit_scale.to(dtype)
    common = images, texts, batch.inverse_norm(images), batch.inverse_norm(texts)
    firsts, ops = range(0, len(labels), share), torch.ops.stablerep
    lse = torch.cat([ops.image_text_lse(*common, logit_scale, first, share, impl) for first in firsts], 1)
    one = torch.ones((), dtype=dtype)
    gradients = [
        ops.image_text_loss_backward(one, logit_scale, *common, *batch.captions_of(labels), lse, first, share, impl)
        for first in firsts
    ]
    for_images, for_texts, for_scale = zip(*gradients, strict=True)
    return [torch.cat(for_images), torch.cat(for_texts), torch.stack(for_scale).sum()]


def test_shares_of_the_ranks(interpreted: Callable[..., Any]) -> None:
    exact = loss_and_gradients(sides(RAGGED * 2, 20), None)[1:]
    for share in (6, 24):
        torch.testing.assert_close(gradients_of_shares("tiled", torch.float64, share), exact, rtol=1e-9, atol=1e-11)
    triton = [gradient.double() for gradient in interpreted(gradients_of_shares, "triton", torch.float32, 6)]
    torch.testing.assert_close(triton, exact, rtol=1e-4, atol=1e-5)


def check_bad_rows(impl: str, dtype: torch.dtype) -> None:
    images, texts, labels, logit_scale = sides(RAGGED)
    images[1], texts[4] = 0, 0
    exact = loss_and_gradients((images, texts, labels, logit_scale), None)
    images, texts, logit_scale = images.to(dtype), texts.to(dtype), logit_scale.to(dtype)
    loss, for_images, for_texts, for_scale = loss_and_gradients((images, texts, labels, logit_scale), impl)
    assert float(loss) == pytest.approx(float(exact[0]), rel=1e-5)
    assert float(for_scale) == pytest.approx(float(exact[3]), rel=1e-4)
    assert for_images.isfinite().all()
    assert for_texts.isfinite().all()
    assert not for_images[1].any()
    assert not for_texts[4].any()
    for bad in (torch.nan, torch.inf):
        worse = images.clone()
        worse[10, 3] = bad  # a caption of one image
        assert loss_and_gradients((worse, texts, labels, logit_scale), impl)[0].isnan()
        worse = texts.clone()
        worse[2, 3] = bad
        assert loss_and_gradients((images, worse, labels, logit_scale), impl)[0].isnan()
    assert loss_and_gradients((images, texts, labels, logit_scale * math.nan), impl)[0].isnan()
    empty = torch.zeros(0, 5, dtype=dtype)
    assert not any(result.any() for result in loss_and_gradients((empty, empty, labels[:0], logit_scale), impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_bad_rows_and_empty_batch(impl: str) -> None:
    check_bad_rows(impl, torch.float64)


def test_bad_rows_in_triton(interpreted: Callable[..., Any]) -> None:
    interpreted(check_bad_rows, "triton", torch.float32)


def test_bad_input() -> None:
    images, texts, labels, logit_scale = sides(RAGGED)
    for wrong in [(images, texts[:-1], labels, logit_scale), (images, texts, labels[:-1], logit_scale)]:
        with pytest.raises(ValueError, match=r"image_text_loss: features must be \[N, D\], labels \[N\]"):
            image_text_loss(*wrong)
    with pytest.raises(ValueError, match=r"logit_scale \[\]"):
        image_text_loss(images, texts, labels, logit_scale[None])
    for wrong in [
        (images, texts.float(), labels, logit_scale),
        (images.long(), texts.long(), labels, logit_scale),
        (images, texts, labels.int(), logit_scale),
        (images, texts, labels, logit_scale.long()),
    ]:
        with pytest.raises(TypeError, match="image_text_loss: features must be of one float type, labels int64"):
            image_text_loss(*wrong)
    with pytest.raises(ImplUnavailable, match=r"impl='triton' cannot run: .*; have \['tiled', 'reference'\]"):
        image_text_loss(images, texts, labels, logit_scale, impl="triton")


def test_torch_sees_through() -> None:
    images, texts, labels, logit_scale = sides(RAGGED)
    common = images, texts, batch.inverse_norm(images), batch.inverse_norm(texts)
    captions, ops, one = batch.captions_of(labels), torch.ops.stablerep, torch.ones((), dtype=torch.float64)
    torch.library.opcheck(ops.image_text_lse.default, (*common, logit_scale, 2, 6, "tiled"))
    lse = ops.image_text_lse(*common, logit_scale, 0, len(labels), "tiled")
    backward = one, logit_scale, *common, *captions, lse, 2, 6, "tiled"
    torch.library.opcheck(ops.image_text_loss_backward.default, backward)
    leaves = [tensor.clone().requires_grad_() for tensor in (images[2:8], texts[2:8], logit_scale)]
    torch.library.opcheck(ops.image_text_loss.default, (*leaves, *common, *captions, lse, 2, 2, "tiled"))

    compiled = torch.compile(image_text_loss, fullgraph=True, backend="aot_eager")
    losses, gradients = [], []
    for function in (compiled, image_text_loss):
        leaves = [tensor.clone().requires_grad_() for tensor in (images, texts, logit_scale)]
        losses.append(function(leaves[0], leaves[1], labels, leaves[2]))
        losses[-1].backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def gradients_of_this_rank(labels: list[int], impl: str) -> list[Tensor]:
    """Loss and gradients of this rank, which holds an equal share of the rows."""
    images, texts, label, logit_scale = sides(labels)
    rows = slice(*(len(labels) // dist.get_world_size() * (dist.get_rank() + end) for end in (0, 1)))
    return loss_and_gradients((images[rows], texts[rows], label[rows], logit_scale), impl)


@pytest.mark.parametrize(("world_size", "impl"), [(2, "tiled"), (4, "tiled"), (2, "reference")])
def test_captions_that_span_ranks(run_ranks: Callable[..., list[Any]], world_size: int, impl: str) -> None:
    loss, *exact = loss_and_gradients(sides(RAGGED), None)
    results = run_ranks(world_size, gradients_of_this_rank, RAGGED, impl)
    for rank_loss, *_ in results:
        assert float(rank_loss) == pytest.approx(float(loss), rel=1e-9)
    _, images, texts, logit_scales = zip(*results, strict=True)
    # DDP divides by world_size.
    torch.testing.assert_close(torch.cat(images), world_size * exact[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(torch.cat(texts), world_size * exact[1], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(torch.stack(logit_scales).mean(), exact[2], rtol=1e-9, atol=1e-11)
