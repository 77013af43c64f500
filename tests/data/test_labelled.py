"""Labelled sets: folders of photos, sets by name, and what is wrong with them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stablerep.config import UserError
from stablerep.data import labelled
from stablerep.data.labelled import fashion_mnist, labelled_folder, load_labelled, rank_in_class


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, sizes and formats mixed; `cat` is brighter than `dog`."""
    for split, count in (("train", 6), ("test", 2)):
        for name, tone in (("cat", 200), ("dog", 50)):
            for i in range(count):
                path = tmp_path / split / name / f"deep{i % 2}" / f"{i}.{('jpg', 'PNG', 'webp')[i % 3]}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40 + 20 * i, 90 - 10 * i), (tone, tone, tone)).save(path)
    return tmp_path


def test_folder(photos: Path) -> None:
    (photos / "train" / "cat" / "._0.jpg").write_bytes(b"what macOS leaves")
    (photos / "train" / "cat" / "notes.txt").write_text("no photo")
    (photos / "train" / ".cache").mkdir()
    train = labelled_folder(photos, "train", 32)
    assert train.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0] * 6 + [1] * 6 and train.labels.dtype == np.int64
    assert train.images.shape == (12, 32, 32, 3) and train.images.dtype == np.uint8
    assert np.abs(train.images[:6].astype(int) - 200).max() <= 3  # JPEG and WebP lose a little
    assert np.abs(train.images[6:].astype(int) - 50).max() <= 3
    assert len(load_labelled(str(photos), "test", 16)) == 4


def test_photo_keeps_its_shape_and_loses_fine_stripes_evenly(photos: Path) -> None:
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, 1::2] = 255  # finer than 16 pixels can show: antialiased they are grey
    stripes[:, :32], stripes[:, 96:] = (255, 0, 0), (255, 0, 0)  # outside the middle square
    (photos / "train" / "cat" / "deep0").rename(photos / "elsewhere")
    Image.fromarray(stripes).save(photos / "train" / "cat" / "0.png")
    picture = labelled_folder(photos, "train", 16).images[0].astype(int)
    assert np.abs(picture[:, 1:-1] - 127).max() <= 8  # the outermost columns take a little from beyond the cut


def test_camera_that_was_held_upright(photos: Path) -> None:
    left_dark = np.full((32, 32, 3), 255, np.uint8)
    left_dark[:, :16] = 0
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by 90 degrees clockwise: the left becomes the top
    Image.fromarray(left_dark).save(photos / "train" / "cat" / "0.jpg", exif=turned)
    picture = labelled_folder(photos, "train", 32).images[0]
    assert picture[:12].max() < 40 and picture[20:].min() > 215


def test_drawn_photos_are_even_over_the_classes(photos: Path) -> None:
    for count, expected in ((2, [1, 1]), (7, [4, 3]), (12, [6, 6]), (99, [6, 6])):
        drawn = labelled_folder(photos, "train", 8, max_images=count)
        assert np.bincount(drawn.labels).tolist() == expected
    for extra in range(6, 40):
        Image.new("L", (8, 8)).save(photos / "train" / "dog" / f"{extra}.png")
    drawn = labelled_folder(photos, "train", 8, max_images=20)
    assert np.bincount(drawn.labels).tolist() == [6, 14]
    with pytest.raises(UserError, match="1 photos cannot show all 2 classes"):
        labelled_folder(photos, "train", 8, max_images=1)


def test_fashion_mnist_by_name() -> None:
    drawn = load_labelled("fashion-mnist", "test", 224, max_images=55, seed=1)
    assert drawn.images.shape == (55, 32, 32, 3)
    assert sorted(np.bincount(drawn.labels).tolist()) == [5] * 5 + [6] * 5
    again = load_labelled("fashion-mnist", "test", 224, max_images=55, seed=1)
    other = load_labelled("fashion-mnist", "test", 224, max_images=55, seed=2)
    assert np.array_equal(drawn.images, again.images) and not np.array_equal(drawn.images, other.images)


def test_fashion_mnist_is_padded_with_the_black_it_stands_on() -> None:
    whole = fashion_mnist("train")
    assert whole.images.shape == (60_000, 32, 32, 3) and len(fashion_mnist("test")) == 10_000
    assert whole.class_names[whole.labels[0]] == "ankle boot"
    assert not whole.images[:, :2].any() and whole.images[:, 2:30].any()


def test_rank_in_class_counts_each_class_from_zero() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 500)
    labels[labels == 2] = 3  # a number that no row has
    rank = rank_in_class(labels, 1, 2)
    for label in np.unique(labels):
        assert sorted(rank[labels == label]) == list(range((labels == label).sum()))
    assert not np.array_equal(rank, rank_in_class(labels, 1, 3))


def cut_short(folder: Path) -> None:
    path = folder / "train" / "dog" / "deep0" / "0.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def sixteen_bits(folder: Path) -> None:
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(folder / "train" / "dog" / "deep0" / "0.png")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "test").rename(f / "val"), "no train and test folders"),
        (lambda f: (f / "train" / "dog").rename(f / "dog"), "1 class folder"),
        (lambda f: (f / "test" / "dog").rename(f / "test" / "wolf"), "different classes.*'dog'"),
        (lambda f: (f / "test" / "wolf").mkdir(), "different classes.*'wolf'"),
        (lambda f: [path.unlink() for path in (f / "train" / "dog").rglob("*.*")], "dog has no photos"),
        (lambda f: (f / "train" / "dog" / "deep0" / "0.jpg").write_bytes(b"hello"), "0.jpg cannot be read"),
        (lambda f: (f / "train" / "dog" / "deep0" / "0.jpg").write_bytes(b""), "0.jpg cannot be read"),
        (cut_short, "0.jpg cannot be read"),
        (sixteen_bits, "0.png has more than 8 bits"),
    ],
)
def test_what_is_wrong_with_a_folder(photos: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(photos)
    with pytest.raises(UserError, match=says) as caught:
        load_labelled(str(photos), "train", 32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"), [("fashon-mnist", "did you mean fashion-mnist"), ("no/such", "no such folder.*train/CLASS")]
)
def test_neither_folder_nor_set(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_labelled(name, "train", 32)


def test_fashion_mnist_missing_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "FASHION_MNIST_FOLDERS", (tmp_path,))
    with pytest.raises(UserError, match="make photos"):
        fashion_mnist("train")
    for damaged in (b"", b"no gzip", gzip.compress(b"\0\0\x08\x03"), gzip.compress(b"\0\0\x08\x01\0\0\0\x09abc")):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is not a gzipped IDX file"):
            fashion_mnist("train")
