"""Which photos are trained on, which choices are made by, and which are measured on: split.csv."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stablerep import atomic
from stablerep.config import UserError
from stablerep.data.labelled import INSPECTION_SHARE, rank_in_class
from stablerep.data.tables import read_picture_table
from stablerep.poc.config import PocConfig
from stablerep.poc.photos import LAYOUT, TEST, TRAIN, VALIDATION, Photo, RealPhotos, classes_of

FEWEST = 2  # labelled photos of a class to train on: a probe chooses its learning rate on one of them

log = logging.getLogger("stablerep.poc")


@dataclass(frozen=True)
class Split:
    """Every photo on one side; those of the same bytes on the same."""

    photos: tuple[Photo, ...]
    duplicates: int  # photos whose bytes another one has, too
    left_out: int = 0  # of them training photos that a given split has on the other side as well

    def of(self, side: str, *, labelled: bool = False) -> list[Photo]:
        return [photo for photo in self.photos if photo.split == side and (photo.label or not labelled)]

    @property
    def classes(self) -> list[str]:
        return classes_of(self.photos)


def draw_split(real: RealPhotos, config: PocConfig) -> Split:
    """Bring every photo to one side, by class and seed; a split that --real comes with stays as it is.

    A class gives test_share of its photos to the test and validation_share to validation, at least one to each, and
    keeps two or more. Where a split is given without validation photos, they are drawn of its training photos.
    Photos without a class are trained on. With --measure-on nothing is drawn at all.

    Raises:
        UserError: no labels, one class, or a class with too few photos.
    """
    photos, units = list(real.photos), _units(real.photos)
    duplicates = len(photos) - len(set(units.tolist()))
    if config.measure_on:
        photos = [photo if photo.split else replace(photo, split=TRAIN) for photo in photos]
        return _without_copies(photos, units, duplicates)
    _check_classes(photos, config)
    has_given_tests = any(photo.split == TEST for photo in photos)
    photos = [replace(photo, split=TRAIN) if not (photo.split or photo.label) else photo for photo in photos]
    loose = np.array([not photo.split for photo in photos])
    if loose.any():
        test_share = INSPECTION_SHARE if real.is_inspection else config.test_share
        _draw(photos, units, loose, {TEST: test_share, VALIDATION: config.validation_share}, config.seed)
    if has_given_tests and not any(photo.split == VALIDATION for photo in photos):
        train = np.array([photo.split == TRAIN and bool(photo.label) for photo in photos])
        _draw(photos, units, train, {VALIDATION: config.validation_share}, config.seed, strict=False)
    split = _without_copies(photos, units, duplicates)
    _check_sizes(split, config)
    return split


def _check_classes(photos: Sequence[Photo], config: PocConfig) -> None:
    classes = classes_of(photos)
    if not classes:
        raise UserError(
            f"--real {config.real} has no photo with a class, so nothing to measure on; give {LAYOUT}, or a labelled "
            "set as --measure-on"
        )
    if len(classes) == 1:
        raise UserError(f"--real {config.real} has the one class {classes[0]}; a measurement needs 2 or more")


def _check_sizes(split: Split, config: PocConfig) -> None:
    counts = {side: Counter(photo.label for photo in split.of(side, labelled=True)) for side in (TRAIN, TEST)}
    for name in counts[TEST]:
        if counts[TRAIN][name] < FEWEST:
            raise UserError(
                f"--real {config.real}: class {name!r} has {counts[TRAIN][name]} photos to train on and needs {FEWEST}"
            )


def _draw(
    photos: list[Photo],
    units: NDArray[np.int64],
    among: NDArray[np.bool_],
    shares: dict[str, float],
    seed: int,
    *,
    strict: bool = True,
) -> None:
    """Give each of the photos `among` a side; a unit goes as a whole, by the class of its first photo."""
    rows = np.flatnonzero(among)
    _, first, inverse = np.unique(units[rows], return_index=True, return_inverse=True)
    names = np.array([photos[rows[each]].label for each in first])
    classes, of_class = np.unique(names, return_inverse=True)
    rank, sizes = rank_in_class(of_class, seed), np.bincount(of_class)
    side = np.full(len(first), TRAIN, dtype=object)
    there = Counter(
        photo.label for photo, taken in zip(photos, among, strict=True) if not taken and photo.split == TRAIN
    )
    for number, size in enumerate(sizes):
        spare = size - max(0, FEWEST - there[str(classes[number])])
        if spare < len(shares):
            if not strict:
                continue
            needs = size - spare + len(shares)
            raise UserError(
                f"class {str(classes[number])!r} has {size} different photos and the split needs {needs}: "
                f"{size - spare} to train on, one to validate and one to measure on; add some, or take the class out"
            )
        start = 0
        for left, (name, share) in zip(range(len(shares) - 1, -1, -1), shares.items(), strict=True):
            count = int(np.clip(round(share * size), 1, spare - start - left))
            side[(of_class == number) & (rank >= start) & (rank < start + count)] = name
            start += count
    for row, unit in zip(rows, inverse, strict=True):
        photos[row] = replace(photos[row], split=str(side[unit]))


def _without_copies(photos: list[Photo], units: NDArray[np.int64], duplicates: int) -> Split:
    """Leave out the training photos whose bytes are among those kept aside, and the validation photos likewise."""
    rank = {TEST: 0, VALIDATION: 1, TRAIN: 2}
    best: dict[int, int] = {}
    for photo, unit in zip(photos, units.tolist(), strict=True):
        best[unit] = min(best.get(unit, 2), rank[photo.split])
    kept = [photo for photo, unit in zip(photos, units.tolist(), strict=True) if rank[photo.split] == best[unit]]
    if left_out := len(photos) - len(kept):
        log.warning("%d photos have the bytes of a photo kept aside for measuring; they are left out", left_out)
    return Split(tuple(kept), duplicates, left_out)


def _units(photos: Sequence[Photo]) -> NDArray[np.int64]:  # [N]
    """Equal for photos of the same bytes."""
    sizes = [os.path.getsize(photo.path) for photo in photos]
    counts = Counter(sizes)
    numbers: dict[object, int] = {}
    keys = (
        (size, hashlib.sha256(Path(photo.path).read_bytes()).digest()) if counts[size] > 1 else (photo.path,)
        for photo, size in zip(photos, sizes, strict=True)
    )
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def spread(labels: Sequence[str], seed: int) -> NDArray[np.int64]:  # [N]
    """An order of the rows, drawn by seed, of which every beginning shows the classes in their proportions."""
    _, classes = np.unique(np.array(labels, dtype=str), return_inverse=True)
    return np.argsort((rank_in_class(classes, seed) + 0.5) / np.bincount(classes)[classes], kind="stable")


def write_table(path: Path, photos: Sequence[Photo]) -> None:
    """Write path, label and split of each photo, as --data of train and eval takes it."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(("path", "label", "split"))
    table.writerows((photo.path, photo.label, photo.split) for photo in photos)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, text.getvalue())


def keep_split(path: Path, split: Split) -> None:
    """Write split.csv, or see that the one there is this split.

    Raises:
        UserError: it holds other photos, or the same on other sides.
    """
    if not path.exists():
        return write_table(path, split.photos)
    earlier = {(str(row.path), row.label or "", row.split or "") for row in read_picture_table(path).rows}
    now = {(photo.path, photo.label, photo.split) for photo in split.photos}
    if differing := sorted(earlier ^ now):
        raise UserError(
            f"--real holds other photos than when {path.parent} was begun (first: {differing[0][0]}); bring them back "
            "or choose another --out"
        )
