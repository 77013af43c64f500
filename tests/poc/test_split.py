"""Which photo comes to which side."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerep.config import UserError
from stablerep.data.labelled import open_labelled
from stablerep.poc.config import PocConfig
from stablerep.poc.photos import TEST, TRAIN, VALIDATION, Photo, RealPhotos, read_real
from stablerep.poc.split import Split, draw_split, keep_split, spread, write_table
from tests.poc.conftest import CLASSES, write_photos

Tiny = Callable[..., PocConfig]


def split_of(config: PocConfig, tmp_path: Path) -> Split:
    return draw_split(read_real(config.real, tmp_path / "work"), config)


def sides(split: Split) -> dict[str, Counter[str]]:
    return {side: Counter(photo.label for photo in split.of(side)) for side in (TRAIN, VALIDATION, TEST)}


def test_four_photos_a_class_are_enough_and_unlabelled_ones_train(tiny: Tiny, tmp_path: Path) -> None:
    found = sides(split_of(tiny(), tmp_path))
    assert found[TRAIN] == dict.fromkeys(CLASSES, 2) | {"": 3}
    assert found[VALIDATION] == found[TEST] == dict.fromkeys(CLASSES, 1)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(4, 60), min_size=2, max_size=5),
    copies=st.lists(st.integers(0, 3), min_size=1, max_size=7),
    seed=st.integers(0, 2**31),
    test_share=st.floats(0.05, 0.5),
)
def test_every_class_on_every_side_and_photos_of_the_same_bytes_on_one(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], copies: list[int], seed: int, test_share: float
) -> None:
    """A photo's file is its number as text, so that the copies of one have its bytes."""
    folder = tmp_path_factory.mktemp("bytes")
    photos = []
    for label, size in enumerate(sizes):
        for number in range(size):
            for copy in range(1 + copies[number % len(copies)]):
                path = folder / f"{label}-{number}-{copy}.png"
                path.write_text(f"{label} {number:03}")
                photos.append(Photo(str(path), f"class {label}"))
    config = PocConfig(
        prompts=Path("p.txt"), real="r", out=Path("o"), budget_pictures=1, seed=seed, test_share=test_share
    )
    split = draw_split(RealPhotos(tuple(photos)), config)
    assert sorted(photo.path for photo in split.photos) == sorted(photo.path for photo in photos)
    assert split.duplicates == len(photos) - sum(sizes) and not split.left_out
    side_of: dict[str, set[str]] = {}
    for photo in split.photos:
        side_of.setdefault(Path(photo.path).read_text(), set()).add(photo.split)
    assert all(len(each) == 1 for each in side_of.values())
    for label, size in enumerate(sizes):
        of_class = Counter(next(iter(each)) for text, each in side_of.items() if text.startswith(f"{label} "))
        assert of_class[TRAIN] >= 2 and of_class[VALIDATION] >= 1 and of_class[TEST] >= 1
        if size >= 10:
            assert abs(of_class[TEST] - test_share * size) <= 1


