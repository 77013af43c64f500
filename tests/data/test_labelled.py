"""Labelled sets: folders of photos, sets by name, and what is wrong with them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stablerep.config import UserError
from stablerep.data import labelled
from stablerep.data.labelled import (
    LabelledFiles,
    LabelledSet,
    Photos,
    draw,
    fashion_mnist,
    open_labelled,
    rank_in_class,
)
from tests.data.pictures import encode, random_pixels

CPU = torch.device("cpu")


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


def files_of(photos: Photos) -> list[tuple[str, str]]:
    """Class and file of each photo."""
    assert isinstance(photos, LabelledFiles)
    return [(photos.class_names[label], photos.where(row)) for row, label in enumerate(photos.labels.tolist())]


def test_folder(photos: Path) -> None:
    (photos / "train" / "cat" / "._0.jpg").write_bytes(b"what macOS leaves")
    (photos / "train" / "__MACOSX").mkdir()
    (photos / "train" / ".cache").mkdir()
    (photos / "train" / "cat" / "notes.txt").write_text("no photo")
    (photos / "test" / "dog" / "clip.MOV").write_text("no photo")
    data = open_labelled(str(photos))
    assert data.train.class_names == ("cat", "dog") and not data.was_drawn
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6 and data.train.labels.dtype == np.int64
    assert len(data.test) == 4 and data.not_read == {".txt": 1, ".mov": 1}
    (batch,) = data.train.pictures(99, CPU)
    assert [tuple(picture.shape[:2]) for picture in batch[:3]] == [(90, 40), (70, 80), (50, 120)]  # type: ignore[union-attr]
    for picture, label in zip(batch, data.train.labels, strict=True):
        assert (picture.int() - (50 if label else 200)).abs().max() <= 3  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["val", "validation"])
def test_val_is_what_is_measured_on_where_there_is_no_test(photos: Path, name: str) -> None:
    expected = [
        (label, file.replace("/test/", f"/{name}/")) for label, file in files_of(open_labelled(str(photos)).test)
    ]
    (photos / "test").rename(photos / name)
    assert files_of(open_labelled(str(photos)).test) == expected


def test_links_to_folders_are_followed_and_circles_found(photos: Path) -> None:
    elsewhere = photos / "elsewhere"
    (photos / "train" / "cat" / "deep0").rename(elsewhere)
    (photos / "train" / "cat" / "deep0").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(photos / "train" / "cat")
    assert len(open_labelled(str(photos)).train) == 12


def write_classes(folder: Path, count: int = 10) -> Path:
    for number, name in enumerate(("cat", "dog", "eel")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(random_pixels(100 * number + i)).save(folder / name / f"{i}.png")
    return folder


def test_class_folders_are_split_by_the_seed_and_copies_stay_together(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "photos")
    for i in range(10):  # a copy of each cat under another name, one of them in another class
        (folder / "cat" / f"copy{i}.png").write_bytes((folder / "cat" / f"{i}.png").read_bytes())
    (folder / "eel" / "cat3.png").write_bytes((folder / "cat" / "3.png").read_bytes())
    splits = []
    for seed in (0, 0, 1):
        data = open_labelled(str(folder), seed)
        assert data.was_drawn
        train, test = files_of(data.train), files_of(data.test)
        assert len({*train, *test}) == len(train) + len(test) == 41
        assert [sum(label == name for label, _ in test) for name in ("cat", "dog")] == [4, 2]
        sides = {Path(file).read_bytes(): side for side, files in enumerate((train, test)) for _, file in files}
        for side, files in enumerate((train, test)):
            assert all(sides[Path(file).read_bytes()] == side for _, file in files)
        splits.append(test)
    assert splits[0] == splits[1] != splits[2]

    data.save_split(tmp_path / "split.csv")
    again = open_labelled(str(tmp_path / "split.csv"))
    assert not again.was_drawn
    assert sorted(files_of(again.train)) == sorted(files_of(data.train))
    assert sorted(files_of(again.test)) == sorted(files_of(data.test))


def test_inspection_layout(tmp_path: Path) -> None:
    """MVTec AD: good parts to train on, good and bad ones to test, masks that are no photos of parts."""
    for side, kind, count in (
        ("train", "good", 8),
        ("test", "good", 4),
        ("test", "scratch", 6),
        ("ground_truth", "scratch", 6),
    ):
        (tmp_path / side / kind).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(random_pixels(hash_of(side, kind, i))).save(tmp_path / side / kind / f"{i:03}.png")
    data = open_labelled(str(tmp_path))
    assert data.was_drawn and data.train.class_names == ("good", "scratch")
    assert np.bincount(data.train.labels).tolist() == [8 + 2, 3] and np.bincount(data.test.labels).tolist() == [2, 3]
    assert all("/test/" in file for _, file in files_of(data.test))


def hash_of(*values: object) -> int:
    return zlib.crc32(repr(values).encode())


def expected_rows(folder: Path) -> list[tuple[str, str]]:
    return sorted((path.parent.name, str(path)) for path in folder.rglob("*.png"))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_tables_of_paths(tmp_path: Path, kind: str) -> None:
    folder = write_classes(tmp_path / "photos", 4)
    rows = [
        {
            "Image_Path": f"photos/{path.parent.name}/{path.name}",
            " Label ": path.parent.name,
            "split": "val" if path.stem == "3" else "TRAIN",
        }
        for path in sorted(folder.rglob("*.png"))
    ]
    table = tmp_path / f"table.{kind}"
    if kind in ("csv", "tsv"):
        with table.open("w") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), table)
    else:
        table.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    data = open_labelled(str(table))
    assert sorted(files_of(data.train) + files_of(data.test)) == expected_rows(folder)
    assert all(Path(file).stem == "3" for _, file in files_of(data.test)) and len(data.test) == 3
    (batch,) = data.test.pictures(8, CPU)
    assert (batch[0].numpy() == random_pixels(3)).all()  # type: ignore[union-attr]


def test_parquet_that_holds_the_pictures(tmp_path: Path) -> None:
    """As Hugging Face's datasets write it: a struct of bytes and path, class numbers with their names beside."""
    rows = [{"image": {"bytes": encode(random_pixels(n)), "path": f"{n}.png"}, "label": n % 2} for n in range(11)]
    features = {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps({"info": features})})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    data = open_labelled(str(tmp_path / "a.parquet"))
    assert data.train.class_names == ("cat", "dog") and len(data.train) + len(data.test) == 11
    for photos in (data.train, data.test):
        assert isinstance(photos, LabelledFiles)
        (batch,) = photos.pictures(16, CPU)
        for row, picture in zip(photos.rows.tolist(), batch, strict=True):
            assert (picture.numpy() == random_pixels(row)).all()  # type: ignore[union-attr]
        assert photos.labels.tolist() == [row % 2 for row in photos.rows.tolist()]


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))


