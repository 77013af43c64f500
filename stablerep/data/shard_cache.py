"""Shards in a bucket, as local files: fetched when needed, checked by digest, dropped when space runs short."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from filelock import FileLock

from stablerep import atomic
from stablerep.config import UserError
from stablerep.storage import RemotePath

DEFAULT_FOLDER = "~/.cache/stablerep/shards"
DEFAULT_BYTES = 100 * 10**9


class ShardCache:
    """Files of a bucket below a folder; the processes of a machine share it.

    A file that is dropped while it is mapped stays readable until it is unmapped.
    """

    def __init__(self, folder: Path | None = None, most_bytes: int = DEFAULT_BYTES) -> None:
        self._folder = Path(folder or DEFAULT_FOLDER).expanduser()
        self._most_bytes = most_bytes

    def local(self, path: RemotePath, sha256: str, size: int) -> Path:
        """The local copy of a remote file, which is fetched if it is not there.

        Raises:
            UserError: the file is not what its shard's stats say, or larger than the whole cache may be.
        """
        if size > self._most_bytes:
            raise UserError(
                f"--cache-gb {self._most_bytes / 1e9:g} is less than one shard ({path}, {size / 1e9:.2g} GB)"
            )
        copy = self._folder / f"{sha256}.tar"
        self._folder.mkdir(parents=True, exist_ok=True)
        if not _is_there(copy, size):
            with FileLock(self._folder / ".lock"):
                if not _is_there(copy, size):  # else another process has fetched it meanwhile
                    self._fetch(path, copy, sha256, size)
        now = time.time_ns()  # finer than the file system's own clock
        os.utime(copy, ns=(now, now))  # used last: dropped last
        return copy

    def _fetch(self, path: RemotePath, copy: Path, sha256: str, size: int) -> None:
        self._make_room(size)
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(f"{path} is damaged: its digest is not that of its stats; run its stablerep-gen --repair")
        atomic.write(copy, data)

    def _make_room(self, size: int) -> None:
        copies = sorted(self._folder.glob("*.tar"), key=lambda copy: copy.stat().st_mtime_ns)
        held = sum(copy.stat().st_size for copy in copies)
        for copy in copies:
            if held + size <= self._most_bytes:
                return
            held -= copy.stat().st_size
            copy.unlink()


def _is_there(copy: Path, size: int) -> bool:
    return copy.exists() and copy.stat().st_size == size
