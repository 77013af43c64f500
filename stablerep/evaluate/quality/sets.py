"""The two sides of a comparison: which pictures they are, and which class and prompt each belongs to."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stablerep.config import UserError
from stablerep.data.encoded import resolve_bit_range
from stablerep.data.index import ImageIndex, index_images
from stablerep.data.labelled import (
    GOOD,
    NAMED_SETS,
    TEST_NAMES,
    LabelledFiles,
    LabelledSet,
    Photos,
    open_labelled,
    rank_in_class,
)
from stablerep.data.picture_files import is_system_name
from stablerep.data.shard_cache import ShardCache
from stablerep.storage import place

HEADER = 512  # bytes before a file in a tar, where its name stands
NO_CLASS = -1


@dataclass(frozen=True)
class PictureSet:
    """Pictures, with the class and the prompt of each where it has one."""

    name: str
    photos: Photos
    rows: NDArray[np.int64]  # [N] the number of each in the whole set
    classes: NDArray[np.int64]  # [N] index into class_names, or -1
    class_names: tuple[str, ...]
    prompts: NDArray[np.int64] | None = None  # [N] index into prompt_texts
    prompt_texts: tuple[str, ...] = ()
    not_read: dict[str, int] = field(default_factory=dict)  # files with other endings

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: NDArray[np.int64]) -> PictureSet:
        prompts = None if self.prompts is None else self.prompts[chosen]
        return replace(
            self, photos=self.photos.take(chosen), rows=self.rows[chosen], classes=self.classes[chosen], prompts=prompts
        )

    def at_most(self, count: int | None, seed: int) -> PictureSet:
        """At most count pictures, as even over prompts, else over classes, as they allow, in their old order."""
        if count is None or count >= len(self):
            return self
        of = self.classes + 1 if self.prompts is None else self.prompts
        return self.take(np.sort(np.argsort(rank_in_class(of, seed), kind="stable")[:count]))

    def where(self, row: int) -> str:
        """FOLDER/000000.tar/000000042.0.jpg, or a file's path."""
        if isinstance(self.photos, LabelledSet):
            return f"{self.name}/{self.rows[row]:06}"
        index, image = self.photos.index, int(self.photos.rows[row])
        file = index.files[index.file[image]]
        if isinstance(file, Path) and file.suffix == ".tar":
            with file.open("rb") as tar:
                tar.seek(int(index.offset[image]) - HEADER)
                header = tarfile.TarInfo.frombuf(tar.read(HEADER), "utf-8", "surrogateescape")
            return f"{file}/{header.name}"
        return index.where(image)

    def stamps(self) -> list[Any]:
        """What changes when a picture does: enough to see that features are of other pictures."""
        return [self.name, self.photos.digest()]


def open_synthetic(data: str, real_classes: Sequence[str]) -> PictureSet:
    """Pictures of stablerep-gen or of any folder, table or tar; their classes are those of real_classes.

    Raises:
        UserError: nothing there, or nothing that is read.
    """
    try:
        index = index_images(place(data), texts=True)
    except UserError as error:
        raise _of_flag("--synthetic", error) from error
    numbers = {_key(name): number for number, name in enumerate(real_classes)}
    names = index.classes.tolist() if index.classes is not None else [""] * len(index)
    classes = np.array([numbers.get(_key(name), NO_CLASS) for name in names], np.int64)
    prompts: NDArray[np.int64] | None = None
    texts: tuple[str, ...] = ()
    if index.has_groups and index.texts is not None:
        _, first, prompts = np.unique(index.group, return_index=True, return_inverse=True)
        texts = tuple(index.texts[int(row)].as_py() or "" for row in first)
    every = np.arange(len(index))
    photos = LabelledFiles(index, every, classes, tuple(real_classes), cache=_cache(index))
    return PictureSet(data, photos, every, classes, tuple(real_classes), prompts, texts, dict(index.not_read))


