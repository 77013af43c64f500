"""The multi-positive contrastive loss as it is written on a whiteboard: N x N similarities, plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def multi_positive_loss(
    features: Tensor,  # [N, D] float32 or float64, any norm
    labels: Tensor,  # [N]
    temperature: float,
) -> Tensor:  # []
    """Mean over rows of LSE_{j != i}(s_ij) - mean_{j in P(i)} s_ij."""
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    unit = features / norm.where(norm != 0, torch.inf)  # a zero row stays zero and gets no gradient
    similarity = unit @ unit.T / temperature  # [N, N]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels) & ~itself
    num_positives = positive.sum(1)
    # Not -inf: the gradient of a row with no other row would be NaN.
    all_others = similarity.masked_fill(itself, torch.finfo(similarity.dtype).min).logsumexp(1)
    mean_positive = (similarity * positive).sum(1) / num_positives.clamp(min=1)
    return (all_others - mean_positive).where(num_positives > 0, 0).sum() / len(labels)
