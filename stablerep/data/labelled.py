"""Labelled sets of real photos: a folder of class folders, or a set known by name."""

from __future__ import annotations

import difflib
import gzip
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stablerep.config import UserError
from stablerep.storage import refuse_url

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

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LAYOUT = "expected FOLDER/train/CLASS/*.jpg and FOLDER/test/CLASS/*.jpg (or png, webp)"


@dataclass(frozen=True)
class LabelledSet:
    """Photos of one size held in memory."""

    images: NDArray[np.uint8]  # [N, H, W, 3]
    labels: NDArray[np.int64]  # [N], index into class_names
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def load_labelled(
    name_or_path: str, split: Split, image_size: int, max_images: int | None = None, seed: int = 0
) -> LabelledSet:
    """A set by name (`fashion-mnist`, always 32x32) or a folder, its photos brought to image_size on load.

    max_images keeps that many photos, as even over the classes as they allow, drawn by seed. A name wins over a folder
    of that name here; write ./fashion-mnist for the folder.

    Raises:
        UserError: neither a known name nor a folder, or what fashion_mnist and labelled_folder raise.
    """
    if name_or_path in NAMED_SETS:
        photos = NAMED_SETS[name_or_path](split)
        kept = _balanced(photos.labels, max_images, seed)
        return LabelledSet(photos.images[kept], photos.labels[kept], photos.class_names)
    if Path(name_or_path).is_dir():
        return labelled_folder(Path(name_or_path), split, image_size, max_images, seed)
    refuse_url("--data", name_or_path)
    near = difflib.get_close_matches(name_or_path, NAMED_SETS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give a folder ({LAYOUT}) or one of: {', '.join(NAMED_SETS)}"
    raise UserError(f"--data {name_or_path}: no such folder, and no set of that name; {hint}")


def labelled_folder(
    folder: Path, split: Split, image_size: int, max_images: int | None = None, seed: int = 0
) -> LabelledSet:
    """Photos under folder/SPLIT/CLASS, any size and depth; the short side brought to image_size, the middle cut out.

    Raises:
        UserError: another layout, fewer than two classes, train and test of different classes, a class without photos,
            a photo that cannot be read.
    """
    if not ((folder / "train").is_dir() and (folder / "test").is_dir()):
        raise UserError(f"{folder} has no train and test folders; {LAYOUT}")
    names = _class_names(folder / "train")
    if len(names) < 2:
        raise UserError(f"{folder / 'train'} has {len(names)} class folder(s) and needs 2 or more; {LAYOUT}")
    if differing := sorted(set(names) ^ set(_class_names(folder / "test"))):
        raise UserError(f"train and test of {folder} have different classes; only one of them has {differing[0]!r}")

    files = [_photos(folder / split / name) for name in names]
    labels = np.repeat(np.arange(len(names)), [len(found) for found in files])
    kept = _balanced(labels, max_images, seed)
    paths = [path for found in files for path in found]
    images = np.empty((len(kept), image_size, image_size, 3), np.uint8)

    def read_into(row: int) -> None:
        images[row] = _read_photo(paths[kept[row]], image_size)

    with ThreadPoolExecutor() as threads:  # Pillow decodes and resizes outside the interpreter's lock
        list(threads.map(read_into, range(len(kept))))
    return LabelledSet(images, labels[kept], names)


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


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _photos(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    photos = sorted(path for path in found if not path.name.startswith("."))  # macOS leaves ._a.jpg beside a.jpg
    if not photos:
        raise UserError(f"{folder} has no photos ({', '.join(PHOTO_SUFFIXES)}); add some or remove the folder")
    return photos


def _balanced(labels: NDArray[np.int64], count: int | None, seed: int) -> NDArray[np.int64]:
    """Indices of count rows in their old order, as even over the classes as their sizes allow."""
    if count is None or count >= len(labels):
        return np.arange(len(labels))
    if count < (classes := len(np.unique(labels))):
        raise UserError(f"{count} photos cannot show all {classes} classes; ask for at least {classes}")
    return np.sort(np.argsort(rank_in_class(labels, seed), kind="stable")[:count])


def _read_photo(path: Path, size: int) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as photo:
            # JPEG decodes at 1/2, 1/4 or 1/8 while at least twice the wanted size is left to resize from
            photo.draft("RGB", (2 * size, 2 * size))
            if photo.mode.startswith(("I", "F")):  # Pillow would cut these at 255 and hand back a white picture
                raise UserError(f"{path} has more than 8 bits a channel (mode {photo.mode}); convert it to 8 bits")
            upright = ImageOps.exif_transpose(photo).convert("RGB")
            return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}); replace or remove it") from error


NAMED_SETS: dict[str, Callable[[Split], LabelledSet]] = {"fashion-mnist": fashion_mnist}
