"""Labelled sets of real photos: a set known by name, or files in folders, tables, tars and shards, split in two."""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablerep import atomic
from stablerep.config import UserError
from stablerep.data.bit_range import BitRange
from stablerep.data.decode import decoded
from stablerep.data.encoded import EncodedPictures, read_in_chunks
from stablerep.data.index import ImageIndex, index_files, index_images, index_tars
from stablerep.data.picture_files import PICTURE_ENDINGS, find_pictures, is_system_name
from stablerep.data.shard_cache import ShardCache
from stablerep.storage import RemotePath, place

Split = Literal["train", "test"]

FASHION_MNIST_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
# Debian's dataset-fashion-mnist package, then what `make photos` unpacks where that cannot be installed.
FASHION_MNIST_FOLDERS = (
    Path("/usr/share/datasets/fashion-mnist"),
    Path.home() / ".cache/stablerep/fashion-mnist",
)
IDX_UINT8 = 0x08

TEST_NAMES = ("test", "val", "valid", "validation")  # the first that a set has is what it is measured on
TEST_SHARE = 0.2  # of each class, where a set comes without a split
INSPECTION_SHARE = 0.5  # of each kind of part, where only good ones are there to train on (MVTec AD's layout)
GOOD = "good"
LAYOUT = "a folder with train/CLASS/ and test/CLASS/ or with CLASS/ folders, a table of paths and labels, or shards"


