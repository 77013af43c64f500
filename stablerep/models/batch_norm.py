"""BatchNorm over the rows of all ranks, for any model: torch's SyncBatchNorm needs CUDA, and is no class of timm's."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from stablerep import distributed
from stablerep.config import UserError


def over_ranks(model: nn.Module) -> nn.Module:
    """Let every BatchNorm of a model see the rows of all ranks; in place, and nothing to do where there is one rank.

    Names, weights and hyperparameters stay, and so does what a subclass does after the norm (timm's BatchNormAct2d:
    dropout and activation). Frozen norms are no BatchNorm of torch, and are left alone.

    Raises:
        UserError: a kind of BatchNorm whose own forward is not known here.
    """
    if distributed.world_size() > 1:
        for module in model.modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, OverRanks):
                module.__class__ = _over_ranks(type(module))  # type: ignore[arg-type]  # mypy asks whether types hash
    return model


class OverRanks(_BatchNorm):
    """What stands before a class of BatchNorm to make it one over ranks. Every rank must hold as many rows."""

    @torch.compiler.disable  # a compiler has no use for what other ranks are asked
    def forward(self, rows: Tensor) -> Tensor:  # [B, C] or [B, C, ...] -> the same
        if not self.training or distributed.world_size() == 1:
            return super().forward(rows)
        mean, centred, count = _statistics(rows)
        self._track(mean, centred, count)
        inverse_std = torch.rsqrt(centred / count + self.eps)
        normalised = _Normalise.apply(rows, mean, inverse_std, self.weight, self.bias, count)
        after: Any = self  # timm's BatchNormAct2d
        return after.act(after.drop(normalised)) if hasattr(self, "act") else normalised

    @torch.no_grad()
    def _track(self, mean: Tensor, centred: Tensor, count: int) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean += momentum * (mean.to(self.running_mean) - self.running_mean)
        self.running_var += momentum * ((centred / (count - 1)).to(self.running_var) - self.running_var)


@cache
def _over_ranks(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    from timm.layers import BatchNormAct2d

    if kind.forward not in (_BatchNorm.forward, BatchNormAct2d.forward):
        raise UserError(f"--arch has a {kind.__name__}, which cannot be computed over several ranks; train on one")
    return type(f"{kind.__name__}OverRanks", (OverRanks, kind), {})


@torch.no_grad()
def _statistics(rows: Tensor) -> tuple[Tensor, Tensor, int]:  # [C] mean, [C] sum of centred squares, rows a channel
    """Of all ranks' rows, from the means and centred sums of each rank (Chan): a mean of squares less the square of a
    mean has no digits left where the mean is large."""
    values = _wide(rows)
    over = [dim for dim in range(rows.dim()) if dim != 1]
    count, ranks = rows.numel() // rows.shape[1], distributed.world_size()
    mean = values.mean(over)
    centred = (values - _by_channel(mean, rows)).square_().sum(over)
    gathered = [torch.empty_like(torch.stack([mean, centred])) for _ in range(ranks)]
    dist.all_gather(gathered, torch.stack([mean, centred]))
    means, sums = torch.stack(gathered).unbind(1)  # [ranks, C] each
    mean = means.mean(0)
    return mean, sums.sum(0) + count * (means - mean).square().sum(0), count * ranks


class _Normalise(torch.autograd.Function):
    """(rows - mean) inverse_std weight + bias, with the gradient that reaches mean and inverse_std on all ranks.

    weight and bias get the gradient of this rank's rows, as of any layer; DDP takes the mean over ranks.
    """

    @staticmethod
    def forward(
        ctx, rows: Tensor, mean: Tensor, inverse_std: Tensor, weight: Tensor | None, bias: Tensor | None, count: int
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(rows, mean, inverse_std, weight)
        ctx.count, ctx.has_bias = count, bias is not None
        scale = inverse_std if weight is None else inverse_std * weight.to(inverse_std)
        normalised = (_wide(rows) - _by_channel(mean, rows)) * _by_channel(scale, rows)
        if bias is not None:
            normalised += _by_channel(bias.to(normalised), rows)
        return normalised.to(rows.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, mean, inverse_std, weight = ctx.saved_tensors
        over = [dim for dim in range(rows.dim()) if dim != 1]
        gradient = _wide(gradient)
        unit = (_wide(rows) - _by_channel(mean, rows)) * _by_channel(inverse_std, rows)
        sums = torch.stack([gradient.sum(over), (gradient * unit).sum(over)])  # [2, C]
        of_bias, of_weight = sums.clone().unbind()
        dist.all_reduce(sums)
        sums /= ctx.count
        scale = inverse_std if weight is None else inverse_std * weight.to(inverse_std)
        through = gradient - _by_channel(sums[0], rows) - unit * _by_channel(sums[1], rows)
        of_rows = (through * _by_channel(scale, rows)).to(rows.dtype)
        return (
            of_rows,
            None,
            None,
            None if weight is None else of_weight.to(weight),
            of_bias.to(gradient if weight is None else weight) if ctx.has_bias else None,
            None,
        )


def _wide(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()


def _by_channel(values: Tensor, rows: Tensor) -> Tensor:  # [C] -> [1, C, 1, ...]
    return values.view(1, -1, *[1] * (rows.dim() - 2))
