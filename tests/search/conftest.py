"""A small set of real photos, and the flags of a search that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stablerep.data.labelled import draw, fashion_mnist

CLASSES = ("t-shirt", "trouser", "ankle boot")
TRAINING = {
    "arch": "resnet10t", "image_size": 32, "batch_size": 16, "steps": 3, "views_per_prompt": 2, "base_lr": 0.002,
    "head_hidden": 16, "head_out": 8,
}  # fmt: skip


@pytest.fixture(scope="session")
def all_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train/CLASS/ and test/CLASS/ with 12 and 4 photos each."""
    root = tmp_path_factory.mktemp("real")
    photos = draw(fashion_mnist("test"), 400, seed=0)  # its test photos load sooner
    for name in CLASSES:
        rows = [row for row, label in enumerate(photos.labels) if photos.class_names[label] == name]
        for split, chosen in (("train", rows[:12]), ("test", rows[12:16])):
            folder = root / split / name.replace(" ", "_")
            folder.mkdir(parents=True)
            for row in chosen:
                Image.fromarray(photos.images[row]).save(folder / f"{row}.png")
    return root


@pytest.fixture
def labelled_prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    rows = [f"a photo of a {tone} {name},{name}" for name in CLASSES for tone in ("dark", "light")]
    path.write_text("prompt,class\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def fields(tmp_path: Path, all_photos: Path, labelled_prompts: Path) -> dict[str, Any]:
    """A search of two trials."""
    train, generate = tmp_path / "train.yaml", tmp_path / "generate.yaml"
    train.write_text("\n".join(f"{name}: {value}" for name, value in TRAINING.items()))
    generate.write_text("engine: native\n")
    return {
        "prompts": labelled_prompts, "real": str(all_photos), "out": tmp_path / "out", "trials": 2,
        "num_inference_steps": (1, 2), "num_images_per_prompt": (2, 3), "scheduler": ("ddim", "euler"),
        "train": str(train), "generate": generate, "measure": "knn_top1", "device": "cpu",
    }  # fmt: skip
