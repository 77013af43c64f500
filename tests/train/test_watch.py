"""A run that is watched: what it writes, what it keeps, and that it trains the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stablerep import cli
from stablerep.config import UserError
from stablerep.data.labelled import open_labelled
from stablerep.evaluate.features import features_of
from stablerep.evaluate.probes import knn_top1
from stablerep.evaluate.watch import open_watch
from stablerep.models import InputTransform, create_encoder, load_encoder
from stablerep.train.loop import train
from stablerep.train.watch import BEST, read_best
from tests.data.pictures import write_shards
from tests.train.test_loop import config_for, final_state, lines, tensors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", prompts=10, per_prompt=4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 12 training photos, of which one cannot be decoded; a test split of other tones."""
    root, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 2)):
        for tone, name in enumerate(("cat", "dog", "hen")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 60, (32, 32, 3)) + 70 * (tone if split == "train" else 2 - tone)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number:02}.png")
    (root / "train" / "cat" / "03.png").write_bytes(b"no picture")
    return root


def test_it_is_the_knn_of_held_out_training_photos(photos: Path) -> None:
    torch.manual_seed(0)
    encoder, transform = create_encoder("test_resnet", 32), InputTransform(32)
    encoder.train()
    found = open_watch(str(photos), 0)(CPU)(encoder, transform)
    assert encoder.training
    seen = features_of(encoder, transform, open_labelled(str(photos)).train, device=CPU, show=False)
    kept = [row for row in range(36) if row != 3]
    asks = torch.tensor([row % 12 in (4, 9) for row in kept])
    expected = knn_top1(seen.x[~asks], seen.y[~asks], seen.x[asks], seen.y[asks], 3, (10,))
    assert found == pytest.approx(expected.item())


def probe_once(photos: Path) -> float:
    torch.manual_seed(0)
    return open_watch(str(photos), 0)(CPU)(create_encoder("test_resnet", 32), InputTransform(32))


def test_ranks_share_the_photos(photos: Path, run_ranks: Callable[..., list[Any]]) -> None:
    assert run_ranks(2, probe_once, photos) == [probe_once(photos)] * 2


def test_a_watched_run_trains_the_same_and_keeps_its_best(shards: Path, photos: Path, tmp_path: Path) -> None:
    train(config_for(shards, tmp_path / "plain"))
    out = tmp_path / "watched"
    train(config_for(shards, out, watch=str(photos), watch_every=2), open_watch=open_watch(str(photos), 0))
    ours, expected = tensors(final_state(out)), tensors(final_state(tmp_path / "plain"))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    top1 = {line["step"]: line["knn_top1"] for line in lines(out) if "knn_top1" in line}
    assert list(top1) == [2, 4, 6] and all(0 <= value <= 100 for value in top1.values())
    best = read_best(out)
    assert best == {"step": max(top1, key=lambda step: top1[step]), "knn_top1": max(top1.values())}
    encoder, transform = load_encoder(out / BEST)
    assert open_watch(str(photos), 0)(CPU)(encoder, transform) == pytest.approx(best["knn_top1"])


def test_as_a_user_meets_it(shards: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--arch test_resnet --image-size 32 --batch-size 12 --views-per-prompt 3 --head-hidden 16 --device cpu"
    argv = ["--data", str(shards), "--out", str(tmp_path / "run"), *flags.split(), "--steps", "3"]
    with pytest.raises(SystemExit):
        cli.train([*argv, "--watch", str(tmp_path / "none")])
    assert not (tmp_path / "run").exists()
    assert "--watch" in capsys.readouterr().err
    cli.train([*argv, "--watch", str(photos)])
    text = capsys.readouterr().out
    assert f"at step 3: {tmp_path / 'run' / BEST}" in text
    assert json.loads((tmp_path / "run" / "watch.json").read_text())["step"] == 3
    with pytest.raises(UserError, match="no class has 5 training photos"):
        open_watch(str(shrunk(photos, tmp_path / "few")), 0)


def shrunk(photos: Path, to: Path) -> Path:
    for path in photos.rglob("0[0-2].png"):
        target = to / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return to
