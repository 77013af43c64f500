"""From encoded bytes to the pixels that Pillow would show, EXIF applied: by DALI, and by Pillow what DALI cannot read.

DALI's pixels of JPEG, PNG and WebP on the CPU are Pillow's to the bit (tests/data/test_decode.py). The rest is decoded
by Pillow and handed to DALI as PPM, which it copies. What neither can decode comes as None.
"""

from __future__ import annotations

import io
import logging
import mmap
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

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
from stablerep.data.integrity import is_deep_png, is_whole
from stablerep.data.shard_cache import ShardCache
from stablerep.data.tables import embedded_pictures

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

PREFETCH = 2  # batches DALI works on ahead of the one handed out
OPEN_FILES = 256  # far below the usual limit of 1,024 a process
ROW_GROUPS = 4  # of Parquet files with pictures in them, held in memory
DEEP_ENDINGS = (".png", ".tif", ".tiff")
PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
GIVEN_UP: list[Pipeline] = []  # taking one down after an error may take the process with it
BLACK = np.frombuffer(b"P6 1 1 255\n\0\0\0", np.uint8)  # in the place of what is damaged

log = logging.getLogger("stablerep.data")


@dataclass(frozen=True)
class Encoded:
    """A picture that DALI decodes, and the range of its values that becomes 0 to 255."""

    data: NDArray[np.uint8]
    range: BitRange = FULL_16_BITS  # DALI reads 8 bits at 16 as 257 times the value


class EncodedPictures:
    """The encoded pictures of one --data: views into mapped files; only what is used is read."""

    def __init__(self, index: ImageIndex, bit_range: BitRange | None = None, cache: ShardCache | None = None) -> None:
        """bit_range: of pictures with more than 8 bits; None where the index has none."""
        self.index, self.bit_range, self._cache = index, bit_range, cache
        self._map = lru_cache(OPEN_FILES)(self._open)
        self._row_group = lru_cache(ROW_GROUPS)(embedded_pictures)

    def bytes_of(self, image: int) -> NDArray[np.uint8] | None:
        """The bytes of one picture as they lie in its file; None if the file has gone."""
        file, offset, size = self.index.file[image], int(self.index.offset[image]), int(self.index.size[image])
        try:
            if str(self.index.files[file]).endswith(".parquet"):
                return self._embedded(int(file), offset)
            return self._map(int(file))[offset : offset + size]
        except FileNotFoundError:
            return None

    def as_it_is(self, data: NDArray[np.uint8]) -> Encoded | None:
        """A picture that DALI reads; None if it is for Pillow."""
        if not is_whole(data):
            return None
        return Encoded(data, self._range_of_integers()) if is_deep_png(data) else Encoded(data)

    def by_pillow(self, data: NDArray[np.uint8]) -> Encoded | None:
        """A picture as DALI reads it after Pillow has; None if it is empty, damaged, or no picture at all."""
        try:
            pixels = _pixels(data)
            if _is_tiff(data) and _has_16_bit_integers(data):
                return Encoded(data, self._range_of_integers())
            return Encoded(_as_ppm(pixels, self.bit_range))
        except PIL_ERRORS:
            return None

    def _range_of_integers(self) -> BitRange:
        return self.bit_range or FULL_16_BITS

    def _embedded(self, file: int, row: int) -> NDArray[np.uint8]:
        import pyarrow.parquet as pq

        path = self.index.files[file]
        metadata = pq.read_metadata(path)
        group, start = 0, 0
        while row >= start + metadata.row_group(group).num_rows:
            start += metadata.row_group(group).num_rows
            group += 1
        return np.frombuffer(self._row_group(path, group)[row - start], np.uint8)

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
    deep = [image for image in range(len(index)) if _may_be_deep(index, image) and _is_deep(pictures.bytes_of(image))]
    if not deep:
        return None
    if (given := parse_bit_range(text)) is not None:
        return given
    seen: list[NDArray[np.generic]] = []
    for number in np.unique(np.linspace(0, len(deep) - 1, MEASURED_PICTURES).astype(int)):
        data = pictures.bytes_of(deep[number])
        assert data is not None  # it was there when it was found deep
        with suppress(*PIL_ERRORS):  # damaged.py names it when its turn comes
            seen.append(_deep_pixels(data))
    if not seen:
        raise UserError(f"--data: none of {len(deep)} pictures of 16 bits can be decoded, {index.where(deep[0])} first")
    if len({pixels.dtype.kind for pixels in seen}) > 1:
        raise UserError(f"--bit-range {text}: integers and floating point numbers are mixed; give LOW:HIGH")
    return full_range(seen[0]) if text == "full" else measure_bit_range(seen)


