"""The encoded bytes of pictures, read where they lie."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stablerep.data.sampling import Picks, Source

OPEN_FILES = 256  # of each source; far below the usual limit of 1,024 a process


class EncodedPictures:
    """Views into the mapped files of all sources; nothing is copied and only what is used is read."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._indexes = [source.index for source in sources]
        self._map = lru_cache(OPEN_FILES * len(sources))(self._open)

    def read(self, picks: Picks) -> list[NDArray[np.uint8]]:
        return [self._view(s, i) for s, i in zip(picks.source.tolist(), picks.image.tolist(), strict=True)]

    def where(self, picks: Picks, row: int) -> str:
        """A picture of a batch in words, for an error."""
        index, image = self._indexes[picks.source[row]], picks.image[row]
        file = index.files[index.file[image]]
        if index.is_folder:
            return str(file)
        return f"{file} (prompt {index.group[image]}, {index.size[image]} bytes at {index.offset[image]})"

    def is_in_folder(self, picks: Picks, row: int) -> bool:
        return self._indexes[picks.source[row]].is_folder

    def _view(self, source: int, image: int) -> NDArray[np.uint8]:
        index = self._indexes[source]
        start = index.offset[image]
        return self._map(source, int(index.file[image]))[start : start + index.size[image]]

    def _open(self, source: int, file: int) -> NDArray[np.uint8]:
        with self._indexes[source].files[file].open("rb") as opened:
            try:
                return np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            except ValueError:  # mmap refuses an empty file; the decoder will say what is wrong with it
                return np.zeros(0, np.uint8)
