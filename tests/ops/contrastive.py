"""What the tests of both losses share: captions, small tiles, and the error that a kernel is granted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from stablerep.ops.contrastive import tiled

RAGGED = [0, 0, 0, 7, 7, 3, 5, 5, 5, 5, -2, 7]  # captions with 3, 3, 1, 4 and 1 images
IMPLS = ["tiled", "reference"]
TILES = [(512, 4096), (4, 3), (3, 7)]  # the real one, and some that cut small batches everywhere

Results = Sequence[Tensor]  # a loss and its gradients


@contextmanager
def tiles_of(rows: int, columns: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "TILE_ROWS", rows)
        patch.setattr(tiled, "TILE_COLUMNS", columns)
        yield


def relative_errors(actual: Results, exact: Results) -> list[float]:
    return [
        float((value.double() - truth).norm() / truth.norm().clamp(min=1e-30))
        for value, truth in zip(actual, exact, strict=True)
    ]


def check_precision(
    run: Callable[[str, torch.dtype], Results],  # (impl, dtype of the features, rounded from the same numbers)
    impl: str,
    dtype: torch.dtype,
    floor: float,  # granted where the reference happens to be exact
) -> None:
    """Twice the error of the reference in the same precision, against float64."""
    exact = run("reference in float64", dtype)
    ours = relative_errors(run(impl, dtype), exact)
    reference = relative_errors(run("reference", dtype), exact)
    for error, granted in zip(ours, reference, strict=True):
        assert error <= 2 * granted + floor, f"{impl}: errors {ours}, the reference's {reference}"