def test_tars_of_webdataset(tmp_path: Path) -> None:
    for split, numbers in (("train", range(8)), ("val", range(8, 12))):
        for n in numbers:
            label = (
                {f"{n:04}.cls": str(n % 3).encode()}
                if n % 2
                else {f"{n:04}.json": json.dumps({"label": n % 3}).encode()}
            )
            write_tar(tmp_path / split / f"{n:02}.tar", {f"{n:04}.png": encode(random_pixels(n)), **label})
    data = open_labelled(str(tmp_path))
    assert data.train.class_names == ("0", "1", "2") and not data.was_drawn
    assert data.train.labels.tolist() == [n % 3 for n in range(8)] and data.test.labels.tolist() == [2, 0, 1, 2]
    (batch,) = data.test.pictures(8, CPU)
    assert [(picture.numpy() == random_pixels(8 + n)).all() for n, picture in enumerate(batch)] == [True] * 4  # type: ignore[union-attr]
    assert open_labelled(str(tmp_path / "train")).was_drawn  # the tars alone
    (tmp_path / "train" / "00.tar").write_bytes((tmp_path / "train" / "00.tar").read_bytes()[:700])
    with pytest.raises(UserError, match=r"00\.tar cannot be read as a tar"):
        open_labelled(str(tmp_path))


