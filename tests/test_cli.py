"""The commands as a user meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stablerep import atomic, cli
from stablerep.shards import index_shards
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
