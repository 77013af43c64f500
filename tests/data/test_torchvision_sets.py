"""torchvision's sets, as torchvision itself reads them."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from stablerep.config import UserError
from stablerep.data.labelled import LabelledFiles, LabelledSet
from stablerep.data.torchvision_sets import SETS, metric_of, open_torchvision
from tests.data.pictures import encode, random_pixels

CLASSES = ["aeroplane", "frog", "ship"]


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's folder with ten photos a batch, and torchvision told of its digests."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)

    def save(name: str, content: dict[str, Any]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch() -> dict[str, Any]:
        pixels = random.integers(0, 256, (10, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": random.permutation(np.arange(10) % 3).tolist()}

    of = torchvision.datasets.CIFAR10
    monkeypatch.setattr(of, "train_list", [save(f"data_batch_{i}", batch()) for i in range(1, 3)])
    monkeypatch.setattr(of, "test_list", [save("test_batch", batch())])
    name, digest = save("batches.meta", {"label_names": CLASSES})
    monkeypatch.setattr(of, "meta", {"filename": name, "key": "label_names", "md5": digest})
    return tmp_path


def test_cifar_is_what_torchvision_reads(cifar: Path) -> None:
    data = open_torchvision("torchvision:cifar10", cifar, 0)
    assert isinstance(data.train, LabelledSet) and (len(data.train), len(data.test)) == (20, 10)
    assert data.train.class_names == tuple(CLASSES)
    for photos, train in ((data.train, True), (data.test, False)):
        oracle = torchvision.datasets.CIFAR10(cifar, train=train)
        for row, (picture, label) in enumerate(oracle):
            assert np.array_equal(photos.images[row], np.asarray(picture)) and photos.labels[row] == label


def test_a_set_of_files_is_what_torchvision_reads(tmp_path: Path) -> None:
    images, labels = tmp_path / "dtd/dtd/images", tmp_path / "dtd/dtd/labels"
    labels.mkdir(parents=True)
    number = 0
    for split in ("train", "val", "test"):
        names = []
        for kind in ("banded", "dotted"):
            (images / kind).mkdir(parents=True, exist_ok=True)
            for _ in range(3):
                (images / kind / f"{number}.png").write_bytes(encode(random_pixels(number)))
                names.append(f"{kind}/{number}.png")
                number += 1
        (labels / f"{split}1.txt").write_text("\n".join(names) + "\n")
    data = open_torchvision("torchvision:dtd", tmp_path, 0)
    assert isinstance(data.train, LabelledFiles) and isinstance(data.test, LabelledFiles)
    assert (len(data.train), len(data.test)) == (12, 6)
    shown = {
        (pixels.numpy().tobytes(), data.test.class_names[label])
        for batch in data.test.pictures(6, torch.device("cpu"))
        for pixels, label in zip(batch, data.test.labels, strict=True)
        if pixels is not None
    }
    oracle = torchvision.datasets.DTD(tmp_path, split="test")
    assert shown == {(np.asarray(picture).tobytes(), oracle.classes[label]) for picture, label in oracle}


def test_a_set_without_a_split_is_drawn(tmp_path: Path) -> None:
    for kind, count in (("ant", 35), ("bee", 33), ("BACKGROUND_Google", 2)):
        folder = tmp_path / "caltech101/101_ObjectCategories" / kind
        folder.mkdir(parents=True)
        for number in range(1, count + 1):
            Image.fromarray(random_pixels(number, 8, 8)).save(folder / f"image_{number:04d}.jpg")
    (tmp_path / "caltech101/Annotations").mkdir()
    data = open_torchvision("torchvision:caltech101", tmp_path, 0)
    assert np.bincount(data.train.labels).tolist() == [30, 30] and np.bincount(data.test.labels).tolist() == [5, 3]
    assert all(
        data.test.where(row).split("/")[-2] == ("ant", "bee")[label] for row, label in enumerate(data.test.labels)
    )


def test_every_name_is_a_set_of_torchvision() -> None:
    assert all(hasattr(torchvision.datasets, about.name) for about in SETS.values())
    assert metric_of("torchvision:pets") == "mean_class" and metric_of("torchvision:cifar10") == "top1"


@pytest.mark.parametrize(
    ("name", "says"), [("cifar", "did you mean cifar10"), ("cifar10", "give its --data-root, or --download")]
)
def test_what_is_not_there(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        open_torchvision(f"torchvision:{name}", tmp_path, 0)
    assert "\n" not in str(caught.value)