def test_drawn_photos_are_even_over_the_classes(photos: Path) -> None:
    for count, expected in ((2, [1, 1]), (7, [4, 3]), (12, [6, 6]), (99, [6, 6])):
        drawn = draw(open_labelled(str(photos)).train, count, seed=0)
        assert np.bincount(drawn.labels).tolist() == expected
    for extra in range(6, 40):
        Image.new("L", (8, 8)).save(photos / "train" / "dog" / f"{extra}.png")
    assert np.bincount(draw(open_labelled(str(photos)).train, 20, seed=0).labels).tolist() == [6, 14]
    with pytest.raises(UserError, match="1 photos cannot show all 2 classes"):
        draw(open_labelled(str(photos)).train, 1, seed=0)


def test_fashion_mnist_by_name() -> None:
    test = open_labelled("fashion-mnist").test
    drawn, again, other = (draw(test, 55, seed) for seed in (1, 1, 2))
    assert isinstance(drawn, LabelledSet) and isinstance(again, LabelledSet) and isinstance(other, LabelledSet)
    assert drawn.images.shape == (55, 32, 32, 3)
    assert sorted(np.bincount(drawn.labels).tolist()) == [5] * 5 + [6] * 5
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


def one_class(folder: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(folder / split)
    (folder / "cat").mkdir()


def unlabelled(folder: Path) -> None:
    (folder / "table.csv").write_text("path\ntrain/cat/deep0/0.jpg\n")


def no_test(folder: Path) -> None:
    (folder / "table.csv").write_text("path,label,split\na.jpg,1,train\ntrain/cat/deep0/0.jpg,2,train\n")


def nothing_there(folder: Path) -> None:
    (folder / "table.csv").write_text("path,label\na.jpg,1\nb.jpg,2\n")


def no_path(folder: Path) -> None:
    (folder / "table.csv").write_text("name,label\na.jpg,1\n")


@pytest.mark.parametrize(
    ("spoil", "data", "says"),
    [
        (one_class, ".", "no train and test folders, nor two or more of classes"),
        (lambda f: (f / "test").rename(f / "other"), ".", "no train and test folders"),
        (lambda f: (f / "train" / "dog").rename(f / "dog"), ".", "1 class folder"),
        (lambda f: (f / "test" / "dog").rename(f / "test" / "wolf"), ".", "different classes.*'dog'"),
        (lambda f: (f / "test" / "wolf").mkdir(), ".", "different classes.*'wolf'"),
        (lambda f: [path.unlink() for path in (f / "train" / "dog").rglob("*.*")], ".", "dog has no photos"),
        (unlabelled, "table.csv", "has no labels"),
        (no_test, "table.csv", "its splits are train; train and test"),
        (nothing_there, "table.csv", "none of its 2 pictures exists, first .*a.jpg"),
        (no_path, "table.csv", "no column of paths .*its columns are name, label"),
    ],
)
def test_what_is_wrong_with_a_set(photos: Path, spoil: Callable[[Path], object], data: str, says: str) -> None:
    spoil(photos)
    with pytest.raises(UserError, match=says) as caught:
        open_labelled(str(photos / data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"), [("fashon-mnist", "did you mean fashion-mnist"), ("no/such", "no such folder.*train/CLASS")]
)
def test_neither_folder_nor_set(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        open_labelled(name)


def test_fashion_mnist_missing_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "FASHION_MNIST_FOLDERS", (tmp_path,))
    with pytest.raises(UserError, match="make photos"):
        fashion_mnist("train")
    for damaged in (b"", b"no gzip", gzip.compress(b"\0\0\x08\x03"), gzip.compress(b"\0\0\x08\x01\0\0\0\x09abc")):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is not a gzipped IDX file"):
            fashion_mnist("train")
