"""stablerep-engine on a real store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stablerep import cli
from stablerep.engines.store import BrokenEntry, Entry, Store, Verification


@pytest.fixture
def engine_dir(onnx_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(onnx_store, tmp_path / "engines"))


def test_build_list_verify_prune(engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--engine-dir", str(engine_dir)]
    cli.engine(["build", *where, "--batch-size", "2"])
    text = capsys.readouterr()
    assert "unet-onnx-" in text.out and "vae_decoder-onnx-" in text.out and "equals torch: cosine 1.0000" in text.out
    assert "building" not in text.err  # it is there already
    cli.engine(["list", *where])
    assert "equals torch" in capsys.readouterr().out
    cli.engine(["verify", *where, "--batch-size", "3"])
    assert "for 3 rows" in capsys.readouterr().out
    cli.engine(["prune", *where])
    assert "removed" not in capsys.readouterr().out  # nothing is wrong with it

    entry = Store(engine_dir).entries()[-1]
    assert isinstance(entry, Entry)
    [place] = entry.verified
    entry.with_verified(place, Verification(ok=False, reason="differs from torch: cosine 0.1"))
    cli.engine(["prune", "--dry-run", *where])
    assert "would be removed: on cpu, onnxruntime" in capsys.readouterr().out
    assert len(Store(engine_dir).entries()) == 2

    (entry.folder / "engine.json").write_text("{")
    cli.engine(["list", *where])
    assert "cannot run here: engine.json cannot be read" in capsys.readouterr().out
    assert isinstance(Store(engine_dir).entries()[-1], BrokenEntry)
    cli.engine(["prune", *where])
    assert "removed: engine.json cannot be read" in capsys.readouterr().out
    assert len(Store(engine_dir).entries()) == 1


def test_verify_of_a_damaged_engine_ends_in_one_line(engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = Store(engine_dir).entries()[-1]
    weights = entry.folder / "model.onnx"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(SystemExit) as stop:
        cli.engine(["verify", "--engine-dir", str(engine_dir), "--batch-size", "2"])
    assert stop.value.code == 2
    text = capsys.readouterr()
    assert "model.onnx is damaged" in text.out
    assert "1 engines cannot be used; stablerep-engine prune removes them" in text.err


def test_verify_of_a_store_that_cannot_be_written_still_says_what_it_found(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in Store(engine_dir).entries():
        assert isinstance(entry, Entry)
        record = json.loads((entry.folder / "engine.json").read_text())
        (entry.folder / "engine.json").write_text(json.dumps(record | {"verified": {}}))
        (entry.folder / "engine.json.partial").mkdir()  # stops root too, whom permissions do not
    cli.engine(["verify", "--engine-dir", str(engine_dir), "--batch-size", "2"])
    text = capsys.readouterr()
    assert text.out.count("equals torch") == 2 and "cannot be kept" in text.err
    assert all(isinstance(entry, Entry) and not entry.verified for entry in Store(engine_dir).entries())


def test_a_folder_in_which_everything_goes(engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.engine(["prune", "--everything", "--engine-dir", str(engine_dir)])
    assert "removed: asked for" in capsys.readouterr().out
    assert Store(engine_dir).entries() == []
