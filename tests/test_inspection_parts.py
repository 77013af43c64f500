"""The drawn parts of examples/inspection: the same again, what they claim to show, test photos of other conditions."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.inspection import parts
from examples.inspection.camera import TEST, TRAIN, Conditions, take_photo
from examples.inspection.surface import DEFECTS, MATERIALS, SHAPES, draw_part
from stablerep.prompts import read_prompts

PLAIN = Conditions((240, 240), (50, 50), (0, 0), (1, 1), (0.5, 0.5), (0, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parts")
    parts.write(out, train=40, test=20, size=32, seed=3)
    return out


def test_the_table_says_what_lies_where(folder: Path) -> None:
    with (folder / "photos.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["split"] for row in rows) == {"train": 40, "test": 20}
    of_training = [row for row in rows if row["split"] == "train"]
    assert set(Counter(row["label"] for row in of_training).values()) == {8}
    for row in rows:
        assert Path(row["path"]).parts[:2] == (row["split"], row["label"])
        with Image.open(folder / row["path"]) as photo:
            assert photo.size == (32, 32) and photo.mode == "RGB"


def test_every_caption_is_a_prompt_with_its_label(folder: Path) -> None:
    prompts = {prompt.text: prompt.label for prompt in read_prompts(folder / "prompts.csv")}
    assert len(prompts) == len(parts.all_parts()) == 40
    with (folder / "photos.csv").open() as file:
        for row in csv.DictReader(file):
            assert prompts[row["caption"]] == row["label"]


def test_labels_may_be_the_kinds_of_part(tmp_path: Path) -> None:
    parts.write(tmp_path, train=16, test=8, size=32, seed=3, label="kind")
    prompts = read_prompts(tmp_path / "prompts.csv")
    assert len({prompt.label for prompt in prompts}) == 8
    with (tmp_path / "photos.csv").open() as file:
        for row in csv.DictReader(file):
            assert Path(row["path"]).name.startswith(row["label"])


def test_the_same_seed_draws_the_same_and_another_one_others(folder: Path) -> None:
    part, pixels = parts.photos("train", 3, 32, 3)[2]
    again = parts.photos("train", 3, 32, 3)[2]
    assert again[0] == part and np.array_equal(again[1], pixels)
    assert not np.array_equal(parts.draw(part, TRAIN, 32, 3, 0, 2), parts.draw(part, TRAIN, 32, 4, 0, 2))


@pytest.mark.parametrize("label", DEFECTS)
@pytest.mark.parametrize("material", MATERIALS)
def test_a_defect_changes_a_patch_and_no_more(material: str, label: str) -> None:
    """The same draw without it: what precedes the defect takes the same random numbers."""
    for shape in SHAPES[material]:
        good, bad = (
            take_photo(
                draw_part(material, shape, each, np.random.default_rng(5)), PLAIN, 64, np.random.default_rng(6)
            ).astype(int)
            for each in ("good", label)
        )
        changed = np.abs(good - bad).max(-1)
        assert changed.max() > 35, f"{label} of {shape} cannot be seen"
        assert 0.002 < (changed > 15).mean() < 0.12, shape
        if label == "hole":
            where = changed > 35
            assert bad[where].mean() < 0.6 * good[where].mean()


def test_test_photos_have_light_from_elsewhere_and_more_noise() -> None:
    left, right = [], []
    for number in range(12):
        part = parts.Part("metal", "ring", "good")
        for conditions, sides in ((TRAIN, left), (TEST, right)):
            photo = parts.draw(part, conditions, 64, 1, number).astype(float).mean(-1)
            sides.append(photo[40:].mean() - photo[:24].mean())  # below against above
    assert np.mean(left) < -1 and np.mean(right) > 1
    assert TRAIN.noise[1] < TEST.noise[0]
