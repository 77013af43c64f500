"""Where a run's files are: a local folder, or a URL that fsspec opens (s3://, gs://, az://, memory://, ...).

A RemotePath has the few methods of pathlib.Path that a run needs, each a request to the storage: nothing is cached.
What fails is tried again, as connections come back; then it is a UserError. A missing file is a FileNotFoundError, as
of a local path.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from stablerep import atomic
from stablerep.config import UserError

WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds between tries; the file systems have tries of their own below these
READ_AT_ONCE = 500  # small files; those of fsspec's file systems that can have 128 requests under way
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
NEVER_THE_STORAGE = (AssertionError, AttributeError, NameError, TypeError, UserError)

T = TypeVar("T")
log = logging.getLogger("stablerep.generate")


@dataclass(frozen=True, order=True)
class RemotePath:
    """A folder or a file behind a URL."""

    url: str

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.url.rpartition("/")[0])

    def exists(self) -> bool:
        return self._ask("read", lambda fs, path: fs.exists(path))

    def is_dir(self) -> bool:
        return any(self.iterdir())

    def iterdir(self) -> Iterator[RemotePath]:
        yield from (self / _name(entry) for entry in self._list())

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Files and folders by a pattern; each folder that it goes through costs a listing."""
        first, _, rest = pattern.partition("/")
        for entry in self._list():
            if fnmatchcase(_name(entry), first):
                path = self / _name(entry)
                if not rest:
                    yield path
                elif entry["type"] == "directory":
                    yield from path.glob(rest)

    def sizes(self) -> dict[str, int]:
        """The files of a folder and their bytes, from one listing; none of a folder that is not there."""
        return {_name(entry): int(entry["size"] or 0) for entry in self._list() if entry["type"] != "directory"}

    def read_bytes(self) -> bytes:
        (data,) = read_all([self])
        return data

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: buckets have no folders, and on file systems that have, `upload` makes them.

        fsspec's own mkdir would make a missing bucket, at a misspelt name too.
        """

    def unlink(self, missing_ok: bool = False) -> None:
        def remove(fs: Any, path: str) -> bool:
            try:
                fs.rm_file(path)
            except FileNotFoundError:
                return False
            return True

        if not self._ask("deleted", remove) and not missing_ok:
            raise FileNotFoundError(self.url)

    def upload(self, source: Path) -> None:
        """Put a local file here, in the place of what is here, and see that all its bytes have arrived."""
        size = source.stat().st_size

        def put(fs: Any, path: str) -> None:
            fs.put_file(str(source), path)
            found = fs.info(path)["size"]
            if found != size:
                raise OSError(f"{found} of {size} bytes arrived")

        self._ask("written", put)

    def _list(self) -> list[dict[str, Any]]:
        def entries(fs: Any, path: str) -> list[dict[str, Any]]:
            try:
                found = fs.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            # A file is its own listing, and a bucket may hold an empty object in the name of a folder.
            return [entry for entry in found if entry["name"].strip("/") != path.strip("/")]

        return sorted(self._ask("read", entries), key=_name)

    def _ask(self, what: str, action: Callable[[Any, str], T]) -> T:
        return _patiently(self, what, lambda: action(*_open(self)))


Folder = Path | RemotePath


def place(text: str | Path) -> Folder:
    """What a flag such as --out names: a local path, file:// too, or a URL.

    Raises:
        UserError: a URL with a password or with a pattern in it, or one that has been through pathlib.
    """
    url = str(text)
    scheme, separator, rest = url.partition("://")
    if not separator:
        if _was_url(url):
            raise UserError(f"{url} is a URL that has lost a slash, as in pathlib.Path; give it as text, with ://")
        return Path(text)
    if scheme in ("file", "local"):
        return Path(rest)
    authority = rest.partition("/")[0]
    if re.search(r":.*@", authority):
        shown = f"{scheme}://...@{authority.rpartition('@')[2]}"
        raise UserError(f"{shown} holds a password, which would end up in logs; give it where {scheme} looks for it")
    if "::" in scheme or not rest.strip("/") or re.search(r"[*?[]", rest):
        raise UserError(f"{url.partition('?')[0]} is no folder; give one URL as in s3://bucket/run, without ?, * and [")
    return RemotePath(url.rstrip("/"))


def refuse_url(flag: str, path: str | Path) -> None:
    """Raise a UserError if a path that must be local is a URL, also one that pathlib took a slash from."""
    if _was_url(str(path)):
        raise UserError(f"{flag} {path} must be a local folder; copy it here first, as with aws s3 sync or rclone")


def reach(folder: Folder) -> None:
    """Look whether a folder is there or can be made, so that a wrong path or URL shows before long work is begun.

    Raises:
        UserError: a URL that cannot be reached; a file, or a link to nothing, at the path or above it.
    """
    if isinstance(folder, RemotePath):
        folder.exists()
        return
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        what = "a file" if there.exists() else f"a link to {there.readlink()}, which is not there"
        raise UserError(f"--out {folder}: {there} is {what}; choose a folder")


def write(path: Folder, data: bytes | str) -> None:
    """Write a small file, whole or not at all where the storage can."""
    if isinstance(path, Path):
        return atomic.write(path, data)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / path.name
        source.write_bytes(data.encode() if isinstance(data, str) else data)
        path.upload(source)


def read_all(paths: Sequence[Folder]) -> Iterator[bytes]:
    """The contents of files of one place; remote ones many at a time, where the file system can.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    for start in range(0, len(paths), READ_AT_ONCE):
        block = paths[start : start + READ_AT_ONCE]
        yield from (path.read_bytes() for path in block if isinstance(path, Path))
        yield from _read_block([path for path in block if isinstance(path, RemotePath)])


