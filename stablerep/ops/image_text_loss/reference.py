"""The image-text loss as it is written on a whiteboard: N x N logits, soft targets, plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def image_text_loss(
    image_features: Tensor,  # [N, D] float32 or float64, any norm
    text_features: Tensor,  # [N, D] likewise
    labels: Tensor,  # [N] of image i and of text i
    logit_scale: Tensor,  # []
) -> Tensor:  # []
    """Mean of the cross-entropies image-to-text and text-to-image; all rows of one caption are targets alike."""
    logits = logit_scale * unit(image_features) @ unit(text_features).T  # [N, N]
    positive = (labels[:, None] == labels).to(logits.dtype)
    targets = positive / positive.sum(1, keepdim=True)  # symmetric
    image_to_text = logits.logsumexp(1) - (targets * logits).sum(1)
    text_to_image = logits.logsumexp(0) - (targets * logits).sum(0)
    return (image_to_text + text_to_image).mean() / 2


def unit(features: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / norm.where(norm != 0, torch.inf)  # a zero row stays zero and gets no gradient
