"""The encoded pictures of one --data as DALI decodes them; what only Pillow reads comes as PPM, which DALI copies."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stablerep.config import UserError
from stablerep.data.bit_range import (
    FULL_16_BITS,
    MEASURED_PICTURES,
    BitRange,
    full_range,
    measure_bit_range,
    parse_bit_range,
)
from stablerep.data.index import ImageIndex
from stablerep.data.integrity import count_pixels, is_deep_png, is_whole
from stablerep.data.pixels import PIL_ERRORS, as_ppm, deep_pixels, is_deep, is_deep_tiff, pixels_of
from stablerep.data.shard_cache import ShardCache
from stablerep.data.tables import embedded_pictures, row_group_starts

OPEN_FILES = 256  # far below the usual limit of 1,024 a process
ROW_GROUPS = 4  # of Parquet files with pictures in them, held in memory
READ_AT_ONCE = 16  # pictures, of which Pillow's are held decoded
CHUNK_BYTES = 256 * 2**20  # of decoded pictures; DALI holds three chunks. Seven photos of 12 megapixels, all small ones
DEEP_ENDINGS = (".png", ".tif", ".tiff")


@dataclass(frozen=True)
class Encoded:
    """A picture that DALI decodes, and the range of its values that becomes 0 to 255."""

    data: NDArray[np.uint8]
    range: BitRange = FULL_16_BITS  # DALI reads 8 bits at 16 as 257 times the value
    pixels: int = 0  # height times width


class EncodedPictures:
    """The encoded pictures of one --data: views into mapped files; only what is used is read."""

    def __init__(self, index: ImageIndex, bit_range: BitRange | None = None, cache: ShardCache | None = None) -> None:
        """bit_range: of pictures with more than 8 bits; None where the index has none."""
        self.index, self.bit_range, self._cache = index, bit_range, cache
        self._map = lru_cache(OPEN_FILES)(self._open)
        self._row_group = lru_cache(ROW_GROUPS)(embedded_pictures)
        self._row_starts = lru_cache(OPEN_FILES)(row_group_starts)
        # Height times width of pictures that were found whole, and 0 of others: each is looked at once.
        self._whole = np.zeros(len(index), np.int64)
        self._tables = {number for number, file in enumerate(index.files) if str(file).endswith(".parquet")}

    def bytes_of(self, image: int) -> NDArray[np.uint8] | None:
        """The bytes of one picture as they lie in its file; None if the file has gone."""
        file, offset = int(self.index.file[image]), int(self.index.offset[image])
        try:
            if file in self._tables:
                return self._embedded(file, offset)
            return self._map(file)[offset : offset + int(self.index.size[image])]
        except FileNotFoundError:
            return None

    def as_it_is(self, image: int, data: NDArray[np.uint8]) -> Encoded | None:
        """A picture that DALI reads; None if it is for Pillow."""
        pixels = int(self._whole[image])
        if not pixels:
            if not is_whole(data):
                return None
            pixels = self._whole[image] = count_pixels(data)
        return Encoded(data, self._range_of_integers() if is_deep_png(data) else FULL_16_BITS, int(pixels))

    def by_pillow(self, data: NDArray[np.uint8]) -> Encoded | None:
        """A picture as DALI reads it after Pillow has; None if it is empty, damaged, or no picture at all."""
        try:
            pixels = pixels_of(data)
            count = pixels.shape[0] * pixels.shape[1]
            if is_deep_tiff(data):
                return Encoded(data, self._range_of_integers(), count)
            return Encoded(as_ppm(pixels, self.bit_range), pixels=count)
        except PIL_ERRORS:
            return None

    def _range_of_integers(self) -> BitRange:
        return self.bit_range or FULL_16_BITS

    def _embedded(self, file: int, row: int) -> NDArray[np.uint8]:
        path = self.index.files[file]
        assert isinstance(path, Path)
        starts = self._row_starts(path)
        group = bisect_right(starts, row) - 1
        return np.frombuffer(self._row_group(path, group)[row - starts[group]], np.uint8)

    def _open(self, file: int) -> NDArray[np.uint8]:
        path = self.index.files[file]
        if not isinstance(path, Path):
            assert self._cache is not None, "remote shards need a cache"
            path = self._cache.local(path, *self.index.digests[file])
        with path.open("rb") as opened:
            try:
                return np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            except ValueError:  # mmap refuses an empty file
                return np.zeros(0, np.uint8)


def resolve_bit_range(text: str, index: ImageIndex, cache: ShardCache | None = None) -> BitRange | None:
    """The range of an index's pictures with more than 8 bits by --bit-range; None where it has none.

    `auto` measures percentiles over at most 256 of these pictures, spread over all.

    Raises:
        UserError: `auto` or `full` where integers and floating point numbers are mixed, or none of them is whole.
    """
    if index.is_ours:  # painted with 8 bits
        return None
    pictures = EncodedPictures(index, cache=cache)
    deep = [image for image in range(len(index)) if _may_be_deep(index, image) and is_deep(pictures.bytes_of(image))]
    if not deep:
        return None
    if (given := parse_bit_range(text)) is not None:
        return given
    seen: list[NDArray[np.generic]] = []
    for number in np.unique(np.linspace(0, len(deep) - 1, MEASURED_PICTURES).astype(int)):
        data = pictures.bytes_of(deep[number])
        assert data is not None  # it was there when it was found deep
        with suppress(*PIL_ERRORS):  # damaged.py names it when its turn comes
            seen.append(deep_pixels(data))
    if not seen:
        raise UserError(f"--data: none of {len(deep)} pictures of 16 bits can be decoded, {index.where(deep[0])} first")
    if len({pixels.dtype.kind for pixels in seen}) > 1:
        raise UserError(f"--bit-range {text}: integers and floating point numbers are mixed; give LOW:HIGH")
    return full_range(seen[0]) if text == "full" else measure_bit_range(seen)


def read_all(pictures: Iterable[tuple[EncodedPictures, int]], threads: ThreadPoolExecutor) -> list[Encoded | None]:
    """Pictures in a form that DALI decodes, several of Pillow's at a time; None for one that is gone or damaged."""
    found: list[Encoded | Future[Encoded | None] | None] = []
    for source, image in pictures:
        data = source.bytes_of(image)
        found.append(None if data is None else source.as_it_is(image, data) or threads.submit(source.by_pillow, data))
    return [each.result() if isinstance(each, Future) else each for each in found]


def read_in_chunks(
    pictures: Iterable[tuple[EncodedPictures, int]], threads: ThreadPoolExecutor, most: int
) -> Iterator[list[Encoded | None]]:
    """The same, in chunks of at most `most` pictures that are together not too large to be held decoded."""
    remaining = iter(pictures)
    chunk: list[Encoded | None] = []
    held = 0
    while block := read_all(islice(remaining, READ_AT_ONCE), threads):
        for each in block:
            size = 3 * each.pixels if each else 0
            if chunk and (len(chunk) == most or held + size > CHUNK_BYTES):
                yield chunk
                chunk, held = [], 0
            chunk.append(each)
            held += size
    if chunk:
        yield chunk


def _may_be_deep(index: ImageIndex, image: int) -> bool:
    """Whether a picture is worth a look for more than 8 bits, by the name of its file."""
    name = str(index.files[index.file[image]]).lower()
    return name.endswith((*DEEP_ENDINGS, ".tar", ".parquet"))