def _read_block(paths: Sequence[RemotePath]) -> list[bytes]:
    if not paths:
        return []

    def read() -> list[bytes | FileNotFoundError]:
        fs, _ = _open(paths[0])
        names = [fs._strip_protocol(path.url) for path in paths]
        found = fs.cat(names, on_error="return")
        for data in found.values():
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                raise data
        return [found[name] for name in names]

    contents = _patiently(paths[0] if len(paths) == 1 else paths[0].parent, "read", read)
    for path, data in zip(paths, contents, strict=True):
        if isinstance(data, FileNotFoundError):
            raise FileNotFoundError(path.url) from data
    return [data for data in contents if isinstance(data, bytes)]


def _open(path: RemotePath) -> tuple[Any, str]:
    """The file system of a URL, and the path there.

    Raises:
        UserError: nothing that opens such URLs is known, or is installed.
    """
    import fsspec

    scheme = path.url.partition("://")[0]
    try:
        fs, there = fsspec.core.url_to_fs(path.url)
    except ImportError as error:
        what = f"stablerep[{EXTRAS[scheme]}]" if scheme in EXTRAS else "what it needs"
        raise UserError(f"{path} cannot be opened ({error}); pip install '{what}'") from error
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise
        raise UserError(
            f"{path}: {scheme}:// is no storage that fsspec knows; use s3, gs, az or a local path"
        ) from error
    fs.invalidate_cache()  # others may have written since
    return fs, there


def _patiently(path: RemotePath, what: str, action: Callable[[], T]) -> T:
    for wait in (*WAITS, None):
        try:
            return action()
        except NEVER_THE_STORAGE:
            raise
        except Exception as error:  # each file system raises its library's own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if wait is None:
                mend = "run the same command when that is mended; nothing finished is lost"
                raise UserError(f"{path} cannot be {what} ({reason}); {mend}") from error
            log.info("%s cannot be %s (%s); trying again in %g s", path, what, reason, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _was_url(text: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]+:/", text) is not None and not Path(text).exists()


def _name(entry: dict[str, Any]) -> str:
    return entry["name"].rstrip("/").rpartition("/")[2]
