"""torchvision's labelled sets by name, where they lie on disk or may be fetched, with the split and the metric that the
literature on transfer uses (Kornblith et al., arXiv 1805.08974)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stablerep.config import UserError, check_choice
from stablerep.data.index import index_files
from stablerep.data.labelled import LabelledData, LabelledFiles, LabelledSet, Photos, rank_in_class

PREFIX = "torchvision:"
Metric = Literal["top1", "mean_class"]


@dataclass(frozen=True)
class NamedSet:
    name: str  # of the class in torchvision.datasets
    train: Sequence[Mapping[str, Any]] = ({"split": "train"},)  # arguments of each part
    test: Sequence[Mapping[str, Any]] = ({"split": "test"},)
    metric: Metric = "top1"
    train_per_class: int | None = None  # where there is no split: so many of each class are drawn to train
    fixed: Mapping[str, Any] = field(default_factory=dict)


_TRAIN, _TEST = ({"train": True},), ({"train": False},)
_WITH_VAL = ({"split": "train"}, {"split": "val"})
SETS = {
    "cifar10": NamedSet("CIFAR10", _TRAIN, _TEST),
    "cifar100": NamedSet("CIFAR100", _TRAIN, _TEST),
    "mnist": NamedSet("MNIST", _TRAIN, _TEST),
    "fashion-mnist": NamedSet("FashionMNIST", _TRAIN, _TEST),
    "flowers102": NamedSet("Flowers102", _WITH_VAL, metric="mean_class"),
    "dtd": NamedSet("DTD", _WITH_VAL),
    "food101": NamedSet("Food101"),
    "pets": NamedSet("OxfordIIITPet", ({"split": "trainval"},), metric="mean_class"),
    "aircraft": NamedSet("FGVCAircraft", ({"split": "trainval"},), metric="mean_class"),
    "cars": NamedSet("StanfordCars"),
    "caltech101": NamedSet("Caltech101", ({},), (), "mean_class", train_per_class=30),
    "sun397": NamedSet("SUN397", ({},), (), train_per_class=50),
}


def is_torchvision(data: str) -> bool:
    return data.startswith(PREFIX)


def metric_of(data: str) -> Metric:
    return SETS[data.removeprefix(PREFIX)].metric if is_torchvision(data) else "top1"


def open_torchvision(data: str, root: Path, seed: int, *, download: bool = False) -> LabelledData:
    """`torchvision:cifar10` and its like, from `root` as torchvision keeps them there.

    Raises:
        UserError: no such set, it is not in root, or it cannot be fetched.
    """
    import torchvision

    name = data.removeprefix(PREFIX)
    check_choice(f"--data {PREFIX}", name, SETS)
    about = SETS[name]
    kind = getattr(torchvision.datasets, about.name)

    def opened(parts: Sequence[Mapping[str, Any]]) -> list[Any]:
        try:
            return [kind(str(root), download=download, **part) for part in parts]
        except (RuntimeError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            mend = "is it reachable?" if download else "give its --data-root, or --download"
            raise UserError(f"--data {data} cannot be opened in {root} ({reason}); {mend}") from error

    train = _joined([_photos(part) for part in opened(about.train)])
    if about.train_per_class is None:
        return LabelledData(train, _joined([_photos(part) for part in opened(about.test)]))
    drawn = rank_in_class(train.labels, seed) < about.train_per_class
    return LabelledData(train.take(np.flatnonzero(drawn)), train.take(np.flatnonzero(~drawn)))


def _photos(part: Any) -> Photos:
    names = tuple(str(name) for name in _classes(part))
    if hasattr(part, "data"):  # pixels in memory
        pixels = np.asarray(part.data)
        pixels = np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 3 else pixels
        return LabelledSet(pixels, np.asarray(part.targets, np.int64), names)
    files, labels = _files(part)
    index = index_files([Path(file) for file in files], np.array([names[label] for label in labels]))
    return LabelledFiles(index, np.arange(len(files)), labels, names)


def _classes(part: Any) -> Sequence[Any]:
    if hasattr(part, "categories"):  # Caltech101
        return part.categories
    if hasattr(part, "classes"):
        return part.classes
    return range(int(max(part._labels)) + 1)  # Flowers102 of older versions numbers them


def _files(part: Any) -> tuple[list[Any], NDArray[np.int64]]:
    """Paths and labels, which torchvision keeps under several names and only decodes together."""
    if hasattr(part, "categories"):
        folder = Path(part.root) / "101_ObjectCategories"
        files = [
            folder / part.categories[label] / f"image_{number:04d}.jpg"
            for label, number in zip(part.y, part.index, strict=True)
        ]
        return files, np.asarray(part.y, np.int64)
    if hasattr(part, "_samples"):
        paths, labels = zip(*part._samples, strict=True)
        return list(paths), np.asarray(labels, np.int64)
    files = part._images if hasattr(part, "_images") else part._image_files
    order = np.argsort(np.array([str(file) for file in files]))  # SUN397 lists its folders as the disk does
    return [files[row] for row in order], np.asarray(part._labels, np.int64)[order]


def _joined(parts: Sequence[Photos]) -> Photos:
    first = parts[0]
    if len(parts) == 1:
        return first
    labels = np.concatenate([part.labels for part in parts])
    if isinstance(first, LabelledSet):
        return LabelledSet(np.concatenate([part.images for part in parts]), labels, first.class_names)  # type: ignore[union-attr]
    files = [part.index.files[row] for part in parts for row in part.rows]  # type: ignore[union-attr]
    index = index_files(files, np.array(first.class_names)[labels])
    return LabelledFiles(index, np.arange(len(files)), labels, first.class_names)
