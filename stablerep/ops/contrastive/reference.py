"""Both losses as they are written on a whiteboard: N x N scores, plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def multi_positive_loss(
    features: Tensor,  # [N, D] float32 or float64, any norm
    labels: Tensor,  # [N]
    temperature: float,
) -> Tensor:  # []
    """Mean over rows of LSE_{j != i}(s_ij) - mean_{j in P(i)} s_ij."""
    unit = normalize(features)
    similarity = unit @ unit.T / temperature  # [N, N]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels) & ~itself
    num_positives = positive.sum(1)
    # Not -inf: the gradient of a row with no other row would be NaN.
    all_others = similarity.masked_fill(itself, torch.finfo(similarity.dtype).min).logsumexp(1)
    mean_positive = (similarity * positive).sum(1) / num_positives.clamp(min=1)
    return (all_others - mean_positive).where(num_positives > 0, 0).sum() / len(labels)


def image_text_loss(
    image_features: Tensor,  # [N, D] float32 or float64, any norm
    text_features: Tensor,  # [N, D] likewise
    labels: Tensor,  # [N] of image i and of text i
    logit_scale: Tensor,  # []
) -> Tensor:  # []
    """Mean of the cross-entropies image-to-text and text-to-image; the rows of one caption are equal targets."""
    logits = logit_scale * normalize(image_features) @ normalize(text_features).T  # [N, N]
    positive = (labels[:, None] == labels).to(logits.dtype)
    targets = positive / positive.sum(1, keepdim=True)  # symmetric
    image_to_text = logits.logsumexp(1) - (targets * logits).sum(1)
    text_to_image = logits.logsumexp(0) - (targets * logits).sum(0)
    return (image_to_text + text_to_image).mean() / 2


def normalize(features: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / norm.where(norm != 0, torch.inf)  # a zero row stays zero and gets no gradient
