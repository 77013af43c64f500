"""What a search may see: its validation photos come from the training photos, and no test photo is among them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest

from stablerep.config import UserError, from_fields
from stablerep.data.labelled import open_labelled
from stablerep.search.config import SearchConfig
from stablerep.search.plan import begin, plan_of
from stablerep.search.split import check_photos, read_photos, write_photos


@pytest.fixture
def photos(all_photos: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(all_photos, tmp_path / "photos"))


def config_of(fields: dict[str, Any], **changes: Any) -> SearchConfig:
    return from_fields(SearchConfig, fields | changes)


def test_the_split_is_of_training_photos_in_equal_parts(fields: dict[str, Any], photos: Path) -> None:
    real = read_photos(config_of(fields, real=str(photos)))
    for part in (real.train, real.validation):
        assert sorted(photo.label for photo in part) == [
            c for c in ("ankle_boot", "t-shirt", "trouser") for _ in "123456"
        ]
        assert all("/train/" in photo.path for photo in part)
    assert not {photo.path for photo in real.train} & {photo.path for photo in real.validation}
    assert len(real.aside) == 12 and all("/test/" in photo.path for photo in real.aside)
    assert real == read_photos(config_of(fields, real=str(photos)))
    assert real != read_photos(config_of(fields, real=str(photos), seed=1))
    quarter = read_photos(config_of(fields, real=str(photos), validation_share=0.25))
    assert len(quarter.validation) == 9 and len(quarter.train) == 27


def test_a_test_photo_among_the_training_photos_is_named(fields: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    twin = next((photos / "test" / "trouser").iterdir())
    copied = shutil.copy(twin, photos / "train" / "trouser" / "copied.png")
    with pytest.raises(UserError) as refusal:
        plan_of(config_of(fields, real=str(photos)))
    assert f"{copied} is the test photo {twin}, byte for byte" in str(refusal.value)
    assert not fields["out"].exists()


def test_a_test_photo_that_comes_later_is_named_too(fields: dict[str, Any], photos: Path) -> None:
    config = config_of(fields, real=str(photos))
    begin(plan_of(config), fields["out"])
    check_photos(fields["out"])
    seen = next((photos / "train" / "trouser").iterdir())
    original = seen.read_bytes()
    twin = next((photos / "test" / "trouser").iterdir())
    shutil.copy(twin, seen)
    with pytest.raises(UserError, match="is the test photo"):
        check_photos(fields["out"])
    seen.write_bytes(original + b"\0")
    with pytest.raises(UserError, match="has changed since"):
        check_photos(fields["out"])
    with pytest.raises(UserError, match="its --photos of --real is"):
        begin(plan_of(config), fields["out"])
    seen.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        check_photos(fields["out"])


def test_photos_of_the_same_bytes_are_on_one_side(fields: dict[str, Any], photos: Path) -> None:
    for path in list((photos / "train" / "trouser").iterdir()):
        shutil.copy(path, path.with_name(f"again_{path.name}"))
    real = read_photos(config_of(fields, real=str(photos)))
    sides = [{photo.sha256 for photo in part} for part in (real.train, real.validation)]
    assert not sides[0] & sides[1]
    assert sum(photo.label == "trouser" for photo in real.validation) == 12


def test_the_tables_are_what_training_and_probes_take(fields: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    real = read_photos(config_of(fields, real=str(photos)))
    write_photos(tmp_path, real)
    data = open_labelled(str(tmp_path / "split.csv"))
    assert (len(data.train), len(data.test), data.was_drawn) == (18, 18, False)
    rows = list(csv.DictReader((tmp_path / "real_train.csv").open()))
    assert {row["path"] for row in rows} == {photo.path for photo in real.train}
    assert len(list(csv.DictReader((tmp_path / "kept_aside.csv").open()))) == 12


def test_a_table_with_a_validation_split_keeps_it(fields: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    rows = []
    for split in ("train", "test"):
        for number, path in enumerate(sorted((photos / split).rglob("*.png"))):
            part = "validation" if split == "train" and number % 3 == 0 else split
            rows.append(f"{path},{path.parent.name},{part}\n")
    table = tmp_path / "table.csv"
    table.write_text("path,label,split\n" + "".join(rows))
    real = read_photos(config_of(fields, real=str(table)))
    assert {photo.path for photo in real.validation} == {
        row.split(",")[0] for row in rows if row.endswith("validation\n")
    }
    assert (len(real.train), len(real.validation), len(real.aside)) == (24, 12, 12)


def test_photos_of_a_set_in_memory_become_files(fields: dict[str, Any], tmp_path: Path) -> None:
    real = read_photos(config_of(fields, real="fashion-mnist", max_real=60))
    assert len(real.train) + len(real.validation) == 60 and len(real.aside) == 10_000
    write_photos(tmp_path, real)
    check_photos(tmp_path)
    assert len(list((tmp_path / "real").iterdir())) == 60


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda root: [path.unlink() for path in sorted((root / "train" / "trouser").iterdir())[3:]],
            "at least 4 of each",
        ),
        (lambda root: shutil.rmtree(root / "train"), "--real"),
        (
            lambda root: [shutil.rmtree(root / s / n) for s in ("train", "test") for n in ("trouser", "t-shirt")],
            "needs 2",
        ),
    ],
)
def test_too_little_is_one_line(fields: dict[str, Any], photos: Path, change: Any, said: str) -> None:
    change(photos)
    with pytest.raises(UserError, match=said) as refusal:
        plan_of(config_of(fields, real=str(photos)))
    assert "--data" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_no_labels_is_one_line(fields: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "paths.csv"
    table.write_text("path\n" + "".join(f"{path}\n" for path in photos.rglob("*.png")))
    with pytest.raises(UserError, match=r"--real .*paths.csv has no labels; a search needs a label"):
        plan_of(config_of(fields, real=str(table)))
