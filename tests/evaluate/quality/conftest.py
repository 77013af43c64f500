"""Features to compare, and small sets of pictures on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stablerep.data.labelled import fashion_mnist


@dataclass(frozen=True)
class Sides:
    real: Tensor  # [N, D] float32
    synthetic: Tensor  # [M, D]


@pytest.fixture(scope="session")
def sides() -> Sides:
    """Features as an encoder's: correlated, not negative, of unlike sizes; the synthetic ones shifted and narrower."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(24, 40, generator=generator) / 24**0.5
    real = (torch.randn(700, 24, generator=generator) @ mix + 0.5).relu()
    synthetic = (0.8 * torch.randn(450, 24, generator=generator) @ mix + 0.6).relu()
    return Sides(real, synthetic)


@dataclass(frozen=True)
class Folders:
    real: Path  # CLASS/NNN.png
    synthetic: Path  # a table of pictures with captions and labels
    copied: str  # a synthetic picture that is a training photo, byte for byte


CLASSES = (1, 7, 8)  # trouser, sneaker, bag
PER_CLASS = 30


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Photos with a split, and "synthetic" ones that are other photos, a little darker; four a prompt."""
    source, root = fashion_mnist("test"), tmp_path_factory.mktemp("sets")
    rows = []
    for label in CLASSES:
        found, name = np.flatnonzero(source.labels == label), source.class_names[label]
        for split, some in (("train", found[:PER_CLASS]), ("test", found[PER_CLASS : PER_CLASS + 8])):
            for row in some:
                _save(root / "real" / split / name / f"{row}.png", source.images[row])
        for number, row in enumerate(found[100:120]):
            path = root / "synthetic" / f"{row}.png"
            _save(path, (0.9 * source.images[row]).astype(np.uint8))
            caption = f"a photo of a {name}, number {number // 4}"
            rows.append({"path": path.name, "caption": caption, "label": name.title().replace("-", " ")})
    copied = root / "synthetic" / rows[0]["path"]
    original = sorted((root / "real" / "train" / "trouser").iterdir())[0]
    copied.write_bytes(original.read_bytes())
    (root / "synthetic" / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Folders(root / "real", root / "synthetic" / "table.jsonl", str(copied))


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
