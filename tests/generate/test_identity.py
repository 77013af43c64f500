"""Folders that cannot be written to, have gone, or were begun with other prompts."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import stablerep
from stablerep import atomic, cli
from stablerep.config import UserError
from stablerep.data.index import index_shards
from stablerep.generate.verify import verify
from stablerep.shards import read_pictures

FEW = {"num_images_per_prompt": 1, "num_inference_steps": 1, "prompts_per_shard": 2, "batch_size": 4, "device": "cpu"}


def flags(prompts: Path, out: Path) -> list[str]:
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in FEW.items())
    return ["--prompts", str(prompts), "--out", str(out), *(word for pair in pairs for word in pair)]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.gen(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@contextmanager
def nobody() -> Iterator[None]:
    """Not root, whom no folder refuses."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.gen(flags(prompts, tmp_path / "open"))  # all that is imported on the way: nobody may not read Python's folder
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    try:
        (folder / "p.txt").write_text(prompts.read_text())
        (folder / "closed").mkdir(mode=0o555)
        folder.chmod(0o755)
        with nobody():
            for out in (folder / "closed", folder / "closed/below"):
                assert "choose an --out you can write to" in refused(flags(folder / "p.txt", out), capsys)
        assert not list((folder / "closed").iterdir())
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EROFS])
def test_a_file_system_that_fails_in_the_middle(
    prompts: Path, tmp_path: Path, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = atomic.write

    def fails(path: Path, data: bytes) -> None:
        if path.name == "000001.parquet":
            raise OSError(code, os.strerror(code), str(path))
        write(path, data)

    monkeypatch.setattr(atomic, "write", fails)
    assert os.strerror(code) in refused(flags(prompts, tmp_path / "out"), capsys)
    monkeypatch.undo()
    assert len(index_shards(tmp_path / "out")) == 2
    cli.gen(flags(prompts, tmp_path / "out"))
    assert not verify(tmp_path / "out").problems


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_goes_in_the_middle(
    prompts: Path, tmp_path: Path, again: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", atomic.write

    def goes(path: Path, data: bytes) -> None:
        write(path, data)
        if path.name == "000000_stats.json":
            shutil.rmtree(out)
            if again:
                out.mkdir()

    monkeypatch.setattr(atomic, "write", goes)
    assert "run the same command again" in refused(flags(prompts, out), capsys)
    assert not list(out.glob("*"))  # no shard in a folder that would not know whose it is
    monkeypatch.undo()
    cli.gen(flags(prompts, out))
    assert len(index_shards(out)) == 4


CHANGES: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a word": (
        lambda lines: [lines[0], "a photo of a black bag", *lines[2:]],
        "row 1 was 'a photo of a white bag', is",
    ),
    "a row less in the shards": (
        lambda lines: lines[:1],
        "it had a row 1, 'a photo of a white bag', and has 1 rows now",
    ),
    "a row more": (lambda lines: [*lines, "more"], "it had 4 rows, has 5"),
    "a word not yet painted": (
        lambda lines: [*lines[:3], "another"],
        "a row after 1, the last one painted, or what a row says besides its text has changed",
    ),
    "another order": (lambda lines: [lines[1], lines[0], *lines[2:]], "row 0 was 'a photo of a dark slim sneaker', is"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_prompts_that_changed_since_the_run_began(prompts: Path, tmp_path: Path, change: str) -> None:
    out = tmp_path / "out"
    stablerep.generate(prompts=prompts, out=out, **FEW)
    (out / "000001_stats.json").unlink()  # as after a stop
    before = {path: path.read_bytes() for path in out.iterdir()}
    do, message = CHANGES[change]
    prompts.write_text("\n".join(do(prompts.read_text().splitlines())) + "\n")
    with pytest.raises(UserError) as error:
        stablerep.generate(prompts=prompts, out=out, **FEW)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_begun_before_labels_were_read_goes_on_with_the_same_bytes(
    prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = FEW | {"engine": "torch"}  # the one that needs no measuring
    texts = prompts.read_text().splitlines()
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("".join(json.dumps({"prompt": text, "class": "bag"}) + "\n" for text in texts))
    for name in ("old", "whole"):  # as an earlier version began it: without a label
        stablerep.generate(prompts=prompts, out=tmp_path / name, **few)
    for ending in (".tar", ".parquet", "_stats.json"):
        (tmp_path / f"old/000001{ending}").unlink()
    with caplog.at_level("INFO", "stablerep.generate"):
        assert stablerep.generate(prompts=labelled, out=tmp_path / "old", **few).images_made == 2
    assert "goes on without" in caplog.text
    for name in ("000001.tar", "000001.parquet"):
        assert (tmp_path / "old" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    begun = stablerep.generate(prompts=labelled, out=tmp_path / "new", **few)
    assert (begun.images, {row["label"] for row, _ in read_pictures(tmp_path / "new")}) == (4, {"bag"})
    labelled.write_text(labelled.read_text().replace('"class": "bag"', '"class": "shoe"'))
    with pytest.raises(UserError, match="what a row says besides its text has changed"):
        stablerep.generate(prompts=labelled, out=tmp_path / "new", **few)
