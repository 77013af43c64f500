"""The real photos of --real: which files, of which class, and on which side where the user has said so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from stablerep.config import UserError
from stablerep.data.labelled import GOOD, NAMED_SETS, TEST_NAMES
from stablerep.data.picture_files import PICTURE_ENDINGS, find_pictures, is_system_name
from stablerep.data.tables import TABLE_ENDINGS, read_picture_table

TRAIN, VALIDATION, TEST = "train", "validation", "test"
UNLABELLED = ("unlabelled", "unlabeled")  # folders whose photos have no class
LAYOUT = "a folder with CLASS/ folders or with train/CLASS/ and test/CLASS/, or a table of path, label and split"


@dataclass(frozen=True)
class Photo:
    path: str  # absolute
    label: str = ""  # "": none is known
    split: str = ""  # TRAIN, VALIDATION, TEST; "": not said


@dataclass(frozen=True)
class RealPhotos:
    """All photos of --real, in the order of their paths or of the table."""

    photos: tuple[Photo, ...]
    is_inspection: bool = False  # MVTec AD's layout: only good parts to train on, all kinds to test


def read_real(real: str, workplace: Path) -> RealPhotos:
    """Read what --real names; nothing is decoded.

    Args:
        workplace: where the photos of a set known by name are written, as stablerep-train reads files.

    Raises:
        UserError: nothing there, no photo, an empty class folder, or a split with an unknown name.
    """
    if real in NAMED_SETS:
        return _read_split_folder(_export(real, workplace / "photos"))
    path = Path(real).expanduser()
    if path.is_file() and path.suffix.lower() in TABLE_ENDINGS:
        return RealPhotos(tuple(_of_table(path)))
    if not path.is_dir():
        what = "is no folder and no table" if path.exists() else "does not exist"
        raise UserError(f"--real {real} {what}; give {LAYOUT}, or one of: {', '.join(NAMED_SETS)}")
    if any(path.glob("*.tar")):
        raise UserError(f"--real {real} holds tars; unpack them, a proof of concept reads photo files")
    has = {name for name in os.listdir(path) if (path / name).is_dir()}
    if TRAIN in has and has & set(TEST_NAMES):
        return _read_split_folder(path)
    return RealPhotos(tuple(_of_classes(path)))


def _read_split_folder(folder: Path) -> RealPhotos:
    """FOLDER/train/CLASS/ and test/CLASS/; with both val/ and test/, val/ is what choices are made by."""
    tests = [name for name in TEST_NAMES if (folder / name).is_dir()]
    photos = list(_of_classes(folder / TRAIN, TRAIN))
    measured = list(_of_classes(folder / tests[0], TEST))
    validated = [photo for name in tests[1:] for photo in _of_classes(folder / name, VALIDATION)]
    loose = [photo for name in UNLABELLED if (folder / name).is_dir() for photo in _of_classes(folder / name, TRAIN)]
    photos += [Photo(photo.path, "", TRAIN) for photo in loose]
    known = {photo.label for photo in photos if photo.label}
    kinds = {photo.label for photo in measured}
    if known == {GOOD} and GOOD in kinds and len(kinds) > 1:
        return RealPhotos(tuple([*photos, *(Photo(each.path, each.label) for each in measured)]), is_inspection=True)
    if unknown := sorted(kinds - known):
        raise UserError(f"--real {folder}: class {unknown[0]!r} is in {tests[0]} and not in train")
    return RealPhotos(tuple([*photos, *validated, *measured]))


def _of_classes(folder: Path, split: str = "") -> Iterator[Photo]:
    """The photos of each folder in a folder, which is their class; those that lie in no folder have none."""
    found = find_pictures(folder)
    if not found.files:
        raise UserError(f"--real {folder} has no photos ({', '.join(PICTURE_ENDINGS)}); give {LAYOUT}")
    filled = set()
    for path in found.files:
        first, *rest = path.relative_to(folder).parts
        filled.add(first)
        label = first if rest and first.lower() not in UNLABELLED else ""
        yield Photo(os.path.abspath(path), label, split)
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.name not in filled and not is_system_name(entry.name):
            raise UserError(f"{entry} has no photos ({', '.join(PICTURE_ENDINGS)}); add some or remove the folder")


def _of_table(path: Path) -> Iterator[Photo]:
    table = read_picture_table(path)
    if table.sizes is not None:
        raise UserError(f"--real {path} holds the photos itself; a proof of concept reads photo files: {LAYOUT}")
    given = {(row.split or "").lower() for row in table.rows}
    tests = [name for name in TEST_NAMES if name in given]
    sides = {"": "", TRAIN: TRAIN} | dict.fromkeys(tests[:1], TEST) | dict.fromkeys(tests[1:], VALIDATION)
    if unknown := sorted(given - sides.keys()):
        raise UserError(f"--real {path}: its split {unknown[0]!r} is unknown; use train, validation and test")
    for row in table.rows:
        if not row.path.is_file():
            raise UserError(f"--real {path}: {row.path} does not exist; mend or remove its row")
        side = sides[(row.split or "").lower()]
        yield Photo(os.path.abspath(row.path), row.label or "", side or (TRAIN if tests else ""))


def _export(name: str, folder: Path) -> Path:
    """Write the photos of a set known by name as train/CLASS/00042.png and test/CLASS/00042.png, once."""
    if folder.exists():
        return folder
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for side in (TRAIN, TEST):
        photos = NAMED_SETS[name](side)  # type: ignore[arg-type]
        for label in photos.class_names:
            (partial / side / label).mkdir(parents=True)
        for number, (pixels, label) in enumerate(zip(photos.images, photos.labels, strict=True)):
            to = partial / side / photos.class_names[label] / f"{number:05}.png"
            Image.fromarray(pixels).save(to, compress_level=1)
    os.replace(partial, folder)
    return folder


def classes_of(photos: Sequence[Photo]) -> list[str]:
    return sorted({photo.label for photo in photos if photo.label})
