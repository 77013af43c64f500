"""The image-text loss on CUDA: 6 units of 2 N^2 D arithmetic, 3 for each direction, scores in registers.

The scale is known to the device only, so that a maximum is always carried along.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from stablerep.ops import contrast_launch
from stablerep.ops.aot import CompileCase
from stablerep.ops.captions import Captions


def logsumexp(
    images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor, logit_scale: Tensor, first: int, length: int
) -> Tensor:
    own = slice(first, first + length)

    def over(q: Tensor, k: Tensor, q_norms: Tensor, k_norms: Tensor) -> Tensor:
        q_scale = q_norms[own] * logit_scale
        return contrast_launch.logsumexp(q[own], k, q_scale, k_norms, self_at=None, unshifted=False)

    return torch.stack([over(images, texts, image_norms, text_norms), over(texts, images, text_norms, image_norms)])


def loss(
    images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor, logit_scale: Tensor,
    captions: Captions, lse: Tensor,
) -> Tensor:  # fmt: skip
    sums = contrast_launch.caption_sums(texts, text_norms, captions)
    positive = contrast_launch.positives(images, image_norms, captions.slot, sums, exclude_self=False)
    return (lse.mean(0) - logit_scale * positive / captions.count).mean()


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
    slot, share = captions.slot[own], 2.0 / captions.count[own]
    factor = factor / (2 * len(images))

    def of(q: Tensor, k: Tensor, q_norms: Tensor, k_norms: Tensor, q_lse: Tensor, k_lse: Tensor) -> tuple[Tensor, Tensor]:
        sums = contrast_launch.caption_sums(k, k_norms, captions)
        return contrast_launch.gradient(
            q[own], k, q_norms[own], k_norms, logit_scale, q_lse[own], k_lse, slot, share, sums, factor * logit_scale,
            self_at=None, unshifted=False,
        )  # fmt: skip

    for_images, along = of(images, texts, image_norms, text_norms, lse[0], lse[1])
    for_texts, _ = of(texts, images, text_norms, image_norms, lse[1], lse[0])
    return for_images, for_texts, along.sum() * factor


def compile_cases() -> Iterator[CompileCase]:
    return contrast_launch.compile_cases("image_text_loss", exclude_self=False, unshifted=(False,))
