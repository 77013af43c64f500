"""The commands as a user meets them."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from stablerep import atomic, cli, process
from stablerep.config import UserError
from stablerep.data.index import index_shards
from tests.data.pictures import write_folder


def refused(command, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        command(argv)
    assert stop.value.code == 2
    text = capsys.readouterr().err.strip()
    assert "Traceback" not in text
    last = text.splitlines()[-1]
    assert last.startswith("stablerep-")
    return last


def test_gen_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--prompts", str(tmp_path / "none.txt"), "--out", str(tmp_path / "out")]
    assert "none.txt does not exist" in refused(cli.gen, argv, capsys)
    assert "did you mean ddim" in refused(cli.gen, [*argv, "--scheduler", "dddim"], capsys)


def test_gen_on_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    (tmp_path / "p.txt").write_text("a bag\na shirt\n")
    few = ["--num-images-per-prompt", "1", "--num-inference-steps", "1", "--prompts-per-shard", "1"]
    argv = ["--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out"), *few]
    write = atomic.write

    def full_after_the_first_shard(path: Path, data: bytes) -> None:
        if path.name.startswith("000001"):
            raise OSError(28, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(atomic, "write", full_after_the_first_shard)
    assert "No space left on device" in refused(cli.gen, argv, capsys)
    monkeypatch.undo()
    assert len(index_shards(tmp_path / "out")) == 1  # the first shard is kept
    cli.gen(argv)
    assert len(index_shards(tmp_path / "out")) == 2


@pytest.mark.parametrize("gigabytes", [1, 2.9])
def test_too_little_memory_ends_with_a_line(tmp_path: Path, gigabytes: float) -> None:
    """Where torch cannot be loaded, and where a library of C++ ends the process."""
    (tmp_path / "p.txt").write_text("a bag\n")
    command = [sys.executable, "-c", "from stablerep.cli import gen; gen()", "--prompts", str(tmp_path / "p.txt")]
    limits = (int(gigabytes * 2**30), resource.RLIM_INFINITY)
    run = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 2, run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("stablerep-gen: out of memory (") and "Traceback" not in run.stderr
    assert f"ulimit -v leaves {limits[0] / 1e9:.1f} GB" in last


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory (no more can be had)"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
            "tried to allocate 8",
        ),
        (RuntimeError("can't start new thread"), "out of memory (can't start new thread)"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "Cannot allocate memory"),
    ],
)
def test_what_says_that_memory_ran_out(error: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: object) -> None:
        raise error

    assert said in refused(lambda argv: process.run_command("stablerep-gen", fail, argv), [], capsys)

    def fail_within(argv: object) -> None:
        raise UserError("--model x is no pipeline") from error

    assert said in refused(lambda argv: process.run_command("stablerep-gen", fail_within, argv), [], capsys)
    with pytest.raises(RuntimeError, match="a bug"):
        process.run_command("stablerep-gen", lambda argv: (_ for _ in ()).throw(RuntimeError("a bug")), [])


@pytest.mark.parametrize("out", ["file", "file/run", "link"])
def test_no_command_writes_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "p.txt").write_text("a bag\n")
    for number in range(6):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{number}.png")
    where = ["--out", str(tmp_path / out)]
    for command, argv in (
        (cli.gen, ["--prompts", str(tmp_path / "p.txt")]),
        (cli.train, ["--data", str(tmp_path), "--arch", "vit_tiny_patch16_224", "--batch-size", "6"]),
    ):
        said = refused(command, [*argv, *where], capsys)
        assert str(tmp_path / out) in said and "choose a" in said


def test_train_and_eval_refuse_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert "nowhere" in refused(cli.train, ["--data", str(tmp_path / "nowhere"), *out], capsys)
    argv = ["--checkpoint", "pixels", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "measured")]
    assert "nowhere" in refused(cli.evaluate, argv, capsys)


def test_an_out_that_is_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "classes.txt").write_text("bag\n")
    (tmp_path / "folder.txt").mkdir()
    train = ["--data", str(write_folder(tmp_path / "photos", 4)), "--objective", "simclr", "--batch-size", "4", "--out"]
    evaluate = ["--checkpoint", "pixels", "--data", "fashion-mnist", "--out"]
    for out, says in ((tmp_path / "file", "is a file; choose a folder"), (tmp_path / "file" / "run", "lies below")):
        assert says in refused(cli.train, [*train, str(out)], capsys)
        assert says in refused(cli.evaluate, [*evaluate, str(out)], capsys)
    prompts = ["--classes", str(tmp_path / "classes.txt"), "--num-prompts", "2", "--out"]
    assert "file is a file; choose a folder" in refused(
        cli.prompts, [*prompts, str(tmp_path / "file" / "p.txt")], capsys
    )
    argv = [*prompts, str(tmp_path / "folder.txt")]
    assert "is a folder; give the name of a file" in refused(cli.prompts, argv, capsys)


def test_engine_lists_and_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    cli.engine([])
    assert "usage: stablerep-engine build | list | verify | prune" in capsys.readouterr().out
    assert "did you mean build" in refused(cli.engine, ["bild"], capsys)
    assert "--engine 'tensorrt' is unknown; did you mean trt" in refused(
        cli.engine, ["build", "--engine", "tensorrt"], capsys
    )
    assert "--batch-size must be at least 1" in refused(cli.engine, ["build", "--batch-size", "0"], capsys)
    assert "--dtype 'fp8' is unknown" in refused(cli.engine, ["build", "--dtype", "fp8"], capsys)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cli.engine(["list"])
    assert f"0 engines, 0.0 MB, in {tmp_path / 'cache/stablerep/engines'}" in capsys.readouterr().out
    cli.engine(["list", "--engine-dir", str(tmp_path / "other")])
    assert f"in {tmp_path / 'other'}" in capsys.readouterr().out
    cli.engine(["prune"])
    assert "freed" in capsys.readouterr().out


def test_doctor_reports(capsys: pytest.CaptureFixture[str]) -> None:
    cli.doctor([])
    assert "torch" in capsys.readouterr().out
