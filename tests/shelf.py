"""shelf:///a/folder: a file system for fsspec that is a local folder, writes in two halves, and fails when told to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Shelf(LocalFileSystem):
    protocol = "shelf"
    before: Callable[[str, str], None] = staticmethod(lambda operation, path: None)  # raises what is to go wrong

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(str(path).removeprefix("shelf://"))

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> list:
        type(self).before("ls", path)
        return super().ls(path, detail=detail, **kwargs)

    def exists(self, path: str, **kwargs: Any) -> bool:
        type(self).before("exists", path)
        return super().exists(path, **kwargs)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        type(self).before("cat_file", path)
        return super().cat_file(path, *args, **kwargs)

    def rm_file(self, path: str) -> None:
        type(self).before("rm_file", path)
        super().rm_file(path)

    def put_file(self, source: str, path: str, *args: Any, **kwargs: Any) -> None:
        type(self).before("put_file", path)
        self.makedirs(self._parent(path), exist_ok=True)
        with open(source, "rb") as given, open(path, "wb") as file:
            data = given.read()
            file.write(data[: len(data) // 2])
            file.flush()
            sys.audit("shelf.half", path)
            type(self).before("second half", path)
            file.write(data[len(data) // 2 :])


fsspec.register_implementation("shelf", Shelf, clobber=True)