def decoded(
    batches: Iterable[Sequence[Encoded | None]], *, batch_size: int, num_threads: int, device: torch.device, deep: bool
) -> Iterator[list[Tensor | None]]:  # of each batch uint8 [H_i, W_i, 3]
    """Decode batches of at most batch_size pictures; one that is None, or cannot be decoded, is None.

    The tensors of a batch are good until the next one is asked for, as DALI uses its buffers again: on a GPU finish
    with them first.

    Args:
        deep: whether there may be pictures of 16 bits.
    """
    fed: deque[Sequence[Encoded | None]] = deque()
    source = iter(batches)
    pipeline = _pipeline(source, fed, batch_size, num_threads, device, deep)
    try:
        while True:
            (pictures,) = pipeline.run()
            batch = fed.popleft()
            tensors = [torch.from_dlpack(pictures[row]) for row in range(len(pictures))]
            yield [tensor if each else None for tensor, each in zip(tensors, batch, strict=True)]
    except StopIteration:
        return
    except RuntimeError:
        GIVEN_UP.append(pipeline)
        log.warning("DALI has met a damaged picture that looked whole; Pillow decodes from here on")
    for batch in chain(fed, source):
        yield [decode_one(each, device) if each else None for each in batch]


def decode_one(encoded: Encoded, device: torch.device) -> Tensor | None:  # [H, W, 3] uint8
    """One picture without DALI; None if it cannot be decoded."""
    try:
        pixels = _deep_pixels(encoded.data) if _is_deep(encoded.data) else _pixels(encoded.data)
    except PIL_ERRORS:
        return None
    return torch.from_numpy(_as_colours(pixels, encoded.range).copy()).to(device)


def _pipeline(
    batches: Iterator[Sequence[Encoded | None]],
    fed: deque[Sequence[Encoded | None]],
    batch_size: int,
    num_threads: int,
    device: torch.device,
    deep: bool,
) -> Pipeline:
    """What decodes batches; those that it was given and has not handed out are in fed."""
    from nvidia.dali import fn, pipeline_def, types  # 1 s: pictures that are painted need no DALI

    on_gpu = device.type == "cuda"

    def feed() -> Any:
        batch = next(batches)  # StopIteration ends the pipeline
        fed.append(batch)
        data = [each.data if each else BLACK for each in batch]
        if not deep:
            return data
        ranges = [each.range if each else FULL_16_BITS for each in batch]
        low = [np.float32(each.low) for each in ranges]
        return data, low, [np.float32(255 / (each.high - each.low)) for each in ranges]

    @pipeline_def(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=(device.index or 0) if on_gpu else None,
        prefetch_queue_depth=PREFETCH,
        seed=0,
    )
    def build() -> Any:
        # fancy upsampling: on the GPU the pixels of the CPU, as near as nvJPEG comes
        options: dict[str, Any] = {"device": "mixed" if on_gpu else "cpu", "jpeg_fancy_upsampling": True}
        if not deep:
            return fn.decoders.image(fn.external_source(feed, batch=True), **options)
        encoded, low, scale = fn.external_source(feed, num_outputs=3, batch=True)
        values = fn.decoders.image(encoded, dtype=types.UINT16, **options)
        return fn.cast((fn.cast(values, dtype=types.FLOAT) - low) * scale, dtype=types.UINT8)  # saturates and rounds

    return build()


def _is_tiff(data: NDArray[np.uint8]) -> bool:
    return data[:4].tobytes().startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))


