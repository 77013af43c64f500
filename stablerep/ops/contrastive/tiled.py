"""Both losses over tiles of scores with BLAS products, in plain torch.

A tile of scores is computed, used and forgotten; the extra memory is two tiles and a few matrices of N x D.
q is k marks a symmetric score matrix: each pair of blocks is then computed once, for its rows and for its columns.
All between two products of a tile (exponential, sums, weights) is 14 % of the time at N 8192, D 256 on one thread:
native code for it could save half of that, and is not worth its lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stablerep.ops.contrastive.batch import MOST_UNSHIFTED_SCALE, Captions

# 512 x 4096 scores, 8 MiB: products at the rate of BLAS, and few calls, each of which waits for its slowest thread.
# 256 to 1024 rows and 1024 to 8192 columns are within 5 % on one thread.
TILE_ROWS, TILE_COLUMNS = 512, 4096


class Centred(NamedTuple):
    """Rows as mean + (row - mean).

    The gradient is a difference of two weighted sums of rows: of features that collapse, all rows are nearly their
    mean, and what is left of the difference would be rounding.
    """

    rows: Tensor  # [N, D] less the mean
    mean: Tensor  # [D]

    @staticmethod
    def of(unit: Tensor) -> Centred:
        mean = unit.mean(0)
        return Centred(unit - mean, mean)


class Weighted(NamedTuple):
    rows: Tensor  # [M, D] sum of the other side's centred rows by their weights
    total: Tensor  # [M] sum of the weights


class MultiPositive:
    """The Backend of multi_positive_loss: 2 units of 2 N^2 D arithmetic where all rows are this rank's, else 3."""

    def __init__(self, rows: Tensor, inverse_norm: Tensor, scale: float) -> None:
        self.inverse_norm, self.scale = inverse_norm, scale
        self.unit = rows * inverse_norm[:, None]

    def logsumexp(self, own: slice) -> Tensor:
        return logsumexp(self._rows(own), self.unit, self.scale, self_at=own.start)[0]

    def loss(self, captions: Captions, lse: Tensor) -> Tensor:
        others = _caption_sums(self.unit, captions)[captions.slot].sub_(self.unit)
        positive = others.mul_(self.unit).sum(1) / (captions.size - 1)
        return (lse - self.scale * positive).masked_fill_(captions.size == 1, 0).sum() / len(self.unit)

    def gradient(self, factor: Tensor, captions: Captions, lse: Tensor, own: slice) -> tuple[Tensor]:
        rows, others = self._rows(own), captions.size[own] - 1
        lse = lse.masked_fill(captions.size == 1, torch.inf)
        centred = Centred.of(self.unit)
        weighted, _ = weighted_rows(rows, self.unit, self.scale, lse[own], lse, centred, self_at=own.start)
        positive = _caption_sums(centred.rows, captions)[captions.slot[own]].sub_(centred.rows[own])
        positive.div_(others.clamp(min=1)[:, None])
        gradient = _less_positives(weighted, positive, 2 * (others > 0).to(positive.dtype), centred.mean)
        gradient.mul_(factor * self.scale / len(self.unit))
        return (normalize_backward(gradient, rows, self.inverse_norm[own])[0],)

    def _rows(self, own: slice) -> Tensor:
        return self.unit if own == slice(0, len(self.unit)) else self.unit[own]  # q is k: symmetric scores