def test_the_seed_draws(tiny: Tiny, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", dict.fromkeys(CLASSES, 20), first=200)
    assert split_of(tiny(), tmp_path) == split_of(tiny(), tmp_path) != split_of(tiny(seed=1), tmp_path)


def test_a_given_split_is_respected_and_gives_validation_photos_of_its_training_ones(
    tiny: Tiny, tmp_path: Path
) -> None:
    write_photos(tmp_path / "given/train", dict.fromkeys(CLASSES, 10))
    write_photos(tmp_path / "given/test", dict.fromkeys(CLASSES, 5), first=300)
    write_photos(tmp_path / "given/unlabelled", {"any": 2}, first=400)
    split = split_of(tiny(real=str(tmp_path / "given")), tmp_path)
    assert sides(split)[TEST] == dict.fromkeys(CLASSES, 5)
    assert sides(split)[VALIDATION] == dict.fromkeys(CLASSES, 1)
    assert sides(split)[TRAIN] == dict.fromkeys(CLASSES, 9) | {"": 2}
    assert all("/test/" in photo.path for photo in split.of(TEST))
    (tmp_path / "given/test").rename(tmp_path / "given/val")  # the first of their names that is there
    assert sides(split_of(tiny(real=str(tmp_path / "given")), tmp_path))[TEST] == dict.fromkeys(CLASSES, 5)
    write_photos(tmp_path / "given/test", dict.fromkeys(CLASSES, 4), first=500)
    found = sides(split_of(tiny(real=str(tmp_path / "given")), tmp_path))
    assert (found[TEST]["bag"], found[VALIDATION]["bag"], found[TRAIN]["bag"]) == (4, 5, 10)


def test_good_parts_alone_in_training_are_an_inspection(tiny: Tiny, tmp_path: Path) -> None:
    write_photos(tmp_path / "parts/train", {"good": 12})
    write_photos(tmp_path / "parts/test", {"good": 6, "dent": 8, "hole": 8}, first=50)
    found = sides(split_of(tiny(real=str(tmp_path / "parts")), tmp_path))
    assert found[TEST] == {"good": 3, "dent": 4, "hole": 4}  # half, as open_labelled has it
    assert found[VALIDATION] == {"good": 1, "dent": 1, "hole": 1}
    assert found[TRAIN] == {"good": 14, "dent": 3, "hole": 3}


def test_training_copies_of_test_photos_are_left_out(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = write_photos(tmp_path / "given/train", dict.fromkeys(CLASSES, 6)).parent
    write_photos(given / "test", dict.fromkeys(CLASSES, 3), first=300)
    shutil.copy(given / "test/bag/00.png", given / "train/bag/copy.png")
    split = split_of(tiny(real=str(given)), tmp_path)
    assert (split.duplicates, split.left_out) == (1, 1)
    assert "1 photos have the bytes of a photo kept aside" in caplog.text
    assert not any(photo.path.endswith("copy.png") for photo in split.photos)


def test_a_table_with_and_without_a_split(tiny: Tiny, tmp_path: Path) -> None:
    photos = sorted((tmp_path / "photos").rglob("*.png"))
    rows = [f"{path},{path.parent.name if path.parent.name != 'unlabelled' else ''}" for path in photos]
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "\n".join(rows))
    by_folder, by_table = (split_of(tiny(real=str(each)), tmp_path) for each in (tmp_path / "photos", table))
    assert sides(by_table) == sides(by_folder)
    table.write_text(
        "path,label,split\n" + "\n".join(f"{row},{'test' if n % 4 == 3 else ''}" for n, row in enumerate(rows))
    )
    assert sides(split_of(tiny(real=str(table)), tmp_path))[TEST].total() == len(rows) // 4
    table.write_text(f"path,label,split\n{photos[0]},bag,holdout\n")
    with pytest.raises(UserError, match="its split 'holdout' is unknown; use train, validation and test"):
        split_of(tiny(real=str(table)), tmp_path)


def test_measured_elsewhere_all_photos_train(tiny: Tiny, tmp_path: Path) -> None:
    found = sides(split_of(tiny(measure_on="fashion-mnist"), tmp_path))
    assert found[TRAIN].total() == 15 and not found[TEST] and not found[VALIDATION]


def test_an_evaluation_reads_the_split(tiny: Tiny, tmp_path: Path) -> None:
    split = split_of(tiny(), tmp_path)
    write_table(tmp_path / "split.csv", split.photos)
    data = open_labelled(str(tmp_path / "split.csv"))
    assert data.train.class_names == CLASSES and not data.was_drawn
    for side, photos in ((TRAIN, data.train), (TEST, data.test)):
        assert [photos.where(row) for row in range(len(photos))] == [p.path for p in split.of(side, labelled=True)]


def test_other_photos_in_the_same_folder_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    keep_split(tmp_path / "split.csv", split_of(tiny(), tmp_path))
    keep_split(tmp_path / "split.csv", split_of(tiny(), tmp_path))
    (tmp_path / "photos/bag/00.png").unlink()
    write_photos(tmp_path / "photos", {"bag": 6}, first=700)
    with pytest.raises(UserError, match=r"--real holds other photos than when .* was begun \(first: .*bag"):
        keep_split(tmp_path / "split.csv", split_of(tiny(), tmp_path))


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"bag": 4}, "has the one class bag; a measurement needs 2 or more"),
        ({"unlabelled": 4}, "has no photo with a class"),
        ({"bag": 4, "shoe": 3}, "class 'shoe' has 3 different photos and the split needs 4: 2 to train on"),
        ({}, "has no photos"),
    ],
)
def test_too_few_photos_are_one_line(tiny: Tiny, tmp_path: Path, counts: dict[str, int], said: str) -> None:
    (tmp_path / "few").mkdir()
    write_photos(tmp_path / "few", counts)
    with pytest.raises(UserError, match=said):
        split_of(tiny(real=str(tmp_path / "few")), tmp_path)


def test_an_empty_class_is_named(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "photos/dress").mkdir()
    with pytest.raises(UserError, match="photos/dress has no photos"):
        split_of(tiny(), tmp_path)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6), seed=st.integers(0, 1000), cut=st.floats(0, 1))
def test_every_beginning_of_a_spread_order_has_the_classes_in_proportion(
    sizes: list[int], seed: int, cut: float
) -> None:
    labels = [str(label) for label, size in enumerate(sizes) for _ in range(size)]
    order = spread(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    count = round(cut * len(labels))
    seen = Counter(np.array(labels)[order[:count]].tolist())
    for label, size in enumerate(sizes):
        assert abs(seen[str(label)] - size * count / len(labels)) <= 1 + len(sizes) / 2
