"""What the contrastive losses share, whatever runs them: precision, norms, and what their kernels take."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_TRITON_DIM = 1024


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def inverse_norm(rows: Tensor) -> Tensor:
    """[N] 1 / |row|, 0 for a row of zeros; float32, or float64 for float64."""
    norm = torch.linalg.vector_norm(rows, dim=1, dtype=compute_dtype(rows.dtype))
    return norm.reciprocal().masked_fill(norm == 0, 0)


def check(op: str, impl: str, features: Tensor) -> None:
    """What an implementation does not take."""
    if impl == "triton" and features.dtype == torch.float64:
        raise TypeError(f"{op}: impl='triton' takes float32, bfloat16 and float16, got torch.float64; use impl='tiled'")
    if impl == "triton" and features.shape[1] > MOST_TRITON_DIM:
        dim = features.shape[1]
        raise ValueError(
            f"{op}: impl='triton' takes up to {MOST_TRITON_DIM} features a row, got {dim}; use impl='tiled'"
        )
