"""The pictures of a folder: what is read, what is counted and left out, what a system left there and nobody means."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# DALI or Pillow decodes them all (decode.py); HEIF_ENDINGS with the extra stablerep[heic].
PICTURE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif",
    ".jp2", ".ppm", ".pgm",
)  # fmt: skip
HEIF_ENDINGS = (".heic", ".heif")
# What macOS, Windows, Synology and others put beside one's files; names that begin with a dot go without saying.
SYSTEM_NAMES = {
    "__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found",
}  # fmt: skip

log = logging.getLogger("stablerep.data")


@dataclass(frozen=True)
class PictureFiles:
    files: tuple[Path, ...]  # in the order of their paths
    not_read: Mapping[str, int]  # how many files have an ending that is not read, by ending


def is_system_name(name: str) -> bool:
    """Whether a file or folder was made by a system rather than by a person: ._a.jpg, __MACOSX, Thumbs.db."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def find_pictures(folder: Path) -> PictureFiles:
    """All pictures below a folder, by their endings in upper or lower case.

    Links to folders are followed; a folder that is met again, as in a circle of links, is read once.
    """
    files: list[Path] = []
    not_read: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    waiting = [str(folder)]
    while waiting:
        here = waiting.pop()
        about = os.stat(here)
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        with os.scandir(here) as entries:
            found = sorted((entry for entry in entries if not is_system_name(entry.name)), key=lambda each: each.name)
        waiting += [entry.path for entry in reversed(found) if entry.is_dir()]
        for entry in found:
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                continue
            if ending in HEIF_ENDINGS and not find_spec("pillow_heif"):
                not_read[f"{ending} (pip install 'stablerep[heic]')"] += 1
            elif ending in PICTURE_ENDINGS:
                files.append(Path(entry.path))
            else:
                not_read[ending or "no ending"] += 1
    return PictureFiles(tuple(sorted(files)), dict(not_read))


def log_not_read(data: object, not_read: Mapping[str, int]) -> None:
    """Say in one line which files are left out for their endings; nothing where there is none."""
    if not_read:
        log.warning("%s: %s left out, not read as pictures", data, counted(not_read))


def counted(not_read: Mapping[str, int]) -> str:
    """`3 files (.mov 2, .txt 1)`."""
    kinds = ", ".join(f"{ending} {count}" for ending, count in sorted(not_read.items(), key=lambda each: -each[1]))
    total = sum(not_read.values())
    return f"{total} file{'s' * (total != 1)} ({kinds})"
