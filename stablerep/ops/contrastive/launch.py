"""Both losses on CUDA: which kernels, which tile, how many programs, and all that can be launched."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from stablerep.ops.contrastive import kernels
from stablerep.ops.contrastive.batch import MOST_UNSHIFTED_SCALE, Captions
from stablerep.ops.impls import CompileCase

LOG2_E = math.log2(math.e)
TARGETS = 80, 90, 100  # compute capabilities that have tiles of their own
INTERPRETED_PROCESSORS = 4  # few, but enough that tests split the columns


class Side(NamedTuple):
    """One side of the score matrix."""

    rows: Tensor  # [N, D] any norm
    inverse_norm: Tensor  # [N]
    scale: Tensor  # [N], so that q.scale_i k.scale_j is both inverse norms x scale of the cosines x log2(e)

    def of(self, rows: slice) -> Side:
        return Side(*(tensor[rows] for tensor in self))


class Positives(NamedTuple):
    q_slot: Tensor  # [M] equal = positives
    k_slot: Tensor  # [N]
    share: Tensor  # [M] weight of a positive in the row's gradient


class MultiPositive:
    """The Backend of multi_positive_loss: 3 units of 2 N^2 D arithmetic (forward 1, backward 2)."""

    def __init__(self, rows: Tensor, inverse_norm: Tensor, scale: float) -> None:
        # The scale is halved between both sides: score (i, j) is score (j, i) to the last bit.
        self.side = Side(rows, inverse_norm, inverse_norm * math.sqrt(scale * LOG2_E))
        self.scale, self.unshifted = scale, scale <= MOST_UNSHIFTED_SCALE

    def logsumexp(self, own: slice) -> Tensor:  # in base 2
        return logsumexp(self.side.of(own), self.side, own.start, self.unshifted)

    def loss(self, captions: Captions, lse: Tensor) -> Tensor:
        sums = caption_sums(self.side, captions)
        positive = positive_cosines(self.side, captions.slot, sums, exclude_self=True)
        others = captions.size - 1
        return (lse * math.log(2) - self.scale * positive / others).masked_fill_(others == 0, 0).sum() / len(lse)

    def gradient(self, factor: Tensor, captions: Captions, lse: Tensor, own: slice) -> tuple[Tensor]:
        others = (captions.size - 1).to(lse.dtype)
        lse = lse.masked_fill(others == 0, torch.inf)
        share = (2.0 / others[own]).masked_fill_(others[own] == 0, 0)
        positives = Positives(captions.slot[own], captions.slot, share)
        factor = factor * (self.scale / len(lse))
        side = self.side.of(own)
        return (gradient(side, self.side, lse[own], lse, positives, factor, own.start, self.unshifted)[0],)


class ImageText:
    """The Backend of image_text_loss: 6 units of 2 N^2 D arithmetic, 3 for each direction.

    The scale is known to the device only, so that a maximum is always carried along.
    """

    def __init__(
        self, images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor, logit_scale: Tensor
    ) -> None:
        self.logit_scale = logit_scale
        # The images take the scale in both directions: score (i, j) is the same number in both.
        self.images = Side(images, image_norms, image_norms * (logit_scale * LOG2_E))
        self.texts = Side(texts, text_norms, text_norms)

    def logsumexp(self, own: slice) -> Tensor:  # [2, length] in base 2, of images over texts, of texts over images
        over_texts = logsumexp(self.images.of(own), self.texts, self_at=None, unshifted=False)
        over_images = logsumexp(self.texts.of(own), self.images, self_at=None, unshifted=False)
        return torch.stack([over_texts, over_images])

    def loss(self, captions: Captions, lse: Tensor) -> Tensor:
        sums = caption_sums(self.texts, captions)
        positive = positive_cosines(self.images, captions.slot, sums, exclude_self=False)
        return (lse.mean(0) * math.log(2) - self.logit_scale * positive / captions.size).mean()

    def gradient(self, factor: Tensor, captions: Captions, lse: Tensor, own: slice) -> tuple[Tensor, Tensor, Tensor]:
        positives = Positives(captions.slot[own], captions.slot, 2 / captions.size[own].to(lse.dtype))
        factor = factor / (2 * lse.shape[1])

        def of(q: Side, k: Side, q_lse: Tensor, k_lse: Tensor) -> tuple[Tensor, Tensor]:
            by_scale = factor * self.logit_scale
            return gradient(q.of(own), k, q_lse[own], k_lse, positives, by_scale, self_at=None, unshifted=False)

        for_images, along = of(self.images, self.texts, lse[0], lse[1])
        for_texts, _ = of(self.texts, self.images, lse[1], lse[0])
        return for_images, for_texts, along.sum() * factor


def logsumexp(
    q: Side,  # [M, D]
    k: Side,  # [N, D]
    self_at: int | None,  # row i of q is row self_at + i of k and does not count; None: all count
    unshifted: bool,
) -> Tensor:  # [M] over the row's scores; in base 2, to convert it and back costs precision
    processors, target = _device(q.rows.device)
    num_q, num_k, dim = len(q.rows), *k.rows.shape
    tile = _tile("logsumexp", q.rows.dtype, dim, target)
    grid, blocks_per_split = _grid(tile, num_q, num_k, 0, processors)
    out = q.scale.new_empty(grid[1], num_q)
    with torch.cuda.device_of(q.rows):
        kernels._logsumexp[grid](
            q.rows, k.rows, q.scale, k.scale, out, num_q, num_k, self_at or 0, blocks_per_split,
            **_constants(tile, dim, self_at, unshifted), num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    if grid[1] == 1:
        return out[0]
    highest = out.amax(0)
    return (out - highest).exp2_().sum(0).log2_().add_(highest)


def gradient(
    q: Side,  # [M, D]
    k: Side,  # [N, D]
    q_lse: Tensor,  # [M] of logsumexp, +inf where the row has no part in the loss
    k_lse: Tensor,  # [N] likewise
    positives: Positives,
    factor: Tensor,  # [] the gradient of a cosine is that of LSE and positives by this
    self_at: int | None,
    unshifted: bool,
) -> tuple[Tensor, Tensor]:
    """[M, D] gradient of q before its normalisation; [M] that of the unit row times the unit row, without factor."""
    processors, target = _device(q.rows.device)
    num_q, num_k, dim = len(q.rows), *k.rows.shape
    tile = _tile("weighted_rows", q.rows.dtype, dim, target)
    grid, blocks_per_split = _grid(tile, num_q, num_k, dim, processors)
    weighted = q_lse.new_empty(grid[1], num_q, dim)
    out, along = torch.empty_like(q.rows), torch.empty_like(q_lse)
    rows, block_dim = _row_block(dim)
    with torch.cuda.device_of(q.rows):
        kernels._weighted_rows[grid](
            q.rows, k.rows, q.scale, k.scale, k.inverse_norm, q_lse, k_lse, *positives, weighted,
            num_q, num_k, self_at or 0, blocks_per_split,
            **_constants(tile, dim, self_at, unshifted), num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
        kernels._gradient[(triton.cdiv(num_q, rows),)](
            q.rows, q.inverse_norm, weighted, grid[1], factor, out, along, num_q,
            D=dim, BLOCK_D=block_dim, ROWS=rows, num_warps=4,
        )  # fmt: skip
    return out, along


def caption_sums(side: Side, captions: Captions) -> Tensor:
    """[N, D] sums of unit rows over captions, each in its caption's slot; other slots are left as they are."""
    num_rows, dim = side.rows.shape
    sums = side.scale.new_empty(num_rows, dim)
    members, block_dim = _caption_block(dim)
    with torch.cuda.device_of(sums):
        kernels._caption_sums[(num_rows, triton.cdiv(dim, block_dim))](
            side.rows, side.inverse_norm, *captions, sums, D=dim, BLOCK_D=block_dim, ROWS=members, num_warps=4
        )
    return sums


