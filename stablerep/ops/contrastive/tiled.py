"""Softmax over scaled cosines in tiles, in plain torch: what the losses share where BLAS does the products.

A tile of scores is computed, used and forgotten; the extra memory is two tiles and a few matrices of N x D.
q is k marks a symmetric score matrix: each pair of blocks is then computed once, for its rows and for its columns.
All between two products of a tile (exponential, sums, weights) is 14 % of the time at N 8192, D 256 on one thread:
native code for it could save half of that, and is not worth its lines.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# 512 x 4096 scores, 8 MiB: products at the rate of BLAS, and few calls, each of which waits for its slowest thread.
# 256 to 1024 rows and 1024 to 8192 columns are within 5 % on one thread.
TILE_ROWS, TILE_COLUMNS = 512, 4096
# exp(score) and its sum over a billion columns stay normal float32 numbers up to this scale: no maximum is needed.
MOST_UNSHIFTED_SCALE = 64.0


def logsumexp(
    q: Tensor,  # [M, D] unit rows
    k: Tensor,  # [N, D] unit rows
    scale: float | Tensor,  # of the cosines; a float where its value is at hand without waiting
    self_at: int | None = None,  # row i of q is row self_at + i of k and does not count; None: all count
    columns: bool = False,
) -> tuple[Tensor, Tensor]:  # [M] over each row of scores; [N] over each column, where asked for, else empty
    unshifted = _unshifted(scale)
    of_rows = q.new_full((len(q),), 0 if unshifted else -torch.inf)
    of_columns = of_rows if q is k else q.new_full((len(k) if columns else 0,), 0 if unshifted else -torch.inf)
    for i, j, new, scores in _score_tiles(q, k, scale, self_at):
        if unshifted:
            scores.exp_()
            of_rows[i] += scores.sum(1)
            if q is k or columns:
                of_columns[j][new:] += scores[:, new:].sum(0)
        else:
            of_rows[i] = torch.logaddexp(of_rows[i], scores.logsumexp(1))
            if q is k or columns:
                of_columns[j][new:] = torch.logaddexp(of_columns[j][new:], scores[:, new:].logsumexp(0))
    if unshifted:
        of_rows, of_columns = of_rows.log(), of_columns.log()
    return of_rows, of_columns


def weighted_rows(
    q: Tensor,  # [M, D] unit rows
    k: Tensor,  # [N, D] unit rows
    scale: float | Tensor,
    q_lse: Tensor,  # [M] over columns, +inf where the row has no part in the loss
    k_lse: Tensor,  # [N] over rows, likewise
    self_at: int | None = None,
    columns: bool = False,
) -> tuple[Tensor, Tensor]:  # [M, D] w k and, where asked for, [N, D] w^T q, else empty
    """w = exp(score - q_lse) + exp(score - k_lse), the softmaxes of both directions, times the other side's rows."""
    unshifted = _unshifted(scale)
    if unshifted:
        q_weight, k_weight = q_lse.neg().exp_(), k_lse.neg().exp_()
    scratch = _scratch(q, k)
    for_q = torch.zeros_like(q)
    for_k = for_q if q is k else torch.zeros_like(k) if columns else q.new_empty(0)
    for i, j, new, scores in _score_tiles(q, k, scale, self_at):
        other = scratch[: scores.numel()].view_as(scores)
        if unshifted:
            scores.exp_().mul_(torch.add(q_weight[i, None], k_weight[j], out=other))
        else:
            torch.sub(scores, k_lse[j], out=other).exp_()
            scores.sub_(q_lse[i, None]).exp_().add_(other)
        for_q[i].addmm_(scores, k[j])
        if q is k or columns:
            for_k[j][new:].addmm_(scores[:, new:].T, q[i])
    return for_q, for_k


def through_norm(gradient: Tensor, unit: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of unit rows [M, D], in place that of the rows before normalisation; and gradient . unit [M]."""
    along = (gradient * unit).sum(1)
    return gradient.addcmul_(unit, along[:, None], value=-1).mul_(inverse[:, None]), along


def _unshifted(scale: float | Tensor) -> bool:
    return isinstance(scale, float) and abs(scale) <= MOST_UNSHIFTED_SCALE


def _scratch(q: Tensor, k: Tensor) -> Tensor:
    return torch.empty(min(len(q), TILE_ROWS) * min(len(k), TILE_COLUMNS), dtype=q.dtype, device=q.device)


def _score_tiles(
    q: Tensor, k: Tensor, scale: float | Tensor, self_at: int | None
) -> Iterator[tuple[slice, slice, int, Tensor]]:
    """(rows i, columns j, new, scores): new is the first column of the tile that has not been a row beside it."""
    scratch = _scratch(q, k)
    for top in range(0, len(q), TILE_ROWS):
        i = slice(top, min(top + TILE_ROWS, len(q)))
        for left in range(top if q is k else 0, len(k), TILE_COLUMNS):
            j = slice(left, min(left + TILE_COLUMNS, len(k)))
            height, width = i.stop - i.start, j.stop - j.start
            scores = scratch[: height * width].view(height, width)
            alpha = scale if isinstance(scale, float) else 1.0
            torch.addmm(scores, q[i], k[j].T, beta=0, alpha=alpha, out=scores)
            if isinstance(scale, Tensor):
                scores.mul_(scale)
            if self_at is not None and -height < (offset := self_at + top - left) < width:
                scores.diagonal(offset).fill_(-torch.inf)
            yield i, j, max(0, min(i.stop, j.stop) - j.start) if q is k else 0, scores
