"""The image-text loss on CUDA: 6 units of 2 N^2 D arithmetic, 3 for each direction, scores in registers.

The scale is known to the device only, so that a maximum is always carried along.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from stablerep.ops import contrast_launch
from stablerep.ops.aot import CompileCase
from stablerep.ops.captions import Captions


def logsumexp(
    images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor, logit_scale: Tensor, first: int, length: int
) -> Tensor:
    u, v = _sides(images, texts, image_norms, text_norms, logit_scale)
    over_texts = contrast_launch.logsumexp(u.part(first, length), v, self_at=None, unshifted=False)
    over_images = contrast_launch.logsumexp(v.part(first, length), u, self_at=None, unshifted=False)
    return torch.stack([over_texts, over_images])


def loss(
    images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor, logit_scale: Tensor,
    captions: Captions, lse: Tensor,
) -> Tensor:  # fmt: skip
    u, v = _sides(images, texts, image_norms, text_norms, logit_scale)
    sums = contrast_launch.caption_sums(v, captions)
    positive = contrast_launch.positive_cosines(u, captions.slot, sums, exclude_self=False)
    return (lse.mean(0) * math.log(2) - logit_scale * positive / captions.size).mean()


def gradient(
    factor: Tensor,
    images: Tensor,
    texts: Tensor,
    image_norms: Tensor,
    text_norms: Tensor,
    logit_scale: Tensor,
    captions: Captions,
    lse: Tensor,  # [2, N] of images over texts, of texts over images
    first: int,
    length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    own = slice(first, first + length)
    slot, share = captions.slot[own], 2 / captions.size[own].to(lse.dtype)
    factor = factor / (2 * len(images))

    def of(q: contrast_launch.Side, k: contrast_launch.Side, q_lse: Tensor, k_lse: Tensor) -> tuple[Tensor, Tensor]:
        positives = contrast_launch.Positives(slot, share, contrast_launch.caption_sums(k, captions))
        return contrast_launch.gradient(
            q.part(first, length), k, q_lse[own], k_lse, positives, factor * logit_scale, self_at=None, unshifted=False
        )

    u, v = _sides(images, texts, image_norms, text_norms, logit_scale)
    for_images, along = of(u, v, lse[0], lse[1])
    for_texts, _ = of(v, u, lse[1], lse[0])
    return for_images, for_texts, along.sum() * factor


def _sides(
    images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor, logit_scale: Tensor
) -> tuple[contrast_launch.Side, contrast_launch.Side]:
    # The images take the scale in both directions: score (i, j) is the same number in both.
    return (
        contrast_launch.Side(images, image_norms, image_norms * (logit_scale * contrast_launch.LOG2_E)),
        contrast_launch.Side(texts, text_norms, text_norms),
    )


def compile_cases() -> Iterator[CompileCase]:
    return contrast_launch.compile_cases("image_text_loss", exclude_self=False, unshifted=(False,))