def positive_cosines(q: Side, slot: Tensor, sums: Tensor, exclude_self: bool) -> Tensor:
    """[M] sum of the cosines of each row with its positives."""
    num_q, dim = q.rows.shape
    rows, block_dim = _row_block(dim)
    out = torch.empty_like(q.scale)
    with torch.cuda.device_of(out):
        kernels._positives[(triton.cdiv(num_q, rows),)](
            q.rows, q.inverse_norm, slot, sums, out, num_q,
            D=dim, BLOCK_D=block_dim, ROWS=rows, EXCLUDE_SELF=exclude_self, num_warps=4,
        )  # fmt: skip
    return out


def _row_block(dim: int) -> tuple[int, int]:
    """Rows of a program and their padded width: 1,024 numbers, 8 a thread."""
    width = triton.next_power_of_2(dim)
    return max(1, 1024 // width), width


def _caption_block(dim: int) -> tuple[int, int]:
    width = min(triton.next_power_of_2(dim), 256)
    return max(8, 2048 // width), width


@dataclass(frozen=True)
class Tile:
    rows: int
    columns: int
    depth: int  # features a step of the product takes; all of them: the rows stay in shared memory
    out_depth: int  # features of the result a program owns
    num_warps: int
    num_stages: int


def _tile(kernel: str, dtype: torch.dtype, dim: int, target: int) -> Tile:
    """target: of TARGETS. From 90 on 220 KiB of shared memory a program and wgmma or later; 80: at most 99 KiB.

    The largest tiles that compile without a spill; a float32 product needs its operands twice, for their rest.
    """
    large = target >= 90
    width = max(16, triton.next_power_of_2(dim))
    if dtype == torch.float32:
        depth = min(width, 32)
        if kernel == "logsumexp":
            return Tile(128, 64, depth, 0, 8, 3 if large else 2)
        return Tile(64, 32, depth, min(width, 128), 8, 2)
    if kernel == "logsumexp":
        # Streamed, so that a wider tile fits: at D 256 1.29 ms, resident 1.45 (H200, N 32,768); 100: spills
        if target == 90 and width >= 256:
            return Tile(128, 256, 64, 0, 8, 3)
        if width > 256:
            return Tile(128, 128, 64, 0, 8, 3) if large else Tile(128, 64, 64, 0, 8, 2)
        return Tile(128, 128, width, 0, 8, 2 if width == 256 else 3) if large else Tile(128, 64, width, 0, 8, 2)
    if width <= (256 if dtype == torch.bfloat16 else 128):
        return Tile(128, 64, width, width, 8, 2 if width == 256 else 3) if large else Tile(64, 64, width, width, 8, 2)
    if large and width == 512 and dtype == torch.bfloat16:  # scores once for all features; 100 has less room for them
        return Tile(64, 64 if target == 90 else 32, width, width, 8, 2)
    if dtype == torch.float16:
        return Tile(128, 64, 64, 128, 8, 2)  # its second operand is made anew in registers
    return Tile(64, 64, 64, 256, 8, 2)


@functools.cache
def _device(device: torch.device) -> tuple[int, int]:
    """Processors, and which of TARGETS its tiles are those of."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS, 90
    properties = torch.cuda.get_device_properties(device)
    if properties.shared_memory_per_block_optin < 220 * 1024:  # type: ignore[attr-defined]
        return properties.multi_processor_count, 80
    return properties.multi_processor_count, 100 if properties.major >= 10 else 90


def _grid(tile: Tile, num_q: int, num_k: int, out_dim: int, processors: int) -> tuple[tuple[int, int, int], int]:
    """Programs, and column blocks for each. Few rows (a rank's share of a large batch): the columns are split too."""
    row_blocks, column_blocks = triton.cdiv(num_q, tile.rows), triton.cdiv(num_k, tile.columns)
    out_blocks = triton.cdiv(out_dim, tile.out_depth) if tile.out_depth else 1
    blocks_per_split = triton.cdiv(column_blocks, max(1, processors // (row_blocks * out_blocks)))
    return (row_blocks, triton.cdiv(column_blocks, blocks_per_split), out_blocks), blocks_per_split


def _constants(tile: Tile, dim: int, self_at: int | None, unshifted: bool) -> dict[str, Any]:
    return {
        "D": dim,
        "DEPTH": tile.depth,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "RESIDENT": tile.depth >= dim,
        "EXCLUDE_SELF": self_at is not None,
        "UNSHIFTED": unshifted,
        **({"OUT_DEPTH": tile.out_depth} if tile.out_depth else {}),
    }


# A dim for each branch of _tile; odd ones need masks.
COMPILED_DIMS = {
    torch.float32: (20, 100, 256),
    torch.bfloat16: (20, 128, 256, 300, 512, 768),
    torch.float16: (20, 128, 256),
}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
INTEGERS = {
    **dict.fromkeys(("order_ptr", "slot_ptr", "count_ptr", "q_slot_ptr", "k_slot_ptr"), "*i64"),
    **dict.fromkeys(kernels.SIZES, "i32"),
}


def compile_cases() -> Iterator[CompileCase]:
    """Every specialisation that the losses can launch."""
    yield from _compile_cases("image_text_loss", exclude_self=False, unshifted=(False,))
    yield from _compile_cases("multi_positive_loss", exclude_self=True, unshifted=(True, False))


def _compile_cases(op: str, exclude_self: bool, unshifted: tuple[bool, ...]) -> Iterator[CompileCase]:
    self_at = 0 if exclude_self else None
    for dtype, dims in COMPILED_DIMS.items():
        for dim in dims:
            for target in TARGETS:
                for without_maximum in unshifted:
                    for kernel, out in (("logsumexp", "*fp32"), ("weighted_rows", "*fp32")):
                        tile = _tile(kernel, dtype, dim, target)
                        constants = _constants(tile, dim, self_at, without_maximum)
                        yield _case(op, f"_{kernel}", dtype, out, constants, tile.num_warps, tile.num_stages, (target,))
            rows, width = _row_block(dim)
            block = {"D": dim, "BLOCK_D": width, "ROWS": rows, "EXCLUDE_SELF": exclude_self}
            yield _case(op, "_positives", dtype, "*fp32", block, 4, 3)
            del block["EXCLUDE_SELF"]
            yield _case(op, "_gradient", dtype, POINTERS[dtype], block, 4, 3)
            members, width = _caption_block(dim)
            yield _case(op, "_caption_sums", dtype, "", {"D": dim, "BLOCK_D": width, "ROWS": members}, 4, 3)


def _case(
    op: str, kernel: str, dtype: torch.dtype, out: str, constants: dict[str, Any], num_warps: int, num_stages: int,
    targets: tuple[int, ...] = TARGETS,
) -> CompileCase:  # fmt: skip
    function = getattr(kernels, kernel)
    types = {**INTEGERS, **dict.fromkeys(("q_ptr", "k_ptr", "rows_ptr"), POINTERS[dtype]), "out_ptr": out}
    shape = " ".join(f"{name}={value}" for name, value in constants.items())
    return CompileCase(
        name=f"{op} {kernel} {POINTERS[dtype][1:]} {shape}",
        kernel=function,
        signature={name: "constexpr" if name in constants else types.get(name, "*fp32") for name in function.arg_names},
        constexprs=constants,
        num_warps=num_warps,
        num_stages=num_stages,
        targets=targets,
    )
