"""Masks and small crops: drawn by seed, step and row over all ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stablerep.data.loader import Batch, batches
from stablerep.data.masking import SHARE, masked_patches
from stablerep.data.sampling import Sampler, open_source
from tests.data.pictures import write_folder
from tests.data.test_texts import LOADER

GRID = (14, 14)


def test_every_other_picture_has_blocks_of_a_tenth_to_a_half_masked() -> None:
    masked = masked_patches(seed=0, step=0, rows=range(400), grid=GRID)
    assert len(set(masked.tolist())) == len(masked)
    mask = np.zeros((400, 196), bool)
    mask.reshape(-1)[masked] = True
    assert not mask[1::2].any() and mask[::2].any(1).all()
    share = mask[::2].mean(1)
    assert SHARE[0] - 0.01 <= share.min() and share.max() < SHARE[1] + 0.1
    assert abs(share.mean() - 0.3) < 0.04
    picture = mask[::2].reshape(-1, *GRID)
    beside = (picture[:, :, 1:] & picture[:, :, :-1]).sum() / picture.sum()
    assert beside > 0.6  # of patches drawn one by one three in ten would have a masked neighbour
    assert not masked_patches(0, 1, range(1), GRID).size and masked_patches(0, 1, range(1, 2), GRID).size


def test_a_row_has_the_same_mask_on_any_rank() -> None:
    whole = masked_patches(3, 5, range(8), GRID)
    halves = [masked_patches(3, 5, rows, GRID) for rows in (range(4), range(4, 8))]
    np.testing.assert_array_equal(np.concatenate([halves[0], halves[1] + 4 * 196]), whole)


def first_batch(data: Path, **fields: object) -> Batch:
    sampler = Sampler([open_source(str(data), "image", 1)], 4, 1, seed=0)
    config = replace(LOADER, **fields)  # type: ignore[arg-type]
    with batches(sampler, config, torch.device("cpu"), first_step=0, last_step=1) as loader:
        return next(loader)


def test_small_crops_are_others_than_the_large_one_and_than_each_other(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", 4)
    plain = first_batch(photos)
    batch = first_batch(photos, small_crops=3, small_size=16, mask_grid=(2, 2))
    assert torch.equal(batch.images, plain.images)  # they shift no other draw
    assert plain.small_images is None and plain.masked is None
    assert batch.small_images is not None and batch.small_images.shape == (4, 3, 3, 16, 16)
    crops = batch.small_images.unbind(1)
    assert all(not torch.equal(one, other) for one, other in ((crops[0], crops[1]), (crops[1], crops[2])))
    assert batch.masked is not None and set((batch.masked // 4).tolist()) == {0, 2}
