"""Photos that are among the training and the test photos: an encoder need only remember them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stablerep.config import UserError
from stablerep.data.encoded import EncodedPictures
from stablerep.data.labelled import LabelledFiles, Photos

SAMPLE_BYTES = 64  # of the middle of a file: headers are alike, and whole files are read only where these agree


@dataclass(frozen=True)
class Overlap:
    """Test photos with the bytes of a training photo."""

    count: int
    example: str  # the first of them, and the training photo that it is

    def refuse(self, data: str) -> UserError:
        are = (
            "1 test photo is a training photo too"
            if self.count == 1
            else f"{self.count} test photos are training photos too"
        )
        return UserError(
            f"--data {data}: {are}, first {self.example}; take them out of one side, or say --allow-overlap"
        )


def find_overlap(train: Photos, test: Photos) -> Overlap | None:
    """Test photos whose encoded bytes are those of a training photo; None where there is none.

    Sizes are compared first, then a few bytes of each, then digests: of a million photos most are never read whole.
    """
    if not isinstance(train, LabelledFiles) or not isinstance(test, LabelledFiles):
        return None  # a set by name, whose split is the field's own
    sizes = [photos.index.size[photos.rows] for photos in (train, test)]
    both = np.intersect1d(sizes[0], sizes[1])
    asked = [np.flatnonzero(np.isin(size, both) & (size > 0)) for size in sizes]
    samples = [_digests(photos, rows, SAMPLE_BYTES) for photos, rows in zip((train, test), asked, strict=True)]
    alike = np.intersect1d(samples[0], samples[1])
    asked = [rows[np.isin(found, alike)] for rows, found in zip(asked, samples, strict=True)]
    whole = [_digests(photos, rows, None) for photos, rows in zip((train, test), asked, strict=True)]
    same = np.flatnonzero(np.isin(whole[1], whole[0]))
    if not len(same):
        return None
    twin = int(np.flatnonzero(whole[0] == whole[1][same[0]])[0])
    example = f"{test.where(int(asked[1][same[0]]))} (= {train.where(int(asked[0][twin]))})"
    return Overlap(len(same), example)


def _digests(photos: LabelledFiles, rows: NDArray[np.int64], sample: int | None) -> NDArray[np.bytes_]:
    """Of each of these photos 16 bytes that say its size and content, or those of a sample of it."""
    pictures = EncodedPictures(photos.index, cache=photos.cache)
    found = np.zeros(len(rows), "V16")
    for number, row in enumerate(rows.tolist()):
        data = pictures.bytes_of(int(photos.rows[row]))
        if data is not None:
            part = data if sample is None else data[len(data) // 2 : len(data) // 2 + sample]
            digest = hashlib.blake2b(part.tobytes(), digest_size=16, salt=len(data).to_bytes(8, "little"))
        else:  # gone: like no other
            digest = hashlib.blake2b(f"{id(photos)} {row}".encode(), digest_size=16)
        found[number] = np.void(digest.digest())
    return found
