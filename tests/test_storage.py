"""A remote path answers as a local one does; what fails is tried again, then is an error of one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stablerep import storage
from stablerep.config import UserError
from stablerep.storage import RemotePath, place
from tests.shelf import Shelf


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "WAITS", (0.0, 0.0))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.json", "b.tar", "sub/a.json", "sub/deep/c", "other/b.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 3)
    return tmp_path


def names(paths, root: str) -> list[str]:
    return sorted(str(path).removeprefix("shelf://").removeprefix(root) for path in paths)


@pytest.mark.parametrize("below", ["", "sub", "sub/deep", "nowhere", "a.json"])
def test_a_remote_path_answers_as_pathlib_does(tree: Path, below: str) -> None:
    local = tree / below
    remote = place(f"shelf://{tree}/{below}")
    assert isinstance(remote, RemotePath)
    assert remote.name == local.name
    assert remote.exists() == local.exists()
    assert remote.is_dir() == local.is_dir()
    if local.is_dir():
        assert names(remote.iterdir(), str(tree)) == names(local.iterdir(), str(tree))
    for pattern in ("*", "*.json", "[a-b]*", "*/*.json", "*/deep/*", "sub/a.json"):
        expected = local.glob(pattern) if local.is_dir() else []
        assert names(remote.glob(pattern), str(tree)) == names(expected, str(tree)), pattern
    files = [path for path in local.glob("*") if path.is_file()]
    assert remote.sizes() == {path.name: path.stat().st_size for path in files}
    assert list(storage.read_all([remote / path.name for path in files])) == [path.read_bytes() for path in files]


def test_writing_reading_and_deleting(tree: Path) -> None:
    path = place(f"shelf://{tree}/new/folder") / "file.json"
    storage.write(path, "é")
    assert (tree / "new/folder/file.json").read_text() == path.read_text() == "é"
    storage.write(path, b"")
    assert path.read_bytes() == b"" and path.exists()
    path.unlink()
    assert not path.exists()
    path.unlink(missing_ok=True)
    for ask in (path.unlink, path.read_bytes, lambda: list(storage.read_all([path.parent / "a", path]))):
        with pytest.raises(FileNotFoundError, match="shelf://"):
            ask()


def test_many_files_at_once_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "READ_AT_ONCE", 4)
    folder = place("memory://many")
    paths = [folder / f"{number * 7 % 10}" for number in range(10)]
    for path in paths:
        storage.write(path, path.name)
    assert [data.decode() for data in storage.read_all(paths)] == [path.name for path in paths]


@pytest.mark.parametrize("failures", [0, 2, 3])
@pytest.mark.parametrize("operation", ["ls", "exists", "cat_file", "put_file", "second half", "rm_file"])
def test_what_fails_is_tried_again(
    tree: Path, operation: str, failures: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = [failures]

    def fail(name: str, path: str) -> None:
        if name == operation and left[0]:
            left[0] -= 1
            raise ConnectionError("the line\nis dead")

    monkeypatch.setattr(Shelf, "before", staticmethod(fail))
    caplog.set_level("INFO", "stablerep.generate")
    path = place(f"shelf://{tree}") / "a.json"
    ask = {
        "ls": path.parent.sizes, "exists": path.exists, "cat_file": path.read_bytes, "rm_file": path.unlink,
        "put_file": lambda: storage.write(path, "whole"), "second half": lambda: storage.write(path, "whole"),
    }[operation]  # fmt: skip
    if failures <= len(storage.WAITS):
        ask()
        assert len(caplog.records) == failures
    else:
        with pytest.raises(UserError, match=r"^shelf://.* cannot be .* \(ConnectionError: the line is dead\); run"):
            ask()


def test_bytes_that_do_not_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "put_file", lambda self, source, path: Path(path).write_bytes(b"wh"))
    with pytest.raises(UserError, match="2 of 5 bytes arrived"):
        storage.write(place(f"shelf://{tmp_path}/file"), "whole")


def test_our_own_mistakes_are_not_taken_for_the_storages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "before", staticmethod(lambda operation: None))
    with pytest.raises(TypeError):
        place(f"shelf://{tmp_path}").sizes()


def test_what_a_flag_names() -> None:
    assert place("runs/a") == place(Path("runs/a")) == Path("runs/a")
    assert place("file:///runs/a") == place("local:///runs/a") == Path("/runs/a")
    assert place("s3://bucket/run//") == RemotePath("s3://bucket/run")
    assert str(place("abfs://box@account.dfs.core.windows.net/run")) == "abfs://box@account.dfs.core.windows.net/run"
    assert str(place("sftp://user@host/run") / "x") == "sftp://user@host/run/x"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/run", "holds a password"),
        ("sftp://user:se@cret@host/run", "holds a password"),
        (Path("s3://bucket/run"), "has lost a slash"),
        ("s3://", "is no folder"),
        ("s3://bucket/run*", "is no folder"),
        ("https://host/run?token=secret", "is no folder"),
        ("simplecache::s3://bucket/run", "is no folder"),
    ],
)
def test_urls_that_are_refused(url: str | Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        place(url)
    assert "secret" not in str(error.value) and "se@cret" not in str(error.value)


def test_storage_that_nothing_here_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="nowhere:// is no storage that fsspec knows"):
        place("nowhere://bucket/run").exists()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"pip install 'stablerep\[gcs\]'"):
        place("gs://bucket/run").exists()
