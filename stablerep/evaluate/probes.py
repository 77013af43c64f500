"""The probes together, from features and labels to the numbers of the table; and the nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stablerep.config import UserError
from stablerep.data.labelled import rank_in_class
from stablerep.evaluate import few_shot, linear

HELD_OUT = 0.1
NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07  # of the neighbours' votes
BLOCK_ELEMENTS = 32 * 2**20  # similarities held at once: 128 MiB of float32


class Probes(TypedDict):
    """Percent of the test photos named right, and how each probe was set."""

    linear_top1: float
    linear_lr: float
    few_shot_10: float | None  # None: a class has fewer than 10 training photos
    few_shot_10_ci95: float | None
    knn_top1: float
    knn_k: int


def probe_features(
    train_x: Tensor,  # [N, D] float
    train_y: Tensor,  # [N] int64
    test_x: Tensor,  # [M, D]
    test_y: Tensor,  # [M]
    *,
    seed: int,
    epochs: int = 90,
    show: bool = False,
) -> Probes:
    """Linear probe, nearest neighbours and few-shot of frozen features, where the features are (CPU or CUDA).

    The linear probe's learning rate and the k of the neighbours are chosen on a held-out tenth of the training photos;
    with them the probes are fitted again to all training photos. Test labels are used for the final numbers alone.
    The same seed gives the same numbers.

    Raises:
        ValueError: lengths or widths that do not belong together.
        UserError: one class only, no class with two training photos, features that are not finite, or a class that only
            the test photos have.
    """
    _check(train_x, train_y, test_x, test_y)
    train_x, test_x = train_x.float(), test_x.float()
    classes = int(train_y.max()) + 1
    labels = train_y.cpu().numpy()
    held = torch.from_numpy(held_out(labels, seed)).to(train_x.device)
    kept_x, kept_y, held_x, held_y = train_x[~held], train_y[~held], train_x[held], train_y[held]

    grid = linear.fit(kept_x, kept_y, classes, epochs=epochs, seed=seed, show=show)
    lr = linear.LEARNING_RATES[int(grid.top1(held_x, held_y).argmax())]
    final = linear.fit(train_x, train_y, classes, (lr,), epochs=epochs, seed=seed, show=show)

    k = NEIGHBOURS[int(knn_top1(kept_x, kept_y, held_x, held_y, classes).argmax())]
    few_mean = few_interval = None
    if np.bincount(labels)[np.unique(labels)].min() >= few_shot.PER_CLASS:
        few_mean, few_interval = few_shot.top1(train_x, train_y, test_x, test_y, classes, seed=seed)
    return Probes(
        linear_top1=final.top1(test_x, test_y).item(),
        linear_lr=lr,
        few_shot_10=few_mean,
        few_shot_10_ci95=few_interval,
        knn_top1=knn_top1(train_x, train_y, test_x, test_y, classes, (k,)).item(),
        knn_k=k,
    )


@torch.no_grad()
def knn_top1(
    train_x: Tensor,  # [N, D]
    train_y: Tensor,  # [N] int64 in 0..classes-1
    test_x: Tensor,  # [M, D]
    test_y: Tensor,  # [M]
    classes: int,
    neighbours: Sequence[int] = NEIGHBOURS,
    block_elements: int = BLOCK_ELEMENTS,
) -> Tensor:  # [len(neighbours)] percent
    """Nearest neighbours: each of the k most similar training photos votes for its label with exp(cosine / 0.07).

    k beyond N means all N.
    """
    train_x, test_x = F.normalize(train_x), F.normalize(test_x)
    most = min(max(neighbours), len(train_x))
    right = torch.zeros(len(neighbours), device=train_x.device)
    block = max(1, block_elements // len(train_x))
    for rows, labels in zip(test_x.split(block), test_y.split(block), strict=True):
        similarity, nearest = (rows @ train_x.T).topk(most)  # [B, most], most alike first
        votes = (similarity / TEMPERATURE).exp()
        for i, k in enumerate(neighbours):
            scores = votes.new_zeros(len(rows), classes)
            scores.scatter_add_(1, train_y[nearest[:, :k]], votes[:, :k])
            right[i] += (scores.argmax(1) == labels).sum()
    return 100 * right / len(test_x)


def held_out(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:  # [N] -> [N]
    """A tenth of each class, drawn by seed; of a small class one photo, of a single photo none."""
    sizes = np.bincount(labels)
    wanted = np.where(sizes > 1, np.maximum(1, np.round(HELD_OUT * sizes)), 0)
    return rank_in_class(labels, seed) < wanted[labels]


def _check(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
    if train_x.ndim != 2 or test_x.ndim != 2 or train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D], got {list(train_x.shape)} and {list(test_x.shape)}")
    if train_y.shape != train_x.shape[:1] or test_y.shape != test_x.shape[:1]:
        raise ValueError(
            f"one label a row: {list(train_y.shape)} labels for {list(train_x.shape)} training features, "
            f"{list(test_y.shape)} for {list(test_x.shape)} test features"
        )
    if not (train_x.isfinite().all() and test_x.isfinite().all()):
        raise UserError("the features hold values that are not finite; the encoder's training has diverged")
    if len(test_x) == 0:
        raise UserError("there are no test photos")
    sizes = train_y.unique(return_counts=True)[1]
    if len(sizes) < 2:
        raise UserError("the training photos show one class only; a probe needs 2 or more")
    if int(sizes.max()) < 2:
        raise UserError("each class has one training photo; choosing the learning rate needs a second one to hold out")
    if only_test := sorted(set(test_y.unique().tolist()) - set(train_y.unique().tolist())):
        raise UserError(f"class number {only_test[0]} is in the test photos and not in the training photos")
