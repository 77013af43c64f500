"""The image-text loss over tiles of scores with BLAS products: 4 units of 2 N^2 D arithmetic where all rows are here.

Each tile serves both directions then; several ranks hold only their rows' tiles of each direction: 6 units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stablerep.ops import contrast_tiled
from stablerep.ops.captions import Captions


def logsumexp(
    images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor, logit_scale: Tensor, first: int, length: int
) -> Tensor:
    u, v, scale = images * image_norms[:, None], texts * text_norms[:, None], _scale(logit_scale)
    if length == len(images):
        return torch.stack(contrast_tiled.logsumexp(u, v, scale, columns=True))
    own = slice(first, first + length)
    return torch.stack([contrast_tiled.logsumexp(u[own], v, scale)[0], contrast_tiled.logsumexp(v[own], u, scale)[0]])


def loss(
    images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor, logit_scale: Tensor,
    captions: Captions, lse: Tensor,
) -> Tensor:  # fmt: skip
    u, v = images * image_norms[:, None], texts * text_norms[:, None]
    positive = _mean_of_caption(v, captions).mul_(u).sum(1)
    return (lse.mean(0) - logit_scale * positive).mean()


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
    u, v, scale = images * image_norms[:, None], texts * text_norms[:, None], _scale(logit_scale)
    own = slice(first, first + length)
    if length == len(images):
        for_images, for_texts = contrast_tiled.weighted_rows(u, v, scale, lse[0], lse[1], columns=True)
    else:
        for_images, _ = contrast_tiled.weighted_rows(u[own], v, scale, lse[0, own], lse[1])
        for_texts, _ = contrast_tiled.weighted_rows(v[own], u, scale, lse[1, own], lse[0])
    for_images.sub_(_mean_of_caption(v, captions, own), alpha=2)
    for_texts.sub_(_mean_of_caption(u, captions, own), alpha=2)
    factor = factor / (2 * len(images))
    for_images, along = contrast_tiled.through_norm(for_images, u[own], image_norms[own] * (factor * logit_scale))
    for_texts, _ = contrast_tiled.through_norm(for_texts, v[own], text_norms[own] * (factor * logit_scale))
    return for_images, for_texts, along.sum() * factor


def _scale(logit_scale: Tensor) -> float | Tensor:
    return float(logit_scale) if logit_scale.device.type == "cpu" else logit_scale  # other devices would have to wait


def _mean_of_caption(unit: Tensor, captions: Captions, rows: slice = slice(None)) -> Tensor:
    """[N, D] or the part of it: for each row, the mean over the rows of its caption."""
    sums = torch.zeros_like(unit).index_add_(0, captions.slot, unit)
    return sums[captions.slot[rows]].div_(captions.size[rows, None])