def _may_be_deep(index: ImageIndex, image: int) -> bool:
    """Whether a picture is worth a look for more than 8 bits, by the name of its file."""
    name = str(index.files[index.file[image]]).lower()
    return name.endswith((*DEEP_ENDINGS, ".tar", ".parquet"))


def _is_deep(data: NDArray[np.uint8] | None) -> bool:
    if data is None or is_deep_png(data):
        return data is not None
    if not _is_tiff(data):
        return False
    try:
        with Image.open(io.BytesIO(data.data)) as photo:
            return photo.mode.startswith(("I", "F")) or _has_16_bit_integers(data)
    except PIL_ERRORS:
        return False


def _has_16_bit_integers(data: NDArray[np.uint8]) -> bool:
    """Whether a TIFF has 16 bits a channel, grey or colour. Pillow opens such colours with 8."""
    with Image.open(io.BytesIO(data.data)) as photo:
        tags = getattr(photo, "tag_v2", {})
        bits, is_unsigned = tags.get(258, (1,)), tags.get(339, (1,))
        photometric = tags.get(262, 1)
    return set(bits) == {16} and set(is_unsigned) == {1} and photometric in (1, 2)


def _deep_pixels(data: NDArray[np.uint8]) -> NDArray[np.generic]:  # [H, W] or [H, W, 3]
    """The values of a picture of more than 8 bits.

    Raises:
        one of PIL_ERRORS: it is damaged.
    """
    pixels = _pixels(data)
    # Of three colours of 16 bits Pillow shows 8. A whole file alone may go to DALI.
    return _sixteen_bits(data) if pixels.dtype == np.uint8 else pixels


def _sixteen_bits(data: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The values of a whole PNG or TIFF of 16 bits a channel; of colours Pillow knows 8."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def build() -> Any:
        encoded = fn.external_source(lambda: [data], batch=True)
        return fn.decoders.image(encoded, dtype=types.UINT16, output_type=types.ANY_DATA)

    (pictures,) = build().run()
    return np.array(pictures[0])


def _pixels(data: NDArray[np.uint8]) -> NDArray[np.generic]:  # [H, W, 3] uint8, or [H, W] of a wider type
    """What Pillow shows, upright.

    Raises:
        one of PIL_ERRORS: it cannot.
    """
    if data[4:8].tobytes() == b"ftyp":
        _register_heif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd EXIF, and of large pictures below the limit
        with Image.open(io.BytesIO(data.data)) as photo:
            upright = ImageOps.exif_transpose(photo)
            if upright.mode.startswith(("I", "F")):
                return np.asarray(upright)
            return np.asarray(upright.convert("RGB"))


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return  # Pillow reads AVIF by itself; of HEIC the index has said what to install
    register_heif_opener()


def _as_ppm(pixels: NDArray[np.generic], bit_range: BitRange | None) -> NDArray[np.uint8]:
    colours = _as_colours(pixels, bit_range or full_range(pixels))
    height, width, _ = colours.shape
    return np.concatenate([np.frombuffer(f"P6 {width} {height} 255\n".encode(), np.uint8), colours.reshape(-1)])


def _as_colours(pixels: NDArray[np.generic], bit_range: BitRange) -> NDArray[np.uint8]:  # [H, W, 3]
    """Colours of 8 bits as they are; others by their range, grey as three equal channels."""
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, np.uint8)
    shades = bit_range.to_uint8(pixels)
    return (
        shades if shades.ndim == 3 and shades.shape[2] == 3 else np.repeat(shades.reshape(*shades.shape[:2], 1), 3, -1)
    )


def read_all(pictures: Iterable[tuple[EncodedPictures, int]], threads: ThreadPoolExecutor) -> list[Encoded | None]:
    """Pictures in a form that DALI decodes, several of Pillow's at a time; None for one that is gone or damaged."""
    found: list[Encoded | Future[Encoded | None] | None] = []
    for source, image in pictures:
        data = source.bytes_of(image)
        found.append(None if data is None else source.as_it_is(data) or threads.submit(source.by_pillow, data))
    return [each.result() if isinstance(each, Future) else each for each in found]
