"""Softmax over scaled cosines in Triton: the kernels that the losses share. Scores live in registers only.

Rows come as they are: inverse norms, the scale and log2(e) are two factors of each score, so that no unit rows are
written. Score (i, j) in base 2 is q_i . k_j (q_scale_i k_scale_j). Products take bfloat16 and float16 as they are and
float32 as three TF32 products ("tf32x3": float32's error at tensor-core rate; plain FMA is 4 x slower on an H100).
A program owns a block of rows and walks over its share of the columns; masks touch only the tiles that need them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

LOWEST = tl.constexpr(-1e30)  # below every score, and its difference to -inf is not NaN
SIZES = ("num_q", "num_k", "self_at", "blocks_per_split", "num_splits")  # another batch is not another kernel
INTERPRETED = tl.constexpr(knobs.runtime.interpret)
STREAMED = tl.constexpr(0)  # for rows too long for shared memory; None is nothing that Triton 3.6 can interpret
HALF_RANGE = tl.constexpr(16384.0)  # float16 weights: 2 x this is below 65504, and 1e-9 of it still a normal number


@triton.jit
def _rows(ptr, first, num_rows, column, BLOCK: tl.constexpr, DEPTH: tl.constexpr, D: tl.constexpr):
    """Rows first .. first + BLOCK - 1, columns column .. column + DEPTH - 1; past the last row the last row again."""
    row = tl.minimum(tl.arange(0, BLOCK), num_rows - 1 - first)
    at = column + tl.arange(0, DEPTH)
    pointers = ptr + first.to(tl.int64) * D + row[:, None] * D + at[None, :]
    if D % DEPTH == 0:
        return tl.load(pointers)
    return tl.load(pointers, mask=at[None, :] < D, other=0.0)


@triton.jit
def _dot(a, b, total):
    if INTERPRETED:  # the interpreter's product takes the bits of bfloat16 for integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="tf32x3")


@triton.jit
def _streamed_products(
    q_ptr, k_ptr, first_row, num_q, first_column, num_k,
    D: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """q k^T of a tile whose rows are too long to stay in shared memory."""
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    for column in range(0, D, DEPTH):
        q = _rows(q_ptr, first_row, num_q, column, ROWS, DEPTH, D)
        k = _rows(k_ptr, first_column, num_k, column, COLUMNS, DEPTH, D)
        products = _dot(q, tl.trans(k), products)
    return products


@triton.jit
def _scores(
    products, q_scale, k_scale, first_row, first_column, num_k, self_at,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
):  # fmt: skip
    """-inf where there is no column, or it is the row itself."""
    scores = products * (q_scale[:, None] * k_scale[None, :])  # so rounded that score (i, j) is score (j, i)
    column = first_column + tl.arange(0, COLUMNS)
    if first_column + COLUMNS > num_k:
        scores = tl.where(column[None, :] < num_k, scores, -float("inf"))
    if EXCLUDE_SELF:
        itself = self_at + first_row
        if (first_column < itself + ROWS) & (first_column + COLUMNS > itself):
            scores = tl.where(column[None, :] == itself + tl.arange(0, ROWS)[:, None], -float("inf"), scores)
    return scores


@triton.jit
def _tile_scores(
    q, k,  # the tile's rows, or STREAMED
    q_ptr, k_ptr, q_scale, k_scale_ptr, first_row, num_q, first_column, num_k, self_at,
    D: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    RESIDENT: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
):  # fmt: skip
    """Scores, and which rows of k the columns are; past the last column the last again, with a score of -inf."""
    if RESIDENT:
        products = _dot(q, tl.trans(k), tl.zeros((ROWS, COLUMNS), tl.float32))
    else:
        products = _streamed_products(q_ptr, k_ptr, first_row, num_q, first_column, num_k, D, DEPTH, ROWS, COLUMNS)
    column = tl.minimum(first_column + tl.arange(0, COLUMNS), num_k - 1)
    k_scale = tl.load(k_scale_ptr + column)
    scores = _scores(products, q_scale, k_scale, first_row, first_column, num_k, self_at, ROWS, COLUMNS, EXCLUDE_SELF)
    return scores, column


@triton.jit(do_not_specialize=SIZES)
def _logsumexp(
    q_ptr, k_ptr,  # [num_q, D], [num_k, D]
    q_scale_ptr, k_scale_ptr,  # [num_q], [num_k]; their product is both inverse norms x scale x log2(e)
    out_ptr,  # [splits, num_q] log2 of the sum over the split's columns
    num_q, num_k, self_at, blocks_per_split,
    D: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    RESIDENT: tl.constexpr, EXCLUDE_SELF: tl.constexpr, UNSHIFTED: tl.constexpr,
):  # fmt: skip
    first_row = tl.program_id(0) * ROWS
    split = tl.program_id(1)
    row = first_row + tl.arange(0, ROWS)
    q_scale = tl.load(q_scale_ptr + tl.minimum(row, num_q - 1))
    q = _rows(q_ptr, first_row, num_q, 0, ROWS, DEPTH, D) if RESIDENT else STREAMED
    highest = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    last = tl.minimum((split + 1) * blocks_per_split, tl.cdiv(num_k, COLUMNS))
    for block in range(split * blocks_per_split, last):
        first_column = block * COLUMNS
        k = _rows(k_ptr, first_column, num_k, 0, COLUMNS, DEPTH, D) if RESIDENT else STREAMED
        scores, _ = _tile_scores(
            q, k, q_ptr, k_ptr, q_scale, k_scale_ptr, first_row, num_q, first_column, num_k, self_at,
            D, DEPTH, ROWS, COLUMNS, RESIDENT, EXCLUDE_SELF,
        )  # fmt: skip
        if UNSHIFTED:
            total += tl.sum(tl.exp2(scores), 1)
        else:
            higher = tl.maximum(highest, tl.max(scores, 1))
            total = total * tl.exp2(highest - higher) + tl.sum(tl.exp2(scores - higher[:, None]), 1)
            highest = higher
    out = tl.log2(total)
    if not UNSHIFTED:
        out += highest
    tl.store(out_ptr + split * num_q + row, out, mask=row < num_q)


@triton.jit(do_not_specialize=SIZES)
def _weighted_rows(
    q_ptr, k_ptr, q_scale_ptr, k_scale_ptr, k_inverse_norm_ptr,  # as above; [num_k]
    q_lse_ptr, k_lse_ptr,  # [num_q], [num_k] in base 2, +inf where the row has no part in the loss
    q_slot_ptr, k_slot_ptr, share_ptr,  # [num_q], [num_k] equal = positives; [num_q] weight of a positive
    out_ptr,  # [splits, num_q, D] float32
    num_q, num_k, self_at, blocks_per_split,
    D: tl.constexpr, DEPTH: tl.constexpr, OUT_DEPTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    RESIDENT: tl.constexpr, EXCLUDE_SELF: tl.constexpr, UNSHIFTED: tl.constexpr,
):  # fmt: skip
    """Sum over columns j of (2^(score - q_lse_i) + 2^(score - k_lse_j) - [positive] share_i) times the unit row k_j.

    Positives are subtracted from the weights, not from the sums: of features that collapse the sums nearly cancel, and
    what is left would be rounding.
    """
    first_row = tl.program_id(0) * ROWS
    split = tl.program_id(1)
    out_column = tl.program_id(2) * OUT_DEPTH
    row = first_row + tl.arange(0, ROWS)
    bounded_row = tl.minimum(row, num_q - 1)
    q_scale = tl.load(q_scale_ptr + bounded_row)
    q_lse = tl.load(q_lse_ptr + bounded_row)
    q_weight = tl.exp2(-q_lse)
    q_slot = tl.load(q_slot_ptr + bounded_row).to(tl.int32)
    share = tl.load(share_ptr + bounded_row)
    q = _rows(q_ptr, first_row, num_q, 0, ROWS, DEPTH, D) if RESIDENT else STREAMED
    sums = tl.zeros((ROWS, OUT_DEPTH), tl.float32)
    last = tl.minimum((split + 1) * blocks_per_split, tl.cdiv(num_k, COLUMNS))
    for block in range(split * blocks_per_split, last):
        first_column = block * COLUMNS
        k = _rows(k_ptr, first_column, num_k, 0, COLUMNS, DEPTH, D) if RESIDENT else STREAMED
        scores, column = _tile_scores(
            q, k, q_ptr, k_ptr, q_scale, k_scale_ptr, first_row, num_q, first_column, num_k, self_at,
            D, DEPTH, ROWS, COLUMNS, RESIDENT, EXCLUDE_SELF,
        )  # fmt: skip
        k_lse = tl.load(k_lse_ptr + column)
        if UNSHIFTED:  # one exponential for both directions
            weights = tl.exp2(scores) * (q_weight[:, None] + tl.exp2(-k_lse)[None, :])
        else:
            weights = tl.exp2(scores - q_lse[:, None]) + tl.exp2(scores - k_lse[None, :])
        k_slot = tl.load(k_slot_ptr + column).to(tl.int32)
        positive = (q_slot[:, None] == k_slot[None, :]) & (scores > -float("inf"))
        weights -= tl.where(positive, share[:, None], 0.0)
        if not RESIDENT:
            k = _rows(k_ptr, first_column, num_k, out_column, COLUMNS, OUT_DEPTH, D)
        k_inverse_norm = tl.load(k_inverse_norm_ptr + column)
        if k.dtype == tl.float16:  # its range is too small for weights times inverse norms
            unit = (k.to(tl.float32) * k_inverse_norm[:, None]).to(tl.float16)
            sums = _dot((weights * HALF_RANGE).to(tl.float16), unit, sums)
        else:
            sums = _dot((weights * k_inverse_norm[None, :]).to(k.dtype), k, sums)
    if q_ptr.dtype.element_ty == tl.float16:
        sums = sums * (1 / HALF_RANGE)
    column = out_column + tl.arange(0, OUT_DEPTH)
    pointers = out_ptr + (split.to(tl.int64) * num_q + row[:, None]) * D + column[None, :]
    tl.store(pointers, sums, mask=(row[:, None] < num_q) & (column[None, :] < D))


@triton.jit
def _caption_sums(
    rows_ptr, inverse_norm_ptr, order_ptr, slot_ptr, count_ptr,  # [N, D], [N], and Captions
    sums_ptr,  # [N, D] float32; written at the slots of captions only
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    row = tl.load(order_ptr + place)
    if tl.load(slot_ptr + row) == place:  # the first row of a caption sums all of them, in one order: no atomics
        column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        count = tl.load(count_ptr + row)
        total = tl.zeros((BLOCK_D,), tl.float32)
        for first in range(0, count, ROWS):
            member = first + tl.arange(0, ROWS)
            rows = tl.load(order_ptr + place + member, mask=member < count, other=0)
            scale = tl.load(inverse_norm_ptr + rows)
            mask = (member[:, None] < count) & (column[None, :] < D)
            values = tl.load(rows_ptr + rows[:, None] * D + column[None, :], mask=mask, other=0.0).to(tl.float32)
            total += tl.sum(values * scale[:, None], 0)
        tl.store(sums_ptr + place.to(tl.int64) * D + column, total, mask=column < D)


@triton.jit(do_not_specialize=SIZES)
def _positives(
    q_ptr, q_inverse_norm_ptr, slot_ptr, sums_ptr,  # [num_q, D], [num_q], [num_q], caption sums of the other side
    out_ptr,  # [num_q] sum of cosines with the positives
    num_q,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    mask = (row[:, None] < num_q) & (column[None, :] < D)
    scale = tl.load(q_inverse_norm_ptr + row, mask=row < num_q, other=0.0)
    slot = tl.load(slot_ptr + row, mask=row < num_q, other=0)
    unit = tl.load(q_ptr + row[:, None] * D + column[None, :], mask=mask, other=0.0).to(tl.float32) * scale[:, None]
    others = tl.load(sums_ptr + slot[:, None] * D + column[None, :], mask=mask, other=0.0)
    if EXCLUDE_SELF:
        others -= unit
    tl.store(out_ptr + row, tl.sum(unit * others, 1), mask=row < num_q)


@triton.jit(do_not_specialize=SIZES)
def _gradient(
    q_ptr, q_inverse_norm_ptr,  # as above
    weighted_ptr, num_splits,  # [splits, num_q, D] of _weighted_rows
    factor_ptr,  # [1]
    out_ptr,  # [num_q, D] factor times the gradient of the rows, in their precision
    along_ptr,  # [num_q] gradient of the unit row, without factor, times the unit row
    num_q,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    mask = (row[:, None] < num_q) & (column[None, :] < D)
    place = row[:, None] * D + column[None, :]
    scale = tl.load(q_inverse_norm_ptr + row, mask=row < num_q, other=0.0)
    unit = tl.load(q_ptr + place, mask=mask, other=0.0).to(tl.float32) * scale[:, None]
    gradient = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for split in range(num_splits):
        gradient += tl.load(weighted_ptr + tl.cast(split, tl.int64) * num_q * D + place, mask=mask, other=0.0)
    along = tl.sum(gradient * unit, 1)
    gradient = (gradient - unit * along[:, None]) * (scale * tl.load(factor_ptr))[:, None]
    tl.store(out_ptr + place, gradient.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(along_ptr + row, along, mask=row < num_q)