class ImageText:
    """The Backend of image_text_loss: 4 units of 2 N^2 D arithmetic where all rows are this rank's.

    Each tile serves both directions then; several ranks hold only their rows' tiles of each direction: 6 units.
    """

    def __init__(
        self, images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor, logit_scale: Tensor
    ) -> None:
        self.image_norms, self.text_norms, self.logit_scale = image_norms, text_norms, logit_scale
        self.images, self.texts = images * image_norms[:, None], texts * text_norms[:, None]
        # Not a float elsewhere: other devices would have to wait.
        self.scale = float(logit_scale) if logit_scale.device.type == "cpu" else logit_scale

    def logsumexp(self, own: slice) -> Tensor:  # [2, length] of images over texts, of texts over images
        u, v = self.images, self.texts
        if own == slice(0, len(u)):
            return torch.stack(logsumexp(u, v, self.scale, columns=True))
        return torch.stack([logsumexp(u[own], v, self.scale)[0], logsumexp(v[own], u, self.scale)[0]])

    def loss(self, captions: Captions, lse: Tensor) -> Tensor:
        positive = _caption_means(self.texts, captions).mul_(self.images).sum(1)
        return (lse.mean(0) - self.logit_scale * positive).mean()

    def gradient(self, factor: Tensor, captions: Captions, lse: Tensor, own: slice) -> tuple[Tensor, Tensor, Tensor]:
        u, v = self.images, self.texts
        of_u, of_v = Centred.of(u), Centred.of(v)
        if own == slice(0, len(u)):
            of_images, of_texts = weighted_rows(u, v, self.scale, lse[0], lse[1], of_v, q_centred=of_u)
        else:
            of_images, _ = weighted_rows(u[own], v, self.scale, lse[0, own], lse[1], of_v)
            of_texts, _ = weighted_rows(v[own], u, self.scale, lse[1, own], lse[0], of_u)
        assert of_texts is not None
        for_images = _less_positives(of_images, _caption_means(of_v.rows, captions, own), 2, of_v.mean)
        for_texts = _less_positives(of_texts, _caption_means(of_u.rows, captions, own), 2, of_u.mean)
        factor = factor / (2 * len(u))
        by_scale = factor * self.logit_scale
        for_images, along = normalize_backward(for_images, u[own], self.image_norms[own] * by_scale)
        for_texts, _ = normalize_backward(for_texts, v[own], self.text_norms[own] * by_scale)
        return for_images, for_texts, along.sum() * factor


def _less_positives(weighted: Weighted, positive: Tensor, share: Tensor | int, mean: Tensor) -> Tensor:
    """[M, D] sum of weighted rows less share [M] times the mean positive [M, D], which is centred too; in place."""
    rest = weighted.total - share
    share = share[:, None] if isinstance(share, Tensor) else share
    return weighted.rows.sub_(positive.mul_(share)).addcmul_(rest[:, None], mean)


def _caption_sums(unit: Tensor, captions: Captions) -> Tensor:
    """[N, D] sums of unit rows over captions, each in its caption's slot."""
    return torch.zeros_like(unit).index_add_(0, captions.slot, unit)


def _caption_means(unit: Tensor, captions: Captions, rows: slice = slice(None)) -> Tensor:
    """For each of the rows, the mean over the rows of its caption."""
    return _caption_sums(unit, captions)[captions.slot[rows]].div_(captions.size[rows, None])


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
    k_centred: Centred,
    q_centred: Centred | None = None,  # where the rows of q are wanted for each row of k, too
    self_at: int | None = None,
) -> tuple[Weighted, Weighted | None]:
    """w = exp(score - q_lse) + exp(score - k_lse), the softmaxes of both directions, times the other side's rows."""
    unshifted = _unshifted(scale)
    if unshifted:
        q_weight, k_weight = q_lse.neg().exp_(), k_lse.neg().exp_()
    scratch = _scratch(q, k)
    for_q = Weighted(torch.zeros_like(q), torch.zeros_like(q_lse))
    for_k = for_q if q is k else None
    if q is k:
        q_centred = k_centred
    elif q_centred is not None:
        for_k = Weighted(torch.zeros_like(k), torch.zeros_like(k_lse))
    for i, j, new, scores in _score_tiles(q, k, scale, self_at):
        other = scratch[: scores.numel()].view_as(scores)
        if unshifted:
            scores.exp_().mul_(torch.add(q_weight[i, None], k_weight[j], out=other))
        else:
            torch.sub(scores, k_lse[j], out=other).exp_()
            scores.sub_(q_lse[i, None]).exp_().add_(other)
        for_q.rows[i].addmm_(scores, k_centred.rows[j])
        for_q.total[i] += scores.sum(1)
        if for_k is not None and q_centred is not None:
            for_k.rows[j][new:].addmm_(scores[:, new:].T, q_centred.rows[i])
            for_k.total[j][new:] += scores[:, new:].sum(0)
    return for_q, for_k


def normalize_backward(gradient: Tensor, unit: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of unit rows [M, D] becomes, in place, that of the rows; and gradient . unit [M]."""
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