def open_real(data: str, split: str, seed: int, bit_range: str = "auto") -> PictureSet:
    """The training (or test) photos of a set; all photos, where there is neither a split nor a class to draw one by.

    A split that has to be drawn is that of stablerep-eval with the same seed.

    Raises:
        UserError: no such set, no photos, or no test photos where these are asked for.
    """
    try:
        if data in NAMED_SETS:
            photos: Photos = NAMED_SETS[data]("train" if split == "train" else "test")
            names = photos.class_names
            return PictureSet(f"{data}/{split}", photos, np.arange(len(photos)), photos.labels, names)
        return _open_files(data, split, seed, bit_range)
    except UserError as error:
        raise _of_flag("--real", error) from error


def images_of(pictures: PictureSet, rows: Sequence[int]) -> list[Image.Image]:
    """The pictures of rows that are known to be readable."""
    import torch

    if isinstance(pictures.photos, LabelledSet):
        return [Image.fromarray(pictures.photos.images[row]) for row in rows]
    found: list[Image.Image] = []
    for batch in pictures.photos.take(np.array(rows, np.int64)).pictures(32, torch.device("cpu")):
        found += [Image.fromarray(picture.numpy().copy()) for picture in batch if picture is not None]
    assert len(found) == len(rows), "a picture that was decoded before cannot be decoded any more"
    return found


def _open_files(data: str, split: str, seed: int, bit_range: str) -> PictureSet:
    path = place(data)
    if isinstance(path, Path) and path.is_dir() and (path / "train").is_dir() and not any(path.glob("*.tar")):
        return _of_split_folder(path, data, split, seed, bit_range)
    index = index_images(path)
    if index.splits is not None:
        given = np.char.lower(index.splits)
        tests = next((name for name in TEST_NAMES if (given == name).any()), "test")
        return _of_rows(data, index, np.flatnonzero(given == (tests if split == "test" else "train")), split, bit_range)
    if index.classes is not None and len(set(index.classes.tolist()) - {""}) > 1:
        return _of_labelled(data, split, seed, bit_range)
    return _of_rows(data, index, np.arange(len(index)) if split == "train" else np.zeros(0, int), split, bit_range)


def _of_split_folder(path: Path, data: str, split: str, seed: int, bit_range: str) -> PictureSet:
    train, test = path / "train", next((path / name for name in TEST_NAMES if (path / name).is_dir()), None)
    names = [entry.name for entry in train.iterdir() if entry.is_dir() and not is_system_name(entry.name)]
    if test and (len(names) > 1 or names == [GOOD]):
        return _of_labelled(data, split, seed, bit_range)
    side = train if split == "train" else test
    if side is None:
        raise UserError(f"--real {data} has no test photos ({', '.join(TEST_NAMES)}); leave --real-split out")
    index = index_images(side)
    return _of_rows(data, index, np.arange(len(index)), split, bit_range)


def _of_labelled(data: str, split: str, seed: int, bit_range: str) -> PictureSet:
    labelled = open_labelled(data, seed)
    photos = labelled.train if split == "train" else labelled.test
    assert isinstance(photos, LabelledFiles)
    photos = replace(photos, bit_range=resolve_bit_range(bit_range, photos.index, photos.cache))
    return PictureSet(data, photos, photos.rows, photos.labels, photos.class_names, not_read=dict(labelled.not_read))


def _of_rows(data: str, index: ImageIndex, rows: NDArray[np.int64], split: str, bit_range: str) -> PictureSet:
    if not len(rows):
        raise UserError(f"--real {data} has no {split} photos; give a split column, train/ and test/, or other photos")
    found = index.classes[rows].tolist() if index.classes is not None else [""] * len(rows)
    names = tuple(sorted(set(found) - {""}))
    numbers = {name: number for number, name in enumerate(names)}
    classes = np.array([numbers.get(name, NO_CLASS) for name in found], np.int64)
    cache = _cache(index)
    photos = LabelledFiles(index, rows, classes, names, resolve_bit_range(bit_range, index, cache), cache)
    return PictureSet(data, photos, rows, classes, names, not_read=dict(index.not_read))


def _cache(index: ImageIndex) -> ShardCache | None:
    return ShardCache() if index.digests else None


def _key(name: str) -> str:
    """Class names that differ in case, hyphens or underscores are one."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _of_flag(flag: str, error: UserError) -> UserError:
    """What the readers of data say of --data, of the flag that was given."""
    text = str(error)
    return UserError(text.replace("--data", flag) if "--data" in text else text if flag in text else f"{flag}: {text}")
