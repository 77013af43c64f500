"""The photos of an adaptation: which to learn from, which to hold out, what each shows, squares cut out of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stablerep.adapt.config import AdaptConfig
from stablerep.config import UserError
from stablerep.data.encoded import EncodedPictures, resolve_bit_range
from stablerep.data.index import ImageIndex, index_images
from stablerep.data.labelled import TEST_NAMES, LabelledFiles
from stablerep.storage import place

FEWEST = 4
DECODED_AT_ONCE = 32
DEFAULT_TEMPLATE, NO_CAPTION = "a photo of a {label}", "a photo"

log = logging.getLogger("stablerep.adapt")


@dataclass(frozen=True)
class AdaptPhotos:
    """N photos in files, in the order of the data."""

    index: ImageIndex
    rows: NDArray[np.int64]  # [N] which of the index's pictures
    captions: tuple[str, ...]  # [N]
    digests: tuple[bytes, ...]  # [N] of the files' bytes

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, numbers: NDArray[np.int64]) -> AdaptPhotos:
        return AdaptPhotos(
            self.index,
            self.rows[numbers],
            tuple(self.captions[number] for number in numbers),
            tuple(self.digests[number] for number in numbers),
        )

    def split(self, share: float, seed: int) -> tuple[AdaptPhotos, AdaptPhotos]:
        """Those to train on, and a share to hold out. Photos of the same bytes are on one side.

        Raises:
            UserError: fewer than 4 different ones.
        """
        different = list(dict.fromkeys(self.digests))
        if len(different) < FEWEST:
            copies = f" ({len(self)} with copies)" if len(different) < len(self) else ""
            raise UserError(
                f"--photos holds {len(different)} photos{copies} that can be read, and {FEWEST} are needed: three to "
                "train on and one to hold out"
            )
        count = min(max(1, round(share * len(different))), len(different) - FEWEST + 1)
        drawn = np.random.default_rng(seed).permutation(len(different))[:count]
        held = {different[number] for number in drawn}
        is_held = np.array([digest in held for digest in self.digests])
        return self.take(np.flatnonzero(~is_held)), self.take(np.flatnonzero(is_held))

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for caption, data in zip(self.captions, self.digests, strict=True):
            digest.update(data + caption.encode() + b"\n")
        return digest.hexdigest()[:12]


def open_photos(config: AdaptConfig) -> AdaptPhotos:
    """Look for the photos and what they show; they are not decoded yet.

    Raises:
        UserError: nothing there, or a template that does not go with it.
    """
    data = place(config.photos)
    if isinstance(data, Path) and (data / "train").is_dir() and any((data / name).is_dir() for name in TEST_NAMES):
        log.info("--photos %s has a split; its train folder alone is used", data)
        data = data / "train"
    try:
        index = index_images(data, texts=True)
    except UserError as error:  # the words of every command that reads pictures
        raise UserError(str(error).replace("--data", "--photos")) from error
    rows = np.arange(len(index))
    if index.splits is not None:
        rows = np.flatnonzero((index.splits == "train") | (index.splits == ""))
        if not len(rows):
            raise UserError(f"--photos {data}: no row of its split is train; {', '.join(sorted(set(index.splits)))} is")
        if len(rows) < len(index):
            log.info("--photos %s: %d of %d rows are train, and are used", data, len(rows), len(index))
    captions = _captions(config, index, rows)
    pictures = EncodedPictures(index)
    found = [pictures.bytes_of(int(row)) for row in rows]
    digests = tuple(b"" if each is None else hashlib.sha256(each.data).digest() for each in found)
    return AdaptPhotos(index, rows, captions, digests)


def _captions(config: AdaptConfig, index: ImageIndex, rows: NDArray[np.int64]) -> tuple[str, ...]:
    labels = None if index.classes is None else [label.replace("_", " ") for label in index.classes[rows].tolist()]
    if config.template is not None:
        if "{label}" not in config.template:
            return (config.template,) * len(rows)
        if labels is None or not all(labels):
            raise UserError(
                f"--template {config.template!r} asks for labels, and not all photos have one; put them into CLASS/ "
                "folders or a column label, or leave {label} out"
            )
        return tuple(config.template.replace("{label}", label) for label in labels)
    texts = [None] * len(rows) if index.texts is None else [index.texts[int(row)].as_py() for row in rows]
    captions = []
    for number, row in enumerate(rows.tolist()):
        text = texts[number] or _beside(index, row)
        if text is None and labels is not None and labels[number]:
            text = DEFAULT_TEMPLATE.replace("{label}", labels[number])
        captions.append(NO_CAPTION if text is None else text)
    if bare := captions.count(NO_CAPTION):
        log.info("%d photos have neither caption nor label; %r stands for them (--template)", bare, NO_CAPTION)
    return tuple(captions)


def _beside(index: ImageIndex, row: int) -> str | None:
    """The caption in a.txt beside a.jpg."""
    file = index.files[index.file[row]]
    if not isinstance(file, Path) or index.where(row) != str(file):
        return None
    text = file.with_suffix(".txt")
    return text.read_text(errors="replace").strip() or None if text.is_file() else None


def squares(
    photos: AdaptPhotos, size: tuple[int, int], config: AdaptConfig
) -> Iterator[tuple[int, Tensor]]:  # a photo's number, and uint8 [V, 3, height, width]
    """What the model is shown of each photo that can be decoded: V views, the middle first.

    Raises:
        UserError: photos that are smaller than this, after the last one; all of them are looked at.
    """
    bit_range = resolve_bit_range("auto", photos.index)
    files = LabelledFiles(photos.index, photos.rows, np.zeros(len(photos), np.int64), (), bit_range)
    small: list[str] = []
    damaged: list[str] = []
    number = -1
    for batch in files.pictures(DECODED_AT_ONCE, torch.device("cpu")):
        for picture in batch:
            number += 1
            if picture is None:
                damaged.append(files.where(number))
                continue
            height, width = picture.shape[:2]
            if (height < size[0] or width < size[1]) and not config.upscale:
                small.append(f"{files.where(number)} with {width} x {height}")
            elif not small:
                yield number, views(picture.permute(2, 0, 1), size, config, photos.digests[number])
    if damaged:
        log.warning(
            "%d of %d photos cannot be decoded and are left out, first %s", len(damaged), len(photos), damaged[0]
        )
    if small:
        raise UserError(
            f"--photos: {len(small)} of {len(photos)} are smaller than the {size[1]} x {size[0]} pixels that the model "
            f"paints, first {small[0]}; take larger ones, or give --upscale"
        )


def views(
    picture: Tensor,  # uint8 [3, H, W]
    size: tuple[int, int],
    config: AdaptConfig,
    key: bytes,
) -> Tensor:  # uint8 [V, 3, height, width]
    """The largest boxes of the wanted shape: the middle one, others drawn by the photo's key; then all mirrored."""
    height, width = picture.shape[1:]
    scale = min(height / size[0], width / size[1])
    box = max(1, round(scale * size[0])), max(1, round(scale * size[1]))
    room = height - box[0], width - box[1]
    drawn = np.random.default_rng([config.seed, *key[:8]])
    corners = [(room[0] // 2, room[1] // 2)]
    corners += [(int(drawn.integers(room[0] + 1)), int(drawn.integers(room[1] + 1))) for _ in range(config.crops - 1)]
    cut = torch.stack([picture[:, y : y + box[0], x : x + box[1]] for y, x in corners]).float()
    resized = F.interpolate(cut, size, mode="bicubic", antialias=True).round().clamp(0, 255).to(torch.uint8)
    return torch.cat([resized, resized.flip(-1)]) if config.flip else resized
