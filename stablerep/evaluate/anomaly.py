"""One-class scoring, as inspection asks for: how far a photo is from the good ones, without a label of any defect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri  # type: ignore[import-untyped]
from torch import Tensor

from stablerep.config import UserError
from stablerep.data.labelled import GOOD
from stablerep.evaluate.knn import nearest_of

NEIGHBOURS = 5


def score_anomalies(
    train_x: Tensor,  # [N, D]
    train_y: Tensor,  # [N] int64
    test_x: Tensor,  # [M, D]
    test_y: Tensor,  # [M]
    class_names: Sequence[str],
) -> dict[str, Any]:
    """AUROC by image, percent, of all defects and of each kind, with a 95 % interval (DeLong).

    Raises:
        UserError: no class `good`, or no test photo of one side.
    """
    if GOOD not in class_names:
        raise UserError(
            f"--protocols anomaly needs a class {GOOD!r}; --data has {', '.join(list(class_names)[:5])}: rename the "
            "folder of good parts"
        )
    good = list(class_names).index(GOOD)
    scores = anomaly_scores(train_x[train_y == good], test_x).cpu().numpy()
    kinds = test_y.cpu().numpy()
    if not (kinds == good).any() or (kinds == good).all():
        raise UserError("--protocols anomaly needs good and other test photos; --data has only one of them")
    value, half = auroc(scores[kinds == good], scores[kinds != good])
    return {
        "anomaly_auroc": value,
        "anomaly_auroc_ci95": half,
        "anomaly_neighbours": NEIGHBOURS,
        "anomaly_per_class": {
            class_names[kind]: auroc(scores[kinds == good], scores[kinds == kind])[0]
            for kind in np.unique(kinds).tolist()
            if kind != good
        },
    }


@torch.no_grad()
def anomaly_scores(good_x: Tensor, x: Tensor) -> Tensor:  # [N, D], [M, D] -> [M], 0 to 2
    """Mean cosine distance to the nearest good photos."""
    found = [1 - similarity.mean(1) for _, similarity, _ in nearest_of(good_x, x, NEIGHBOURS)]
    return torch.cat(found)


def auroc(normal: NDArray[Any], other: NDArray[Any]) -> tuple[float, float]:
    """How often one of `other` has the higher score than one of `normal`, ties half; and the half-width of its 95 %
    interval by DeLong's variance (Biometrics 1988); percent. The half-width of fewer than two of a side is 50."""
    n, m = len(normal), len(other)
    both = _ranks(np.concatenate([normal, other]))
    above = (both[n:] - _ranks(other)) / n  # of each other: share of normals below it
    below = 1 - (both[:n] - _ranks(normal)) / m  # of each normal: share of others above it
    value = float(above.mean())
    if min(n, m) < 2:
        return 100 * value, 50.0
    deviation = float(np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n))
    return 100 * value, 100 * float(ndtri(0.975)) * deviation


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:  # from 1; equal values share the mean of their places
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
