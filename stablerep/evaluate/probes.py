"""The probes together, from features and labels to the numbers of the table."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablerep.config import UserError
from stablerep.evaluate import few_shot, linear
from stablerep.evaluate.folds import Answers, Fold, draw_folds
from stablerep.evaluate.knn import NEIGHBOURS, knn_top1, knn_votes
from stablerep.evaluate.scores import Answer
from stablerep.evaluate.standard import Standardised, as_they_are, standardiser

__all__ = ["knn_top1", "probe_features"]

SEEDS = 3  # shuffles of the final linear fit, whose spread is reported
KNN_ASKED = 10_000  # held-out photos that choose k
FINITE_BLOCK = 65_536
BASIC = ("linear", "knn", "few-shot")


@dataclass(frozen=True)
class Probed:
    """The numbers, by their names in results.json, and what each probe answered for each test photo."""

    numbers: dict[str, Any]
    answers: dict[str, Answer]


def probe_features(
    train_x: Tensor,  # [N, D] float
    train_y: Tensor,  # [N] int64
    test_x: Tensor,  # [M, D]
    test_y: Tensor,  # [M]
    *,
    seed: int,
    epochs: int = 90,
    batch_norm: str = "yes",
    show: bool = False,
) -> dict[str, Any]:
    """Linear probe, nearest neighbours and few-shot of frozen features, where the features are (CPU or CUDA).

    The linear probe's learning rate and the k of the neighbours are chosen on folds of the training photos; with them
    the probes are fitted again to all of these. Test labels are used for the final numbers alone. The same seed gives
    the same numbers: linear_top1, linear_lr, linear_top1_seeds, few_shot_10 and few_shot_10_ci95 (None where a class
    has fewer than 10 training photos), knn_top1, knn_k, ...

    Raises:
        ValueError: lengths or widths that do not belong together.
        UserError: one class only, no class with two training photos, features that are not finite, or a class that only
            the test photos have.
    """
    options: dict[str, Any] = {"seed": seed, "epochs": epochs, "batch_norm": batch_norm, "show": show}
    return probe(train_x, train_y, test_x, test_y, BASIC, **options).numbers


def probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    protocols: Collection[str],
    *,
    seed: int,
    epochs: int = 90,
    batch_norm: str = "yes",
    show: bool = False,
) -> Probed:
    """The same for some of `linear`, `knn` and `few-shot`; numbers of the others are None."""
    check_features(train_x, train_y, test_x, test_y)
    classes = int(train_y.max()) + 1
    labels = train_y.cpu().numpy()
    folds = draw_folds(labels, seed, train_x.device)
    numbers: dict[str, Any] = dict.fromkeys(
        ("linear_top1", "linear_lr", "few_shot_10", "few_shot_10_ci95", "knn_top1", "knn_k")
    )
    answers: dict[str, Answer] = {}
    if "linear" in protocols:
        found, answers["linear"] = _linear(
            train_x, train_y, test_x, test_y, classes, folds, seed, epochs, batch_norm, show
        )
        numbers |= found
    if "few-shot" in protocols and np.bincount(labels)[np.unique(labels)].min() >= few_shot.PER_CLASS:
        mean, interval = few_shot.top1(train_x, train_y, test_x, test_y, classes, seed=seed)
        numbers |= {"few_shot_10": mean, "few_shot_10_ci95": interval}
    if "knn" in protocols:
        found, answers["knn"] = _knn(train_x, train_y, test_x, test_y, classes, folds)
        numbers |= found
    return Probed(numbers, answers)


def _linear(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    classes: int,
    folds: list[Fold],
    seed: int,
    epochs: int,
    batch_norm: str,
    show: bool,
) -> tuple[dict[str, Any], Answer]:
    """The rate is chosen on the folds, and whether there is a BatchNorm where that is left to choose."""
    rates = linear.LEARNING_RATES
    options: dict[str, Any] = {"epochs": epochs, "show": show}
    ways = {"yes": (True,), "no": (False,), "choose": (True, False)}[batch_norm]
    forms = {way: Standardised(train_x, *(standardiser(train_x) if way else as_they_are(train_x))) for way in ways}
    runs = [linear.Run(fold.kept, seed + number) for number, fold in enumerate(folds)]
    tried: dict[bool, Answers] = {}
    for way, rows in forms.items():
        title = f"linear probe, {len(rates)} rates on {len(folds)} folds"
        tried[way] = Answers(len(train_y), len(rates), train_x.device)
        for fold, fitted in zip(
            folds, linear.fit_runs(rows, train_y, classes, runs, rates, title=title, **options), strict=True
        ):
            held = fold.held
            tried[way].add(held, fitted.right(train_x[held], train_y[held]))
    chosen = {way: each.best_of_curve() for way, each in tried.items()}
    way = max(ways, key=lambda way: tried[way].percent()[chosen[way]])  # of equals with BatchNorm
    lr = rates[chosen[way]]

    everyone = torch.arange(len(train_y), device=train_x.device)
    finals = linear.fit_runs(
        forms[way], train_y, classes, [linear.Run(everyone, seed + number) for number in range(SEEDS)], (lr,), **options
    )
    scores = torch.cat([finals[0].scores(rows)[0] for rows in test_x.split(linear.BLOCK)])
    seeds = [final.top1(test_x, test_y).item() for final in finals]
    numbers = {
        "linear_top1": seeds[0],
        "linear_lr": lr,
        "linear_batch_norm": way,
        "linear_folds": len(folds),
        "linear_rates": {
            str(rate): round(percent, 2) for rate, percent in zip(rates, tried[way].percent(), strict=True)
        },
        "linear_top1_seeds": seeds,
    }
    return numbers, Answer.of_scores(scores)


def _knn(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, classes: int, folds: list[Fold]
) -> tuple[dict[str, Any], Answer]:
    tried = Answers(len(train_y), len(NEIGHBOURS), train_x.device)
    for fold in folds:
        hidden = torch.zeros_like(train_y, dtype=torch.bool).index_fill_(0, fold.held, True)
        held = fold.held[:KNN_ASKED]
        for rows, votes in knn_votes(train_x, train_y, train_x[held], classes, NEIGHBOURS, hidden=hidden):
            asked = held[rows]
            tried.add(asked, (votes.argmax(-1) == train_y[asked]).T)
    k = NEIGHBOURS[tried.best()]
    votes = torch.cat([votes[0] for _, votes in knn_votes(train_x, train_y, test_x, classes, (k,))])
    answer = Answer(votes.argmax(1), votes.amax(1) / votes.sum(1))
    return {"knn_top1": 100 * (answer.named == test_y).double().mean().item(), "knn_k": k}, answer


def check_features(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
    """Raise a ValueError or UserError where these cannot be probed."""
    if train_x.ndim != 2 or test_x.ndim != 2 or train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D], got {list(train_x.shape)} and {list(test_x.shape)}")
    if train_y.shape != train_x.shape[:1] or test_y.shape != test_x.shape[:1]:
        raise ValueError(
            f"one label a row: {list(train_y.shape)} labels for {list(train_x.shape)} training features, "
            f"{list(test_y.shape)} for {list(test_x.shape)} test features"
        )
    if not all(block.isfinite().all() for x in (train_x, test_x) for block in x.split(FINITE_BLOCK)):
        raise UserError(
            "the features hold values that are not finite (of a large set: beyond float16); the encoder's training has "
            "diverged"
        )
    if len(test_x) == 0:
        raise UserError("there are no test photos")
    sizes = train_y.unique(return_counts=True)[1]
    if len(sizes) < 2:
        raise UserError("the training photos show one class only; a probe needs 2 or more")
    if int(sizes.max()) < 2:
        raise UserError("each class has one training photo; choosing the learning rate needs a second one to hold out")
    if only_test := sorted(set(test_y.unique().tolist()) - set(train_y.unique().tolist())):
        raise UserError(f"class number {only_test[0]} is in the test photos and not in the training photos")