@dataclass(frozen=True)
class LabelledSet:
    """Photos of one size held in memory."""

    images: NDArray[np.uint8]  # [N, H, W, 3]
    labels: NDArray[np.int64]  # [N], index into class_names
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> LabelledSet:
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def digest(self) -> str:
        """Of all pixels and labels."""
        digest = hashlib.sha256(repr((self.class_names, self.images.shape)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def pictures(self, batch_size: int, device: torch.device) -> Iterator[Tensor]:  # uint8 [B, H, W, 3]
        yield from torch.from_numpy(self.images).split(batch_size)


@dataclass(frozen=True)
class LabelledFiles:
    """Photos of any size in files, read when they are asked for."""

    index: ImageIndex
    rows: NDArray[np.int64]  # [N] which of the index's pictures
    labels: NDArray[np.int64]  # [N], index into class_names
    class_names: tuple[str, ...]
    bit_range: BitRange | None = None
    cache: ShardCache | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: NDArray[np.int64]) -> LabelledFiles:
        return replace(self, rows=self.rows[rows], labels=self.labels[rows])

    def pictures(self, batch_size: int, device: torch.device) -> Iterator[list[Tensor | None]]:
        """At most batch_size decoded photos at once, uint8 [H_i, W_i, 3]; None for one that is damaged.

        They are good until the next are asked for. However many photos there are and however large they are, what is
        held in memory stays below a gigabyte or so.
        """
        pictures = EncodedPictures(self.index, self.bit_range, self.cache)
        threads = len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(threads) as pool:
            encoded = read_in_chunks(((pictures, int(row)) for row in self.rows), pool, batch_size)
            deep = self.bit_range is not None
            for batch in decoded(encoded, batch_size=batch_size, num_threads=threads, device=device, deep=deep):
                yield batch
                if device.type == "cuda":  # DALI uses its buffers again
                    torch.cuda.current_stream(device).synchronize()

    def where(self, row: int) -> str:
        return self.index.where(int(self.rows[row]))

    def digest(self) -> str:
        """Of name, size, time and label of each photo: enough to see that one was replaced."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        times: dict[int, int] = {}
        for row, label in zip(self.rows.tolist(), self.labels.tolist(), strict=True):
            number = int(self.index.file[row])
            if number not in times:
                file = self.index.files[number]
                times[number] = file.stat().st_mtime_ns if isinstance(file, Path) and file.exists() else 0
            digest.update(f"{self.index.where(row)}\n{self.index.size[row]} {times[number]} {label}\n".encode())
        return digest.hexdigest()


Photos = LabelledSet | LabelledFiles


@dataclass(frozen=True)
class LabelledData:
    """A labelled set, split in two."""

    train: Photos
    test: Photos
    not_read: Mapping[str, int] = field(default_factory=dict)  # files with other endings
    was_drawn: bool = False  # the set had no split, or none that a probe can use

    def save_split(self, path: Path) -> None:
        """Write which photo is on which side, as a table that --data takes."""
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(("path", "label", "split"))
        for split, photos in (("train", self.train), ("test", self.test)):
            assert isinstance(photos, LabelledFiles)
            for row, label in enumerate(photos.labels):
                table.writerow((os.path.abspath(photos.where(row)), photos.class_names[label], split))
        atomic.write(path, text.getvalue())


def open_labelled(data: str, seed: int = 0) -> LabelledData:
    """A set by name (`fashion-mnist`, always 32x32), or the files that a path names.

    - FOLDER/train/CLASS/ and FOLDER/test/CLASS/ (or val/), photos at any depth, or tars there
    - FOLDER/CLASS/: a fifth of each class is drawn by the seed to be the test photos
    - MVTec AD's FOLDER/train/good/ and FOLDER/test/DEFECT/: half of each kind in test/ is drawn to train on
    - a table (.csv, .tsv, .jsonl, .json, .parquet) with columns path and label, and split where it has one
    - tars of WebDataset with labels (key.cls, or in key.json); shards painted from prompts with a label column

    In a drawn split, photos of the same bytes or the same prompt are on one side. A name wins over a folder of that
    name here; write ./fashion-mnist for the folder.

    Raises:
        UserError: none of these, fewer than two classes, train and test of different classes, a class without photos.
    """
    if data in NAMED_SETS:
        return LabelledData(NAMED_SETS[data]("train"), NAMED_SETS[data]("test"))
    path = place(data)
    if isinstance(path, RemotePath) or path.is_file() or (path / "dataset.json").exists() or any(path.glob("*.tar")):
        return _of_index(data, index_images(path), seed)
    if path.is_dir():
        return _of_folder(path, seed)
    near = difflib.get_close_matches(data, NAMED_SETS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give {LAYOUT}, or one of: {', '.join(NAMED_SETS)}"
    raise UserError(f"--data {data}: no such folder, and no set of that name; {hint}")


def draw(photos: Photos, count: int | None, seed: int) -> Photos:
    """At most count photos, as even over the classes as they allow, drawn by seed, in their old order."""
    return photos.take(_balanced(photos.labels, count, seed))


def _of_folder(folder: Path, seed: int) -> LabelledData:
    train, test = folder / "train", next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    if not train.is_dir() or test is None:
        if len(_class_names(folder)) < 2 or train.is_dir() or test is not None:
            raise UserError(f"{folder} has no train and test folders, nor two or more of classes; give {LAYOUT}")
        index = _class_folders(folder)
        return _of_index(folder, index, seed)
    if any(train.glob("*.tar")):
        both = index_tars([*sorted(train.glob("*.tar")), *sorted(test.glob("*.tar"))])
        in_train = [both.files[file].parent == train for file in both.file]
        return _of_index(folder, replace(both, splits=np.where(in_train, "train", "test")), seed)
    names = _class_names(train)
    if names == (GOOD,) and GOOD in _class_names(test) and len(_class_names(test)) > 1:
        return _of_inspection(folder, train, test, seed)
    if len(names) < 2:
        raise UserError(f"{train} has {len(names)} class folder(s) and needs 2 or more; give {LAYOUT}")
    if differing := sorted(set(names) ^ set(_class_names(test))):
        raise UserError(
            f"train and {test.name} of {folder} have different classes; only one of them has {differing[0]!r}"
        )
    sides = [_class_folders(train), _class_folders(test)]
    not_read = Counter(sides[0].not_read) + Counter(sides[1].not_read)
    files = [LabelledFiles(side, np.arange(len(side)), _numbers(side, names), names) for side in sides]
    return LabelledData(files[0], files[1], not_read)


def _of_inspection(folder: Path, train: Path, test: Path, seed: int) -> LabelledData:
    """Good parts to train on and all kinds to test: half of each kind in test/ joins the training photos."""
    good, kinds = _class_folders(train), _class_folders(test)
    names = tuple(sorted(set(kinds.classes.tolist())))  # type: ignore[union-attr]
    labels = _numbers(kinds, names)
    tested = _drawn(labels, _units(kinds), INSPECTION_SHARE, seed)
    both = index_files([*good.files, *kinds.files], np.concatenate([good.classes, kinds.classes]))  # type: ignore[list-item]
    of_kinds = len(good) + np.arange(len(kinds))
    rows = [np.concatenate([np.arange(len(good)), of_kinds[~tested]]), of_kinds[tested]]
    files = [LabelledFiles(both, each, _numbers(both, names)[each], names) for each in rows]
    return LabelledData(files[0], files[1], Counter(good.not_read) + Counter(kinds.not_read), was_drawn=True)


def _of_index(data: object, index: ImageIndex, seed: int) -> LabelledData:
    if index.classes is None:
        raise UserError(f"--data {data} has no labels; a probe needs a label (or class) for each picture")
    labelled = np.flatnonzero(index.classes != "")
    names = tuple(sorted(set(index.classes[labelled].tolist()), key=_as_number))
    if len(names) < 2:
        raise UserError(f"--data {data} has the one class {', '.join(names)}; a probe needs 2 or more")
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[name] for name in index.classes[labelled].tolist()], np.int64)
    cache = ShardCache() if index.digests else None
    if index.splits is not None:
        given = np.array([split.lower() for split in index.splits[labelled].tolist()])
        test_name = next((name for name in TEST_NAMES if (given == name).any()), None)
        if test_name is None or not (given == "train").any():
            found = ", ".join(sorted(set(given.tolist())))
            raise UserError(f"--data {data}: its splits are {found}; train and test (or val) are needed")
        sides = [np.flatnonzero(given == "train"), np.flatnonzero(given == test_name)]
    else:
        tested = _drawn(labels, _units(index, cache)[labelled], TEST_SHARE, seed)
        sides = [np.flatnonzero(~tested), np.flatnonzero(tested)]
    files = [LabelledFiles(index, labelled[rows], labels[rows], names, cache=cache) for rows in sides]
    if only := sorted(set(files[1].labels.tolist()) - set(files[0].labels.tolist())):
        raise UserError(
            f"--data {data}: class {names[only[0]]!r} is among the test photos and not among the training photos"
        )
    return LabelledData(files[0], files[1], index.not_read, was_drawn=index.splits is None)


def _as_number(name: str) -> tuple[float, str]:
    """Class names that are numbers in the order of the numbers, before all others."""
    return (float(name), "") if name.isdecimal() else (float("inf"), name)


def _class_folders(folder: Path) -> ImageIndex:
    """The photos of each folder in a folder, which is their class."""
    files: list[Path] = []
    classes: list[str] = []
    not_read: Counter[str] = Counter()
    for name in _class_names(folder):
        found = find_pictures(folder / name)
        if not found.files:
            raise UserError(
                f"{folder / name} has no photos ({', '.join(PICTURE_ENDINGS)}); add some or remove the folder"
            )
        files += found.files
        classes += [name] * len(found.files)
        not_read += Counter(found.not_read)
    return index_files(files, np.array(classes), not_read)


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_system_name(entry.name)))


def _numbers(index: ImageIndex, names: Sequence[str]) -> NDArray[np.int64]:
    assert index.classes is not None
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[name] for name in index.classes.tolist()], np.int64)


def _units(index: ImageIndex, cache: ShardCache | None = None) -> NDArray[np.int64]:  # [N]
    """What a split must not part: pictures of one prompt or sample, else those of the same bytes."""
    if index.has_groups:
        return np.unique(index.group, return_inverse=True)[1]
    pictures = EncodedPictures(index, cache=cache)
    sizes, counts = np.unique(index.size, return_counts=True)
    several = set(sizes[counts > 1].tolist())
    numbers: dict[bytes | int, int] = {}
    units = []
    for image, size in enumerate(index.size.tolist()):
        data = pictures.bytes_of(image) if size in several else None
        key = image if data is None else hashlib.sha256(data.data).digest()
        units.append(numbers.setdefault(key, len(numbers)))
    return np.array(units)


def _drawn(labels: NDArray[np.int64], units: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:  # [N]
    """Which photos are tested: a share of the units of each class, at least one of two or more."""
    _, first, inverse = np.unique(units, return_index=True, return_inverse=True)
    of_unit = labels[first]
    sizes = np.bincount(of_unit)
    wanted = np.where(sizes > 1, np.clip(np.round(share * sizes), 1, sizes - 1), 0)
    return (rank_in_class(of_unit, seed) < wanted[of_unit])[inverse]


def rank_in_class(labels: NDArray[np.int64], *seed: int) -> NDArray[np.int64]:
    """Where each row stands when the rows of its class are shuffled: [N], 0 to the size of the class - 1.

    `rank_in_class(labels, seed) < 10` is a draw of ten of each class.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    first = np.cumsum(counts) - counts
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(first, counts)
    return rank


def fashion_mnist(split: Split) -> LabelledSet:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 training and 10,000 test photos, padded from 28x28 to 32x32.

    Raises:
        UserError: the files are on none of the known folders, or are not the IDX files they should be.
    """
    folder = next((f for f in FASHION_MNIST_FOLDERS if (f / "train-images-idx3-ubyte.gz").is_file()), None)
    if folder is None:
        raise UserError(
            "fashion-mnist is not on this machine; run `make photos` or `sudo apt-get install dataset-fashion-mnist`"
        )
    stem = {"train": "train", "test": "t10k"}[split]
    images = _read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))  # the photos stand on black
    rgb = np.repeat(images[..., None], 3, axis=-1)
    return LabelledSet(rgb, labels.astype(np.int64), FASHION_MNIST_CLASSES)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes (format: yann.lecun.com/exdb/mnist)."""
    try:
        data = gzip.decompress(path.read_bytes())
        zero, kind, rank = int.from_bytes(data[:2], "big"), data[2], data[3]
        shape = np.frombuffer(data, ">i4", count=rank, offset=4)
        values = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
        if zero != 0 or kind != IDX_UINT8 or values.size != shape.prod():
            raise ValueError("bad header")
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise UserError(f"{path} is not a gzipped IDX file ({error}); fetch it again with `make photos`") from error
    return values.reshape(tuple(shape))


def _balanced(labels: NDArray[np.int64], count: int | None, seed: int) -> NDArray[np.int64]:
    """Indices of count rows in their old order, as even over the classes as their sizes allow."""
    if count is None or count >= len(labels):
        return np.arange(len(labels))
    if count < (classes := len(np.unique(labels))):
        raise UserError(f"{count} photos cannot show all {classes} classes; ask for at least {classes}")
    return np.sort(np.argsort(rank_in_class(labels, seed), kind="stable")[:count])


NAMED_SETS: dict[str, Callable[[Split], LabelledSet]] = {"fashion-mnist": fashion_mnist}
