"""A folder with every kind of picture, damaged ones and what is none, through training and evaluation by command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stablerep
from stablerep import cli
from tests.data.pictures import random_pixels
from tests.data.test_decode import KINDS, write_16_bit_png, write_kinds

TRAIN = [
    "--arch", "test_resnet", "--image-size", "32", "--views-per-prompt", "2", "--batch-size", "16",
    "--head-hidden", "16", "--head-out", "8",
]  # fmt: skip
ON_CPU = ["--device", "cpu"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """cat/ holds every kind of picture, dog/ photos of 16 bits; five are damaged, others are no pictures."""
    folder = tmp_path / "photos"
    for name in ("cat", "dog", "__MACOSX", "dog/linked"):
        (folder / name).mkdir(parents=True)
    write_kinds(folder / "cat")
    random = np.random.default_rng(0)
    for n in range(20):
        write_16_bit_png(folder / "dog" / f"{n}.png", random.integers(100, 4000, (40, 30), dtype=np.uint16))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.fromarray(random_pixels(77, 30, 400)).save(elsewhere / "wide.jpg")
    (folder / "dog" / "more").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(folder / "dog")
    for name, data in (("cat/._a.jpg", b"of macOS"), ("__MACOSX/x.jpg", b"of macOS"), ("cat/Thumbs.db", b"of Windows")):
        (folder / name).write_bytes(data)
    for name in ("cat/clip.MOV", "dog/notes.txt", "dog/list.txt"):
        (folder / name).write_bytes(b"no picture")
    jpeg = (folder / "cat" / "a.jpg").read_bytes()
    png = (folder / "dog" / "3.png").read_bytes()
    damaged = {"cat/cut.jpg": jpeg[:400], "cat/empty.png": b"", "cat/text.png": b"a letter", "dog/cut.png": png[:-40]}
    for name, data in damaged.items():
        (folder / name).write_bytes(data)
    return folder


WHOLE = len(KINDS) + 21
DAMAGED = 4


def test_they_train_and_evaluate_with_the_right_counts(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    cli.train(["--data", str(photos), "--out", str(out), "--epochs", "2", "--log-every", "2", *TRAIN, *ON_CPU])
    said = capsys.readouterr()
    assert f"{WHOLE + DAMAGED} pictures" in said.out and "3 files (.txt 2, .mov 1) not read" in said.out
    assert f"{DAMAGED} pictures could not be decoded, others took their places: {out}/damaged.txt" in said.out
    assert "3 files (.txt 2, .mov 1) left out, not read as pictures" in said.err
    for name in ("cat/cut.jpg", "cat/empty.png", "cat/text.png", "dog/cut.png"):
        assert sum(name in line for line in said.err.splitlines()) == 1
        assert str(photos / name) in (out / "damaged.txt").read_text().splitlines()
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["damaged_pictures"] == DAMAGED
    low, high = json.loads((out / "data.json").read_text())[0]["bit_range"]
    assert 100 <= low < 110 and 3990 < high < 4000

    _, transform = stablerep.load_encoder(out)
    assert transform.bit_range == (low, high)
    deep = torch.full((1, 8, 8, 3), round((low + high) / 2), dtype=torch.uint16)
    torch.testing.assert_close(
        transform(deep), transform(torch.full((1, 8, 8, 3), 128, dtype=torch.uint8)), atol=0.03, rtol=0
    )

    evaluate = ["--checkpoint", str(out), "--data", str(photos), "--out", str(tmp_path / "m"), "--epochs", "2", *ON_CPU]
    cli.evaluate(evaluate)
    said = capsys.readouterr()
    results = json.loads((tmp_path / "m" / "results.json").read_text())
    assert results["train_photos"] + results["test_photos"] == WHOLE and len(results["damaged_photos"]) == DAMAGED
    assert results["bit_range"] == [low, high]  # the encoder's own
    shown = " ".join(said.out.split())
    assert "4 photos could not be decoded, left out" in shown and "3 files (.txt 2, .mov 1) left out" in shown
    assert "photos was drawn: " in shown and "split.csv" in shown
    with pytest.raises(SystemExit) as stopped:
        cli.evaluate([*evaluate[:5], str(tmp_path / "strict"), *evaluate[6:], "--strict"])
    assert stopped.value.code == 2 and "--strict" in capsys.readouterr().err


def test_a_share_of_damaged_pictures_can_be_too_much(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data", str(photos), "--out", str(tmp_path / "run"), "--epochs", "3", *TRAIN, *ON_CPU]
    with pytest.raises(SystemExit) as stopped:
        cli.train([*argv, "--max-damaged", "1%"])
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"--max-damaged 0.01: 1 of {WHOLE + DAMAGED} pictures are damaged" in last and str(photos) in last
    cli.train([*argv, "--max-damaged", "20%"])  # what is allowed may change when a run goes on
    assert f"{DAMAGED} pictures could not be decoded" in capsys.readouterr().out
