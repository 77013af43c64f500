"""The same photo among the training and the test photos."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from stablerep.config import UserError
from stablerep.data.encoded import EncodedPictures
from stablerep.data.labelled import open_labelled
from stablerep.evaluate.config import EvaluateConfig
from stablerep.evaluate.overlap import find_overlap
from stablerep.evaluate.run import evaluate, notes
from tests.data.pictures import encode, random_pixels


def save_noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(random_pixels(seed)))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number, (split, count) in enumerate((("train", 12), ("test", 4))):
        for name in ("a", "b"):
            for i in range(count):
                save_noise(folder / split / name / f"{i}.png", seed=100 * number + 10 * ord(name) + i)
    return folder


def copy(photos: Path, source: str, target: str) -> None:
    (photos / target).write_bytes((photos / source).read_bytes())


def test_photos_of_the_same_bytes_are_found(photos: Path) -> None:
    data = open_labelled(str(photos))
    assert find_overlap(data.train, data.test) is None
    copy(photos, "train/a/3.png", "test/b/1.png")
    copy(photos, "train/b/4.png", "test/b/2.png")
    data = open_labelled(str(photos))
    found = find_overlap(data.train, data.test)
    assert found is not None and found.count == 2
    assert "test/b/1.png" in found.example and "train/a/3.png" in found.example


def test_a_photo_that_only_looks_alike_in_the_middle_is_another(photos: Path) -> None:
    changed = bytearray((photos / "train/a/3.png").read_bytes())
    changed[-1] ^= 1
    (photos / "test/b/1.png").write_bytes(changed)
    data = open_labelled(str(photos))
    assert find_overlap(data.train, data.test) is None


def test_few_files_are_read_whole(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(photos, "train/a/3.png", "test/b/1.png")
    data = open_labelled(str(photos))
    read: list[int] = []
    blake2b = hashlib.blake2b
    monkeypatch.setattr(hashlib, "blake2b", lambda part, **about: read.append(len(part)) or blake2b(part, **about))
    assert find_overlap(data.train, data.test) is not None
    assert sum(size > 64 for size in read) == 2
    monkeypatch.setattr(EncodedPictures, "bytes_of", lambda *_: None)  # all gone meanwhile
    assert find_overlap(data.train, data.test) is None


def test_refused_in_one_line_unless_allowed(photos: Path, tmp_path: Path) -> None:
    copy(photos, "train/a/3.png", "test/b/1.png")
    asked = {"checkpoint": "pixels", "data": str(photos), "out": tmp_path / "out", "image_size": 8, "epochs": 2}
    says = r"1 test photo is a training photo too, first .*test/b/1\.png .*--allow-overlap"
    with pytest.raises(UserError, match=says) as caught:
        evaluate(EvaluateConfig(**asked))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    found = evaluate(EvaluateConfig(**asked, allow_overlap=True))
    assert found["photos_on_both_sides"] == 1
    assert any("1 test photo is a training photo too" in line for line in notes(found))


def test_a_drawn_split_has_none(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(20):
            save_noise(tmp_path / name / f"{i}.png", seed=ord(name) + i // 4 * 7)  # four copies of each
    data = open_labelled(str(tmp_path), 3)
    assert data.was_drawn and find_overlap(data.train, data.test) is None
    assert np.bincount(data.test.labels).min() >= 4
