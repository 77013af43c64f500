"""A quick look at an encoder that is still being trained: nearest neighbours among labelled photos.

Its test photos are not touched: what is chosen by this number may still be measured on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from stablerep import distributed
from stablerep.config import UserError
from stablerep.data.encoded import resolve_bit_range
from stablerep.data.labelled import LabelledFiles, draw, open_labelled
from stablerep.evaluate.features import features_of
from stablerep.evaluate.knn import knn_top1
from stablerep.models import InputTransform

MOST_PHOTOS = 10_000  # as even over the classes as they allow
HELD_OUT = 5  # every fifth photo of a class asks, the others answer
NEIGHBOURS = 10

Probe = Callable[[nn.Module, InputTransform], float]


def open_watch(data: str, seed: int) -> Callable[[torch.device], Probe]:
    """What measures kNN top-1 (percent) of an encoder by a labelled set's training photos, on a rank's device.

    Every rank calls the probe at the same step: each sees its share of the photos. The encoder's mode is kept.

    Raises:
        UserError: no such set, or one that has no two photos of a class.
    """
    try:
        photos = draw(open_labelled(data, seed).train, MOST_PHOTOS, seed)
    except UserError as error:
        raise UserError(f"--watch {error}") from error
    if isinstance(photos, LabelledFiles):
        photos = replace(photos, bit_range=resolve_bit_range("auto", photos.index, photos.cache))
    order = np.argsort(photos.labels, kind="stable")
    asks = np.zeros(len(photos), bool)
    for label in np.unique(photos.labels):
        asks[order[photos.labels[order] == label][HELD_OUT - 1 :: HELD_OUT]] = True
    if not asks.any():
        raise UserError(f"--watch {data}: no class has {HELD_OUT} training photos, of which one would be held out")
    classes = len(photos.class_names)

    def opened(device: torch.device) -> Probe:
        def probe(encoder: nn.Module, transform: InputTransform) -> float:
            mode = encoder.training
            rank, ranks = distributed.rank(), distributed.world_size()
            mine = np.resize(np.arange(len(photos))[rank::ranks], -(-len(photos) // ranks))  # as many on each rank
            seen = features_of(encoder, transform, photos.take(mine), device=device, show=False)
            encoder.train(mode)
            kept = torch.from_numpy(np.delete(mine, seen.left_out)).to(device)
            x, y, row = _of_all_ranks(seen.x, seen.y, kept, len(photos))
            held = torch.from_numpy(asks).to(device)[row]
            return knn_top1(x[~held], y[~held], x[held], y[held], classes, (NEIGHBOURS,)).item()

        return probe

    return opened


def _of_all_ranks(x: Tensor, y: Tensor, row: Tensor, photos: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and row of each photo that some rank could decode, in the order of rows."""
    everyone = x.new_zeros(photos, x.shape[1] + 2)  # features, label, how many ranks saw it
    everyone[row] = torch.cat([x, y[:, None].float(), torch.ones_like(x[:, :1])], 1)
    distributed.mean_over_ranks(everyone)
    found = everyone[:, -1].nonzero().flatten()
    whole = everyone[found] / everyone[found, -1:]
    return whole[:, :-2], whole[:, -2].round().long(), found
