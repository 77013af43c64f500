"""Which photos an adaptation reads, what they are said to show, and what is cut out of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stablerep.adapt.photos import open_photos, squares, views
from stablerep.config import UserError
from tests.adapt.runs import config_for, write_photos
from tests.data.pictures import encode, random_pixels


def config(photos: Path, **changes: Any) -> Any:
    return config_for(photos, Path("out"), **changes)


def table(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_captions_of_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    (photos / "bag/0.txt").write_text("a torn bag\n")
    found = open_photos(config(photos))
    assert found.captions == ("a photo of a ankle boot",) * 2 + ("a torn bag", "a photo of a bag")
    assert open_photos(config(photos, template="one {label}, worn")).captions[0] == "one ankle boot, worn"
    assert set(open_photos(config(photos, template="a shoe")).captions) == {"a shoe"}
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/a.png").write_bytes(encode(random_pixels(0)))
    assert open_photos(config(tmp_path / "bare")).captions == ("a photo",)


def test_tables_and_their_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    files = sorted(photos.rglob("*.png"))
    splits = ("train", "test", "train", "")
    rows = [
        {"path": str(file), "caption": f"number {number}" if number else "", "label": "part", "split": splits[number]}
        for number, file in enumerate(files)
    ]
    found = open_photos(config(table(tmp_path / "a.csv", *rows)))
    assert found.captions == ("a photo of a part", "number 2", "number 3")
    only_test = [row | {"split": "test"} for row in rows]
    with pytest.raises(UserError, match="no row of its split is train; test is"):
        open_photos(config(table(tmp_path / "b.csv", *only_test)))


def test_test_photos_of_a_split_folder_are_not_read(tmp_path: Path) -> None:
    for side in ("train", "test"):
        write_photos(tmp_path / "set" / side, 4)
    found = open_photos(config(tmp_path / "set"))
    assert len(found) == 4 and all("/train/" in found.index.where(int(row)) for row in found.rows)
    assert found.captions[0] == "a photo of a ankle boot"


def test_copies_are_on_one_side(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 10)
    for file in list(photos.rglob("*.png")):
        file.with_name("copy_" + file.name).write_bytes(file.read_bytes())
    found = open_photos(config(photos))
    for seed in range(20):
        training, held_out = found.split(0.3, seed)
        assert not set(training.digests) & set(held_out.digests)
        assert (len(training), len(held_out)) == (14, 6)


def test_squares_are_the_middle_of_the_photo(tmp_path: Path) -> None:
    """Against Pillow's own crop and antialiased bicubic resize."""
    pixels = np.asarray(Image.fromarray(random_pixels(3, 90, 140)))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(encode(pixels))
    asked = config(tmp_path / "photos")
    ((number, found),) = squares(open_photos(asked), (32, 32), asked)
    wanted = Image.fromarray(pixels[:, 25:115]).resize((32, 32), Image.Resampling.BICUBIC)
    assert number == 0 and found.shape == (1, 3, 32, 32)
    assert np.abs(found[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(wanted).astype(int)).max() <= 2


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(8, 80), width=st.integers(8, 80), crops=st.integers(1, 4), flip=st.booleans(),
    size=st.sampled_from([(8, 8), (16, 8), (8, 24)]),
)  # fmt: skip
def test_views_of_any_size(height: int, width: int, crops: int, flip: bool, size: tuple[int, int]) -> None:
    picture = torch.full((3, height, width), 7, dtype=torch.uint8)
    asked = config(Path("photos"), crops=crops, flip=flip)
    found = views(picture, size, asked, b"12345678")
    assert found.shape == (crops * (1 + flip), 3, *size) and found.unique().tolist() == [7]


def test_views_are_mirrored_and_drawn_by_the_photo() -> None:
    picture = torch.from_numpy(random_pixels(1, 20, 60).copy()).permute(2, 0, 1)
    asked = config(Path("photos"), crops=3, flip=True)
    found = views(picture, (20, 20), asked, b"12345678")
    assert torch.equal(found[3:], found[:3].flip(-1))
    assert torch.equal(found[0], picture[:, :, 20:40])
    assert torch.equal(found, views(picture, (20, 20), asked, b"12345678"))
    assert not torch.equal(found[1], views(picture, (20, 20), asked, b"abcdefgh")[1])
