"""Real photos of three classes and prompts of them, as small as they can be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stablerep.poc.config import PocConfig
from tests.data.pictures import encode, random_pixels

CLASSES = ("bag", "sneaker", "trouser")


def write_photos(folder: Path, counts: dict[str, int], first: int = 0) -> Path:
    """Photos of each class, no two alike: folder/CLASS/00.png."""
    number = first
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for each in range(count):
            (folder / name / f"{each:02}.png").write_bytes(encode(random_pixels(number)))
            number += 1
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four of each class, and three without one."""
    write_photos(tmp_path / "photos", dict.fromkeys(CLASSES, 4))
    return write_photos(tmp_path / "photos", {"unlabelled": 3}, first=100)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"a photo of a {tone} {name}\n" for name in CLASSES for tone in ("black", "white")))
    return path


@pytest.fixture
def tiny(photos: Path, prompts: Path, tmp_path: Path) -> Callable[..., PocConfig]:
    """A proof of concept of seconds; fields change it."""

    def config(**fields: Any) -> PocConfig:
        given = {
            "prompts": prompts, "real": str(photos), "out": tmp_path / "out", "budget_pictures": 24,
            "num_images_per_prompt": 4, "num_inference_steps": 1, "scheduler": "dpmsolver++", "arch": "resnet10t",
            "image_size": 32, "batch_size": 8, "steps": 2, "seeds": 1, "real_share": 0.5, "device": "cpu",
            "arms": ("pixels", "real", "synthetic", "hybrid"), "train": str(small_train(tmp_path)),
        }  # fmt: skip
        return PocConfig(**{**given, **fields})

    return config


def small_train(folder: Path) -> Path:
    path = folder / "train.yaml"
    path.write_text("views_per_prompt: 4\nhead_hidden: 16\nhead_out: 8\nlog_every: 1\nbase_lr: 0.001\n")
    return path
