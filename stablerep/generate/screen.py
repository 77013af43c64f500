"""Screening: pictures that are not finite, that show nothing, or that another of the same prompt shows already.

Models may add what they say of a picture (scorers.py).

What a picture is judged by is computed on the device, beside the picture; the verdict on the host, where the pictures
of a prompt come together, or on the device for what needs no other picture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
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
class BatchQuality:
    """What B pictures are judged by, on their device or on the host."""

    finite: Tensor  # [B] bool, before rounding to pixels, where NaN would become black
    contrast: Tensor  # [B] float32, standard deviation of the grey levels, 0..127.5
    phash: Tensor  # [B] int64, 64 bits that near pictures share
    clip_score: Tensor  # [B] float32, 0..100; NaN: not computed
    nsfw_score: Tensor  # [B] float32, 0..1; NaN: not computed

    def tensors(self) -> list[Tensor]:
        return [getattr(self, each.name) for each in dataclasses.fields(self)]

    def map(self, function: Callable[[Tensor], Tensor]) -> BatchQuality:
        return BatchQuality(*map(function, self.tensors()))

    def split(self) -> list[PictureQuality]:
        """One of each picture, from the host's copy. Scores are rounded, so that rows and verdicts agree."""
        unsigned = [value & (2**64 - 1) for value in self.phash.tolist()]
        scores = [[round(value, 4) for value in each.tolist()] for each in (self.clip_score, self.nsfw_score)]
        columns = (self.finite.tolist(), self.contrast.tolist(), unsigned, *scores)
        return [PictureQuality(*each) for each in zip(*columns, strict=True)]


@dataclass(frozen=True)
class PictureQuality:
    """What one picture is judged by."""

    finite: bool
    contrast: float
    phash: int
    clip_score: float = math.nan
    nsfw_score: float = math.nan


@dataclass(frozen=True)
class Limits:
    """Beyond which a picture is not good; GenerateConfig says what each means."""

    flat_below: float = 0.0  # nothing is flat
    duplicate_within: int = -1  # nothing is a duplicate
    clip_score_below: float | None = None
    nsfw_above: float | None = None


def limits_of(config: GenerateConfig) -> Limits:
    """With `keep` only what is not finite is not good."""
    if config.screen == "keep":
        return Limits()
    return Limits(config.flat_below, config.duplicate_within, config.clip_score_below, config.nsfw_above)


def measure(
    decoded: Tensor,  # [B, 3, h, w] as the VAE leaves it
    pixels: Tensor,  # [B, H, W, 3] uint8
) -> BatchQuality:
    """What the pictures are judged by. Never waits for the device."""
    finite = decoded.isfinite().flatten(1).all(1)
    red, green, blue = (pixels[..., channel].float() * weight for channel, weight in enumerate(GREY))
    grey = (red + green + blue) / sum(GREY)
    contrast = grey.flatten(1).std(1, correction=0)
    unknown = torch.full_like(contrast, math.nan)
    return BatchQuality(finite, contrast, _phash(grey), clip_score=unknown, nsfw_score=unknown)


def faults(quality: PictureQuality | BatchQuality, limits: Limits) -> dict[str, bool | Tensor]:
    """By reason, whether a picture, or each of a batch, is beyond a limit that needs no other picture.

    A clip_score of NaN, that of an empty prompt, is not too low; an nsfw_score of NaN, no answer, is too high.
    """
    found = {NON_FINITE: quality.finite ^ True, FLAT: quality.contrast < limits.flat_below}
    if limits.nsfw_above is not None:
        found[NSFW] = (quality.nsfw_score <= limits.nsfw_above) ^ True
    if limits.clip_score_below is not None:
        found[CLIP_SCORE] = quality.clip_score < limits.clip_score_below
    return found


def are_good(quality: BatchQuality, limits: Limits) -> Tensor:  # [B] bool
    """Whether the pictures have no such fault. Never waits for the device."""
    return ~torch.stack([torch.as_tensor(each) for each in faults(quality, limits).values()]).any(0)


def judge(pictures: Sequence[PictureQuality], limits: Limits) -> list[str]:
    """Why each picture of one prompt, in the order of their indices, should not be kept; "" if nothing is wrong.

    A duplicate is one whose hash differs in at most duplicate_within bits from that of an earlier picture with which
    nothing is wrong. Later pictures never change the verdict on earlier ones.
    """
    reasons: list[str] = []
    good: list[int] = []
    for picture in pictures:
        reason = next((reason for reason, is_so in faults(picture, limits).items() if is_so), "")
        if not reason and any((picture.phash ^ other).bit_count() <= limits.duplicate_within for other in good):
            reason = DUPLICATE
        if not reason:
            good.append(picture.phash)
        reasons.append(reason)
    return reasons


def columns(quality: PictureQuality | None, config: GenerateConfig) -> dict[str, Any]:
    """What the row of a picture says of its quality; None: the prompt had no picture."""
    row: dict[str, Any] = {}
    if config.screen != "keep":
        row["contrast"] = math.nan if quality is None else round(quality.contrast, 3)
        row["phash"] = "" if quality is None else f"{quality.phash:016x}"
    if config.clip_score_model:
        row["clip_score"] = math.nan if quality is None else quality.clip_score
    if config.nsfw_model:
        row["nsfw_score"] = math.nan if quality is None else quality.nsfw_score
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
