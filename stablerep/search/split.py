"""The real photos of a search: what it learns from, what it is measured on, and the test photos it must not see.

OUT/split.csv         path, label, split (train or validation), sha256: every photo that a trial may see
OUT/real_train.csv    those of train alone, which encoders may be trained on
OUT/kept_aside.csv    path and sha256 of the test photos, for the check that none of them is above
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stablerep import atomic
from stablerep.config import UserError, fingerprint
from stablerep.data.encoded import EncodedPictures
from stablerep.data.labelled import LabelledFiles, Photos, draw, open_labelled, rank_in_class
from stablerep.search.config import FEWEST_OF_A_CLASS, SearchConfig

SPLIT, TRAIN, ASIDE, PICTURES = "split.csv", "real_train.csv", "kept_aside.csv", "real"
VALIDATION_NAMES = ("validation", "val", "valid")
ENDINGS = {b"\x89P": ".png", b"\xff\xd8": ".jpg", b"RI": ".webp", b"II": ".tif", b"MM": ".tif", b"BM": ".bmp"}


@dataclass(frozen=True)
class Photo:
    """A labelled photo and the digest of its file."""

    path: str
    label: str
    sha256: str
    data: bytes | None = None  # where it lies in no file of its own


@dataclass(frozen=True)
class RealPhotos:
    """The photos of a search, split."""

    train: Sequence[Photo]
    validation: Sequence[Photo]
    aside: Sequence[Photo]  # test

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted({photo.label for photo in self.train}))

    def fingerprint(self) -> str:
        return fingerprint([[photo.label, photo.sha256] for part in (self.train, self.validation) for photo in part])


def read_photos(config: SearchConfig) -> RealPhotos:
    """Open --real, keep its test photos aside, and split its training photos. Writes nothing.

    Photos of the same bytes are on one side. Where --real has both a validation and a test split, they are taken.

    Raises:
        UserError: no such set, no labels, too few photos of a class, or a test photo among those that are seen.
    """
    try:
        data = open_labelled(config.real, config.seed)
        train = draw(data.train, config.max_real, config.seed)
    except UserError as error:
        said = str(error).replace("--data", "--real").replace("a probe", "a search")
        raise UserError(said if "--real" in said else f"--real {config.real}: {said}") from error
    seen, aside = list(_photos(train)), list(_photos(data.test, keep=False))
    given = list(_photos(theirs)) if (theirs := _own_validation(data.train, data.test)) is not None else []
    if given:
        real = RealPhotos(seen, given, aside)
    else:
        held = _held_out(seen, config.validation_share, config.seed)
        parts = [[photo for photo, out in zip(seen, held, strict=True) if out is side] for side in (False, True)]
        real = RealPhotos(parts[0], parts[1], aside)
    refuse_test_photos([*real.train, *real.validation], aside)
    _refuse_too_few(config, real)
    return real


def refuse_test_photos(seen: Sequence[Photo], aside: Sequence[Photo]) -> None:
    """Raise a UserError that names the first photo which is a test photo too, by the digest of its bytes."""
    tested = {photo.sha256: photo.path for photo in aside}
    for photo in seen:
        if photo.sha256 in tested:
            raise UserError(
                f"--real: {photo.path} is the test photo {tested[photo.sha256]}, byte for byte; a search must not see "
                "test photos: take it out of one of them"
            )


def check_photos(out: Path) -> None:
    """Look again, as a trial will find them, at the photos of a search that is begun.

    Raises:
        UserError: one is gone or changed, or is a test photo now.
    """
    aside = [Photo(row["path"], "", row["sha256"]) for row in _rows(out / ASIDE)]
    for row in _rows(out / SPLIT):
        try:
            digest = hashlib.sha256(Path(row["path"]).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"--real: {row['path']} cannot be read ({error.strerror}); bring it back") from error
        refuse_test_photos([Photo(row["path"], row["label"], digest)], aside)
        if digest != row["sha256"]:
            raise UserError(f"--real: {row['path']} has changed since the search in {out} began; bring it back")


def write_photos(out: Path, real: RealPhotos) -> None:
    """Write the three tables, and into real/ what lies in no file of its own. The tables are whole or not there."""
    for photo in (*real.train, *real.validation):
        if photo.data is not None:
            path = _extracted(out, photo)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(path, photo.data)

    def row(photo: Photo, split: str) -> tuple[str, ...]:
        path = photo.path if photo.data is None else os.path.abspath(_extracted(out, photo))
        return path, photo.label, split, photo.sha256

    of_train = [row(photo, "train") for photo in real.train]
    header = ("path", "label", "split", "sha256")
    atomic.write(out / ASIDE, _csv(("path", "sha256"), [(photo.path, photo.sha256) for photo in real.aside]))
    atomic.write(out / TRAIN, _csv(header, of_train))
    atomic.write(out / SPLIT, _csv(header, [*of_train, *(row(photo, "validation") for photo in real.validation)]))


def most_of_a_class(photos: Sequence[Photo]) -> int:
    return max(np.unique([photo.label for photo in photos], return_counts=True)[1])


def _photos(photos: Photos, *, keep: bool = True) -> Iterator[Photo]:
    """Each photo; with keep, those that lie in no file of their own with their bytes."""
    if not isinstance(photos, LabelledFiles):
        for number, (pixels, label) in enumerate(zip(photos.images, photos.labels, strict=True)):
            text = io.BytesIO()
            Image.fromarray(pixels).save(text, "png", compress_level=1)
            yield _photo(f"photo {number}", photos.class_names[label], text.getvalue(), keep=keep)
        return
    pictures = EncodedPictures(photos.index, cache=photos.cache)
    for row, label in enumerate(photos.labels):
        where, data = photos.where(row), pictures.bytes_of(int(photos.rows[row]))
        if data is None:
            raise UserError(f"--real: {where} does not exist")
        is_file = os.path.isfile(where)
        path = os.path.abspath(where) if is_file else where
        yield _photo(path, photos.class_names[label], data.tobytes(), keep=keep and not is_file)


def _photo(path: str, label: str, data: bytes, *, keep: bool) -> Photo:
    return Photo(path, label, hashlib.sha256(data).hexdigest(), data if keep else None)


def _extracted(out: Path, photo: Photo) -> Path:
    assert photo.data is not None
    return out / PICTURES / f"{photo.sha256[:16]}{ENDINGS.get(photo.data[:2], '.png')}"


def _own_validation(train: Photos, test: Photos) -> Photos | None:
    """The photos that a table calls validation, where it has test photos besides."""
    if not isinstance(train, LabelledFiles) or train.index.splits is None or train.index.classes is None:
        return None
    splits = np.char.lower(train.index.splits)
    if isinstance(test, LabelledFiles) and set(splits[test.rows].tolist()) & set(VALIDATION_NAMES):
        return None  # it is what stands for the test photos
    numbers = {name: number for number, name in enumerate(train.class_names)}
    known = np.isin(train.index.classes, list(numbers)) & np.isin(splits, VALIDATION_NAMES)
    rows = np.flatnonzero(known)
    if not len(rows):
        return None
    labels = np.array([numbers[name] for name in train.index.classes[rows].tolist()], np.int64)
    return LabelledFiles(train.index, rows, labels, train.class_names, train.bit_range, train.cache)


def _held_out(photos: Sequence[Photo], share: float, seed: int) -> list[bool]:
    """Which photos validate: a share of each class, at least two of four or more; equal bytes stay together."""
    _, first, unit = np.unique([photo.sha256 for photo in photos], return_index=True, return_inverse=True)
    labels = np.unique([photos[row].label for row in first], return_inverse=True)[1]
    sizes = np.bincount(labels)
    wanted: NDArray[np.int64] = np.clip(np.round(share * sizes).astype(np.int64), 2, np.maximum(sizes - 2, 2))
    return (rank_in_class(labels, seed) < wanted[labels])[unit].tolist()


def _refuse_too_few(config: SearchConfig, real: RealPhotos) -> None:
    for name in sorted({photo.label for photo in (*real.train, *real.validation)}):
        counts = [sum(photo.label == name for photo in part) for part in (real.train, real.validation)]
        if min(counts) < 2:
            raise UserError(
                f"--real {config.real} has {sum(counts)} training photos of {name}, {counts[1]} of them to be measured "
                f"on; a search needs at least {FEWEST_OF_A_CLASS} of each class, beside the test photos"
            )


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    return text.getvalue()


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
