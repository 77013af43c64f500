"""What a user can get wrong: one line each, and nothing is lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from stablerep import atomic, cli
from stablerep.adapt.config import AdaptConfig
from stablerep.adapt.run import Stopped
from stablerep.config import UserError
from tests.adapt.runs import config_for, run, stop_after, write_photos
from tests.generate import tiny_models


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank": 0}, "--rank must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "--learning-rate must be above 0"),
        ({"held_out": 0.6}, "--held-out must be above 0 and at most 0.5, got 0.6"),
        ({"held_out": "many"}, "--held-out must be a share from 0 to 1"),
        ({"caption_dropout": 1.0}, "--caption-dropout must be from 0 to below 1"),
        ({"image_size": 64}, "--image-size 64 goes with --full"),
        ({"vae_steps": 5}, "--vae-steps 5 goes with --full"),
        ({"prior_weight": 1.0}, "--prior-prompt is missing"),
        ({"prior_prompt": "a part"}, "--prior-weight is missing"),
        ({"precision": "fp8"}, "--precision 'fp8' is unknown"),
        ({"targets": ()}, "--targets needs the end of a layer's name"),
        ({"seed": 2**63}, "--seed must be at most"),
    ],
)
def test_config(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        AdaptConfig(photos="photos", out=Path("out"), **changes)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def refused(photos: Path, out: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line of the command, which leaves no folder behind."""
    with pytest.raises(SystemExit) as ended:
        cli.adapt(["--photos", str(photos), "--out", str(out), "--device", "cpu", *flags])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stablerep-adapt: ")]
    assert ended.value.code == 2 and len(said) == 1 and not out.exists()
    return said[0]


def test_photos_that_will_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert "--photos nowhere does not exist" in refused(Path("nowhere"), out, capsys)
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in refused(tmp_path / "empty", out, capsys)
    three = write_photos(tmp_path / "three", 3)
    assert "--photos holds 3 photos that can be read, and 4 are needed" in refused(three, out, capsys)
    (three / "copy.png").write_bytes(next(three.rglob("*.png")).read_bytes())
    assert "holds 3 photos (4 with copies)" in refused(three, out, capsys)
    small = write_photos(tmp_path / "small", 5, side=24)
    line = refused(small, out, capsys)
    assert "5 of 5 are smaller than the 32 x 32 pixels that the model paints" in line and "--upscale" in line
    flags = ["--template", "a photo of a {label}"]
    bare = tmp_path / "bare"
    bare.mkdir()
    for number, file in enumerate(sorted(small.rglob("*.png"))):
        (bare / f"{number}.png").write_bytes(file.read_bytes())
    assert "asks for labels, and not all photos have one" in refused(bare, out, capsys, *flags)


def test_models_that_will_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = write_photos(tmp_path / "photos", 5), tmp_path / "run"
    assert "no such folder" in refused(photos, out, capsys, "--model", "./nowhere")
    tiny_models.save("sd-lcm", tmp_path / "lcm")
    assert "was distilled (LCM)" in refused(photos, out, capsys, "--model", str(tmp_path / "lcm"))
    assert "no multiple of this model's 8 pixels; try 48" in refused(
        photos, out, capsys, "--full", "--image-size", "50"
    )


def test_targets_that_no_layer_has(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 5)
    with pytest.raises(UserError, match=r"--targets to_z: the UNet has no layer of such a name"):
        run(config_for(photos, tmp_path / "run", targets=("to_z",)))
    run(config_for(photos, tmp_path / "other", targets=("to_q", "to_z"), steps=1))  # some do: peft's own rule


def test_damaged_photos_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = write_photos(tmp_path / "photos", 6)
    first = sorted(photos.rglob("*.png"))[0]
    first.write_bytes(first.read_bytes()[:60])
    summary = run(config_for(photos, tmp_path / "run", steps=1, held_out=0.2))
    assert summary.photos + summary.held_out == 5
    assert f"1 of 6 photos cannot be decoded and are left out, first {first}" in caplog.text
    for file in sorted(photos.rglob("*.png"))[1:3]:
        file.write_bytes(b"")
    with pytest.raises(UserError, match="3 photos that can be read, and 4 are needed"):
        run(config_for(photos, tmp_path / "fewer"))
    assert not (tmp_path / "fewer").exists()


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, out = write_photos(tmp_path / "photos", 5), tmp_path / "run"
    config = config_for(photos, out, steps=6)
    with pytest.raises(Stopped):
        run(config, listening=stop_after(2))
    before = (out / "checkpoint.pt").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises((UserError, OSError)) as failed:
            run(config)
    assert "No space left" in str(failed.value) and (out / "checkpoint.pt").read_bytes() == before
    assert run(config).steps == 6
    (out / "adapted.json").unlink()
    (out / "checkpoint.pt").write_bytes(before[: len(before) // 2])
    with pytest.raises(UserError, match=r"is damaged .*; delete it to begin the run anew"):
        run(config)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 5)
    with pytest.raises(UserError, match=r"the loss is no number any more at step .*lower --learning-rate"):
        run(config_for(photos, tmp_path / "run", steps=20, learning_rate=1e30, warmup=0.0, full=True))


def test_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    photos = write_photos(tmp_path / "photos", 5)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'stablerep\[adapt\]'"):
        run(config_for(photos, tmp_path / "run"))
