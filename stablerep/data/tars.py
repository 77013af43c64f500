"""Tars of WebDataset that others made: key.jpg, with its caption in key.txt or key.json and its label in key.cls."""

from __future__ import annotations

import json
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablerep.config import UserError
from stablerep.data.picture_files import PICTURE_ENDINGS, is_system_name
from stablerep.data.tables import CAPTIONS, LABELS, PictureRow

LARGEST_TEXT = 1 << 20  # bytes of a caption or label that are worth reading


@dataclass(frozen=True)
class TarIndex:
    rows: list[PictureRow]  # a row a picture
    offset: NDArray[np.int64]
    size: NDArray[np.int64]


def index_tar(path: Path) -> TarIndex:
    """Find the pictures of a tar by its headers; of what is in it only captions and labels are read.

    Raises:
        UserError: it is no tar, or cut short.
    """
    pictures: list[tuple[str, int, int]] = []
    texts: dict[str, dict[str, Any]] = defaultdict(dict)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, ending = _split(member.name)
                if not member.isfile() or is_system_name(Path(member.name).name):
                    continue
                if ending in PICTURE_ENDINGS:
                    pictures.append((key, member.offset_data, member.size))
                elif ending in (".txt", ".cls", ".json") and member.size <= LARGEST_TEXT:
                    texts[key] |= _read(tar.extractfile(member).read(), ending)  # type: ignore[union-attr]
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(f"--data {path} cannot be read as a tar ({error}); make it anew") from error
    rows = [
        PictureRow(path, _of(texts[key], CAPTIONS), _of(texts[key], LABELS), key=f"{path}/{key}")
        for key, _, _ in pictures
    ]
    return TarIndex(
        rows,
        np.array([offset for _, offset, _ in pictures], np.int64),
        np.array([size for _, _, size in pictures], np.int64),
    )


def _split(name: str) -> tuple[str, str, str]:
    """Key, what is between, and ending: `a/000.0.jpg` belongs to the sample a/000, as WebDataset has it."""
    folder, slash, file = name.rpartition("/")
    key, _, rest = file.partition(".")
    between, dot, ending = rest.rpartition(".")
    return folder + slash + key, between, "." + (ending if dot or rest else "").lower()


def _read(data: bytes, ending: str) -> dict[str, Any]:
    text = data.decode("utf-8-sig").strip()
    if ending == ".json":
        values = json.loads(text)
        return {str(name).lower(): value for name, value in values.items()} if isinstance(values, dict) else {}
    return {"caption" if ending == ".txt" else "label": text}


def _of(values: dict[str, Any], names: tuple[str, ...]) -> str | None:
    found = next((values[name] for name in names if name in values), None)
    return None if found is None or isinstance(found, dict | list) else str(found).strip() or None
