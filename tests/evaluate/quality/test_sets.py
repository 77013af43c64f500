"""Which pictures are compared: shards with prompts, limits, and encoders that read texts."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from stablerep.evaluate.quality.agreement import has_text_tower
from stablerep.evaluate.quality.config import QualityConfig
from stablerep.evaluate.quality.run import quality
from stablerep.evaluate.quality.sets import images_of, open_real, open_synthetic
from stablerep.models import InputTransform, create_encoder, load_encoder, save_exported
from stablerep.models.text_tower import FOLDER, TextTower
from stablerep.models.tokenizer import open_tokenizer
from tests.data.pictures import random_pixels, write_folder, write_shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", prompts=5, per_prompt=4, rejected={(2, 1)})


def test_pictures_of_shards_are_named_by_tar_and_member(shards: Path) -> None:
    found = open_synthetic(str(shards), ())
    assert len(found) == 19 and found.prompt_texts == tuple(f"prompt {number}" for number in range(5))
    for row, picture in enumerate(images_of(found, range(19))):
        tar, _, member = found.where(row).rpartition("/")
        with tarfile.open(tar) as opened:
            names = opened.getnames()
        assert member in names and member.startswith(f"{100 + found.prompts[row]:09}.")  # type: ignore[index]
        number = int(member.split(".")[1])
        expected = random_pixels(1000 * int(found.prompts[row]) + number)  # type: ignore[index]
        assert (np.asarray(picture) == expected).all()


def test_limits_are_even_over_prompts_and_classes(shards: Path) -> None:
    pictures = open_synthetic(str(shards), ()).at_most(10, seed=1)
    assert pictures.prompts is not None and np.bincount(pictures.prompts).tolist() == [2] * 5
    photos = open_real("fashion-mnist", "test", 0).at_most(30, seed=1)
    assert np.bincount(photos.classes).tolist() == [3] * 10
    whole = open_real("fashion-mnist", "test", 0)
    row = int(photos.where(4).split("/")[-1])
    assert photos.where(4).startswith("fashion-mnist/test/")
    assert (np.asarray(images_of(photos, [4])[0]) == whole.photos.images[row]).all()  # type: ignore[union-attr]
    assert photos.at_most(31, seed=1) is photos


def test_class_names_are_matched_as_people_write_them(tmp_path: Path) -> None:
    for name in ("Ankle_Boot", "T Shirt", "hat"):
        write_folder(tmp_path / "set" / name, 2)
    found = open_synthetic(str(tmp_path / "set"), ("ankle boot", "t-shirt"))
    assert found.classes.tolist() == [0, 0, 1, 1, -1, -1]  # in the order of the folders


def test_agreement_by_the_text_tower_of_a_run(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    exported, encoder = tmp_path / "run" / "exported", create_encoder("resnet10t", 32)
    save_exported(encoder, "resnet10t", InputTransform(32), exported)
    tower = TextTower.create(open_tokenizer("default", 12), layers=1, width=16, heads=2, embed_dim=8).eval()
    projection = torch.nn.Linear(encoder.num_features, 8, bias=False)
    tower.save(exported / FOLDER, projection, torch.tensor(10.0))
    assert has_text_tower(str(tmp_path / "run")) == has_text_tower(str(exported)) == exported
    write_folder(tmp_path / "photos", 12)

    settings: dict[str, Any] = {"real": str(tmp_path / "photos"), "features": str(tmp_path / "run"), "neighbours": 3}
    found = quality(QualityConfig(synthetic=str(shards), out=tmp_path / "out", device="cpu", kid_subsets=2, **settings))
    assert found["prompt_agreement_kind"] == "text" and found["class_agreement_real"] is None
    pictures = open_synthetic(str(shards), ())
    network, transform = load_encoder(tmp_path / "run")
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([np.asarray(each) for each in images_of(pictures, range(19))]))
        images = functional.normalize(projection(network(transform(pixels))))
        texts = functional.normalize(tower(tower.tokenizer([pictures.prompt_texts[p] for p in pictures.prompts])))  # type: ignore[union-attr]
    expected = (images * texts).sum(1)
    assert found["prompt_agreement"] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert found["per_prompt"][2]["prompt_agreement"] == pytest.approx(
        expected[torch.from_numpy(pictures.prompts == 2)].mean().item(), abs=1e-5
    )
    assert [row["images"] for row in found["per_prompt"]] == [4, 4, 3, 4, 4]
