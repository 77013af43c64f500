"""Whether a classifier can tell synthetic pictures from real photos it has not seen, and by which pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablerep.evaluate.quality.classifier import draw_folds, held_out_scores

FOLDS = 5
MOST = 10_000  # pictures of a side: beyond, the interval is below 0.5 points
Z95 = 1.959964


@dataclass(frozen=True)
class DomainGap:
    """Held-out scores of each side: above 0 taken for synthetic; nan of pictures that were not drawn."""

    real: Tensor  # [N] float
    synthetic: Tensor  # [M]

    def accuracy(self, real: Tensor | slice = slice(None), synthetic: Tensor | slice = slice(None)) -> float | None:
        """The mean of both sides' shares told right: 0.5 by chance, 1 always. None: a side has no picture there."""
        told = [_drawn(self.real[real]) < 0, _drawn(self.synthetic[synthetic]) > 0]
        return None if not all(map(len, told)) else sum(each.double().mean().item() for each in told) / 2

    def told_synthetic(self, synthetic: Tensor) -> float | None:
        """The share of these synthetic pictures that are taken for what they are; None: none of them was drawn."""
        told = _drawn(self.synthetic[synthetic]) > 0
        return told.double().mean().item() if len(told) else None

    def ci95(self) -> float:
        """Half the width of Wilson's 95 % interval of the accuracy."""
        n, p = len(_drawn(self.real)) + len(_drawn(self.synthetic)), self.accuracy()
        assert p is not None
        return Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))

    def most_synthetic(self, count: int) -> list[int]:
        """The synthetic pictures that give the set away most surely."""
        return _order(self.synthetic)[::-1][:count].tolist()

    def most_real_like(self, count: int) -> list[int]:
        return _order(self.synthetic)[:count].tolist()


def domain_gap(
    real: Tensor,  # [N, D] float
    synthetic: Tensor,  # [M, D]
    prompts: NDArray[np.int64] | None = None,  # [M] equal: of one prompt
    seed: int = 0,
    most: int = MOST,
) -> DomainGap:
    """Logistic regression in five folds on as many real as synthetic pictures, drawn where a side has more.

    Its regularisation is chosen within each fold's other four: one that is too weak hides a gap in a small set.

    Pictures of one prompt are in one fold: they are so alike that one would give away another. (But where there is one
    prompt, they are parted.)

    Raises:
        ValueError: a side has fewer than two pictures.
    """
    count = min(len(real), len(synthetic), most)
    if count < 2:
        raise ValueError(f"each side needs two pictures, got {len(real)} and {len(synthetic)}")
    random = np.random.default_rng(seed)
    rows = [np.sort(random.permutation(len(side))[:count]) for side in (real, synthetic)]
    groups = rows[1] if prompts is None or len(set(prompts[rows[1]].tolist())) < 2 else prompts[rows[1]]
    folds_used = min(FOLDS, len(set(groups.tolist())))
    folds = np.concatenate([draw_folds(each, folds_used, seed) for each in (rows[0], groups)])
    x = torch.cat(
        [side[torch.from_numpy(drawn).to(side.device)] for side, drawn in zip((real, synthetic), rows, strict=True)]
    )
    y = torch.arange(2, device=x.device).repeat_interleave(count)
    scores = held_out_scores(x, y, 2, folds)
    logit = scores[:, 1] - scores[:, 0]
    for fold in np.unique(folds):  # classifiers of unlike regularisation: their signs say the same, their sizes do not
        of_fold = torch.from_numpy(folds == fold).to(x.device)
        logit[of_fold] /= logit[of_fold].square().mean().sqrt().clamp_min(1e-12)
    found = [torch.full((len(side),), torch.nan, device=x.device) for side in (real, synthetic)]
    for side, drawn, each in zip(found, rows, logit.split(count), strict=True):
        side[torch.from_numpy(drawn).to(side.device)] = each
    return DomainGap(found[0], found[1])


def _drawn(scores: Tensor) -> Tensor:
    return scores[~scores.isnan()]


def _order(scores: Tensor) -> NDArray[np.int64]:
    """Rows that were drawn, the lowest score first."""
    values = scores.cpu().numpy()
    order = np.argsort(values, kind="stable")
    return order[~np.isnan(values[order])]
