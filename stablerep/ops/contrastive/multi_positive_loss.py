"""The loss of StableRep: every image of a caption is a positive of every other."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from stablerep.ops import impls
from stablerep.ops.contrastive import batch, reference, tiled
from stablerep.ops.contrastive.batch import Backend, Captions

OP = "multi_positive_loss"
Impl = Literal["auto", "triton", "tiled", "reference"]
IMPLS = {"triton": impls.triton, "tiled": impls.anywhere, "reference": impls.anywhere}


def multi_positive_loss(
    features: Tensor,  # [N, D] float, any norm; N the same on every rank
    labels: Tensor,  # [N] int64, equal = same caption, also across ranks
    temperature: float = 0.1,
    group: ProcessGroup | None = None,  # None: the default group if torch.distributed is started, else this process
    impl: Impl = "auto",
) -> Tensor:  # [] float32; float64 for float64 features
    """Multi-positive contrastive loss over the rows of all ranks (StableRep, arXiv 2306.00984, eq. 2-4).

    Rows without a positive contribute zero but stay negatives of the others. Mean over the global N; 0 for an
    empty batch. A row of zeros has cosine 0 with every row and gets no gradient. A row with NaN or infinity makes
    the loss NaN as soon as any row has a positive, and gradients with it. Nothing of size N x N is stored, except
    by "reference". Scores and sums are float32 (float64 features: float64), also under autocast; for bfloat16 and
    float16 features Triton rounds the softmax weights of the gradient to that precision. Norms must lie within
    1e-18 .. 1e18. Never waits for the device. Not twice differentiable.

    On several ranks every rank returns the global loss, and the gradient is world size times that of the global loss,
    so that the mean over ranks that DDP and FSDP take gives the gradient of the global loss. Features, labels and N
    numbers are gathered; the gradient needs no collective.

    Raises:
        ValueError: features is not [N, D], labels is not [N], temperature is not a positive number, or D > 1024
            with "triton".
        TypeError: features is not floating point or, with "triton", is float64; or labels is not int64.
        ImplUnavailable: impl cannot run on that device.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"{OP}: features must be [N, D] and labels [N], got {list(features.shape)} and {list(labels.shape)}"
        )
    if not features.is_floating_point() or labels.dtype != torch.int64:
        raise TypeError(
            f"{OP}: features must be floating point and labels int64, got {features.dtype} and {labels.dtype}"
        )
    if not 0 < temperature < math.inf:
        raise ValueError(f"{OP}: temperature must be a positive number, got {temperature}")
    chosen = batch.choose_impl(OP, impl, features, IMPLS)
    batch.check_impl(OP, chosen, features)
    if features.numel() == 0:
        return features.to(batch.compute_dtype(features.dtype)).sum()  # 0, and still part of the graph
    rows, labels = batch.gather(features, group), batch.gather(labels, group)
    first, world_size = batch.rank(group) * len(features), batch.world_size(group)
    with torch.autocast(features.device.type, enabled=False):
        if chosen == "reference":
            return _reference(features, rows, labels, first, temperature, world_size)
        inverse_norm = batch.inverse_norm(rows)
        order, slot, size = batch.captions_of(labels)
        lse = torch.ops.stablerep.multi_positive_lse(rows, inverse_norm, first, len(features), 1 / temperature, chosen)
        return torch.ops.stablerep.multi_positive_loss(
            features, rows, inverse_norm, order, slot, size, batch.gather(lse, group), first, world_size,
            1 / temperature, chosen,
        )  # fmt: skip


def _reference(
    features: Tensor, rows: Tensor, labels: Tensor, first: int, temperature: float, world_size: int
) -> Tensor:
    rows = torch.cat([rows[:first], features, rows[first + len(features) :]])  # gradient to the own ones only
    if rows.dtype != torch.float64:
        rows = rows.float()
    loss = reference.multi_positive_loss(rows, labels, temperature)
    return loss.detach() + world_size * (loss - loss.detach())


def _backend(impl: str, rows: Tensor, inverse_norm: Tensor, scale: float) -> Backend:
    if impl == "tiled":
        return tiled.MultiPositive(rows, inverse_norm, scale)
    from stablerep.ops.contrastive import launch  # takes half a second, and only CUDA needs it

    return launch.MultiPositive(rows, inverse_norm, scale)


@torch.library.custom_op("stablerep::multi_positive_lse", mutates_args=())
def _lse(rows: Tensor, inverse_norm: Tensor, first: int, length: int, scale: float, impl: str) -> Tensor:
    """[length] log-sum-exp of rows first .. first + length - 1 over all others; Triton: in base 2."""
    with torch.autocast(rows.device.type, enabled=False):
        return _backend(impl, rows, inverse_norm, scale).logsumexp(slice(first, first + length))


@_lse.register_fake
def _(rows: Tensor, inverse_norm: Tensor, first: int, length: int, scale: float, impl: str) -> Tensor:
    return inverse_norm.new_empty(length)


@torch.library.custom_op("stablerep::multi_positive_loss", mutates_args=())
def _loss(
    features: Tensor,  # [length, D], the rows from first on; takes the gradient
    rows: Tensor,  # [N, D] of all ranks
    inverse_norm: Tensor,  # [N]
    order: Tensor,  # [N] these three as in Captions
    slot: Tensor,
    size: Tensor,
    lse: Tensor,  # [N] as multi_positive_lse gave it
    first: int,
    world_size: int,
    scale: float,
    impl: str,
) -> Tensor:
    """The loss of all rows, which is cheap once their LSE is known: O(N D)."""
    return _backend(impl, rows, inverse_norm, scale).loss(Captions(order, slot, size), lse)


@_loss.register_fake
def _(
    features: Tensor, rows: Tensor, inverse_norm: Tensor, order: Tensor, slot: Tensor, size: Tensor, lse: Tensor,
    first: int, world_size: int, scale: float, impl: str,
) -> Tensor:  # fmt: skip
    return inverse_norm.new_empty(())


@torch.library.custom_op("stablerep::multi_positive_loss_backward", mutates_args=())
def _backward(
    factor: Tensor, rows: Tensor, inverse_norm: Tensor, order: Tensor, slot: Tensor, size: Tensor, lse: Tensor,
    first: int, length: int, scale: float, impl: str,
) -> Tensor:  # fmt: skip
    """[length, D] factor times the gradient of rows first .. first + length - 1."""
    with torch.autocast(rows.device.type, enabled=False):
        (gradient,) = _backend(impl, rows, inverse_norm, scale).gradient(
            factor, Captions(order, slot, size), lse, slice(first, first + length)
        )
    return gradient.to(rows.dtype)


@_backward.register_fake
def _(
    factor: Tensor, rows: Tensor, inverse_norm: Tensor, order: Tensor, slot: Tensor, size: Tensor, lse: Tensor,
    first: int, length: int, scale: float, impl: str,
) -> Tensor:  # fmt: skip
    return rows.new_empty(length, rows.shape[1])


def _save(ctx, inputs, output) -> None:
    features, *tensors, ctx.first, ctx.world_size, ctx.scale, ctx.impl = inputs
    ctx.length = len(features)
    ctx.save_for_backward(*tensors)


def _gradient(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    factor = gradient * ctx.world_size  # undoes the mean over ranks
    own = torch.ops.stablerep.multi_positive_loss_backward(
        factor, *ctx.saved_tensors, ctx.first, ctx.length, ctx.scale, ctx.impl
    )
    return own, *[None] * 10


_loss.register_autograd(_gradient, setup_context=_save)
