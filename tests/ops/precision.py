"""The error that a kernel is granted: twice that of the reference in the same precision, against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Results = Sequence[Tensor]  # a loss and its gradients


def relative_errors(actual: Results, exact: Results) -> list[float]:
    return [
        float((value.double() - truth).norm() / truth.norm().clamp(min=1e-30))
        for value, truth in zip(actual, exact, strict=True)
    ]


def check(
    run: Callable[[str, torch.dtype], Results],  # (impl, dtype of the features, rounded from the same numbers)
    impl: str,
    dtype: torch.dtype,
    floor: float,  # granted where the reference happens to be exact
) -> None:
    exact = run("reference in float64", dtype)
    ours = relative_errors(run(impl, dtype), exact)
    reference = relative_errors(run("reference", dtype), exact)
    for error, granted in zip(ours, reference, strict=True):
        assert error <= 2 * granted + floor, f"{impl}: errors {ours}, the reference's {reference}"
