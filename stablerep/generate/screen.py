"""Screening: pictures that are no numbers, that show nothing, or that another of the same prompt shows already.

Models may add what they say of a picture (scores.py).

What a picture is judged by is computed on the device, beside the picture; the verdict itself on the host, where the
pictures of a prompt come together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stablerep.generate.config import GenerateConfig
from stablerep.generate.summary import NON_FINITE

FLAT, DUPLICATE, CLIP_SCORE, NSFW = "flat", "duplicate", "clip score", "nsfw"
HASH_SIDE, HASH_PIXELS = 8, 32  # 8 x 8 bits from the low frequencies of 32 x 32 pixels
GREY = (299, 587, 114)  # BT.601, in thousandths: sums of such products are whole numbers that float32 holds


@dataclass(frozen=True)
class Marks:
    """What B pictures are judged by, on their device or on the host."""

    finite: Tensor  # [B] bool, before rounding to pixels, where NaN would become black
    contrast: Tensor  # [B] float32, standard deviation of the grey levels, 0..127.5
    phash: Tensor  # [B] int64, 64 bits that near pictures share
    clip_score: Tensor  # [B] float32, 0..100; NaN: not computed
    nsfw_score: Tensor  # [B] float32, 0..1; NaN: not computed


@dataclass(frozen=True)
class Mark:
    """The marks of one picture."""

    finite: bool
    contrast: float
    phash: int
    clip_score: float = math.nan
    nsfw_score: float = math.nan


def look(
    decoded: Tensor,  # [B, 3, h, w] as the VAE leaves it
    pixels: Tensor,  # [B, H, W, 3] uint8
) -> Marks:
    """What the pictures are judged by. Never waits for the device."""
    finite = decoded.isfinite().flatten(1).all(1)
    red, green, blue = (pixels[..., channel].float() * weight for channel, weight in enumerate(GREY))
    grey = (red + green + blue) / sum(GREY)
    contrast = grey.flatten(1).std(1, correction=0)
    unknown = torch.full_like(contrast, math.nan)
    return Marks(finite, contrast, _phash(grey), clip_score=unknown, nsfw_score=unknown)


def judge(
    marks: Sequence[Mark],
    flat_below: float,
    duplicate_within: int,
    clip_score_below: float | None = None,
    nsfw_above: float | None = None,
) -> list[str]:
    """Why each picture of one prompt, in the order of their indices, should not be kept; "" if nothing is wrong.

    A clip_score of NaN, that of an empty prompt, is not too low; an nsfw_score of NaN, no answer, is too high.
    A duplicate is one whose hash differs in at most duplicate_within bits from that of an earlier picture with which
    nothing is wrong. Later pictures never change the verdict on earlier ones.
    """
    reasons: list[str] = []
    good: list[int] = []
    for mark in marks:
        if not mark.finite:
            reasons.append(NON_FINITE)
        elif mark.contrast < flat_below:
            reasons.append(FLAT)
        elif nsfw_above is not None and not mark.nsfw_score <= nsfw_above:
            reasons.append(NSFW)
        elif clip_score_below is not None and mark.clip_score < clip_score_below:
            reasons.append(CLIP_SCORE)
        elif any((mark.phash ^ other).bit_count() <= duplicate_within for other in good):
            reasons.append(DUPLICATE)
        else:
            reasons.append("")
            good.append(mark.phash)
    return reasons


def split(marks: Marks) -> list[Mark]:
    """The marks of each picture, from the host's copy. Scores are rounded, so that rows and verdicts agree."""
    unsigned = [value & (2**64 - 1) for value in marks.phash.tolist()]
    scores = [[round(value, 4) for value in each.tolist()] for each in (marks.clip_score, marks.nsfw_score)]
    return [Mark(*each) for each in zip(marks.finite.tolist(), marks.contrast.tolist(), unsigned, *scores, strict=True)]


def columns(mark: Mark | None, config: GenerateConfig) -> dict[str, Any]:
    """What the row of a picture says of its marks; None: the prompt had no picture."""
    row: dict[str, Any] = {}
    if config.screen != "keep":
        row["contrast"] = math.nan if mark is None else round(mark.contrast, 3)
        row["phash"] = "" if mark is None else f"{mark.phash:016x}"
    if config.clip_score_model:
        row["clip_score"] = math.nan if mark is None else mark.clip_score
    if config.nsfw_model:
        row["nsfw_score"] = math.nan if mark is None else mark.nsfw_score
    return row


def _phash(grey: Tensor) -> Tensor:
    """[B, H, W] to [B] int64: which low frequencies of the cosine transform exceed their median (Zauner 2010)."""
    small = F.interpolate(grey[:, None], (HASH_PIXELS, HASH_PIXELS), mode="bilinear", antialias=True)[:, 0]
    basis = _cosines(grey.device)
    # float64, rounded: a bit must not hang on the order of a sum, and a tie is one on every device. The first
    # coefficient, the mean brightness, says nothing of what is shown.
    waves = (basis @ small.double() @ basis.T).flatten(1).mul(1024).round()
    bits = waves > waves[:, 1:].median(1, keepdim=True).values
    bits[:, 0] = False
    return (bits.long() << torch.arange(HASH_SIDE**2, device=grey.device)).sum(1)


@cache
def _cosines(device: torch.device) -> Tensor:
    """[8, 32] float64: the lowest rows of the orthonormal cosine transform (DCT-II)."""
    wave, place = torch.arange(HASH_SIDE, dtype=torch.float64), torch.arange(HASH_PIXELS, dtype=torch.float64)
    rows = torch.cos(math.pi / HASH_PIXELS * (place + 0.5) * wave[:, None]) * math.sqrt(2 / HASH_PIXELS)
    rows[0] /= math.sqrt(2)
    return rows.to(device)
