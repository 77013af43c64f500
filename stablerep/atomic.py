"""Files and folders that are whole or not there, whatever stops us while writing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all; it is on the disk when this returns. Text is written as UTF-8."""
    with new_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path`, and is on the disk, once the block has ended."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)  # a full disk: give back what the half file took
        raise
    os.replace(partial, path)
    sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill with files that takes the place of `path` once the block has ended."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for file in partial.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    shutil.rmtree(path, ignore_errors=True)
    os.replace(partial, path)


def sync_folder(path: Path) -> None:
    """Put what was renamed into a folder on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
