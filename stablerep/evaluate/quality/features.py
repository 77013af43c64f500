"""Features of both sides by one encoder, streamed to disk in parts: a run that was cut off goes on after the last."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stablerep import atomic, runlog
from stablerep.config import UserError, fingerprint
from stablerep.data.labelled import LabelledSet
from stablerep.evaluate.config import PIXELS, UNTRAINED
from stablerep.evaluate.features import create_baseline, inputs_of, is_baseline, is_grey
from stablerep.evaluate.quality.config import INCEPTION, QualityConfig
from stablerep.evaluate.quality.sets import PictureSet
from stablerep.models import InputTransform, load_encoder

PART, PART_SECONDS = 4096, 30.0  # pictures whose features are written together; the time after which fewer are
PIXELS_SIZE, OTHER_SIZE = 32, 224
FOLDER = "features"


@dataclass(frozen=True)
class Encoder:
    """What makes features, and what they depend on."""

    network: nn.Module
    transform: InputTransform
    stamp: list[Any]


@dataclass(frozen=True)
class SetFeatures:
    """The pictures of a set that could be decoded, and their features."""

    pictures: PictureSet
    x: Tensor  # [N, D] float32 on the device
    damaged: list[str]  # where those lie that could not be


class Inception(nn.Module):
    """torch-fidelity's Inception, of whose weights those of papers' Fréchet distances are."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                f"--features {INCEPTION}{weights} needs torch-fidelity: pip install torch-fidelity"
            ) from error
        try:
            self.inner = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
        except Exception as error:  # torch.load and load_state_dict raise what they like
            said = " ".join(str(error).split())[:200]
            raise UserError(
                f"--features {INCEPTION}{weights} are no weights of torch-fidelity's Inception: {said}"
            ) from error

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, S, S] 0 to 1 -> [B, 2048]
        return self.inner((images * 255).round().clamp(0, 255).byte())[0]


def open_encoder(config: QualityConfig, sides: tuple[PictureSet, ...]) -> Encoder:
    """The encoder of --features; for grey pictures `pixels` has one value a pixel.

    Raises:
        UserError: it cannot be opened.
    """
    name = config.features
    photos = [side.photos for side in sides]
    if is_baseline(name):
        known = [each.images.shape[1] for each in photos if isinstance(each, LabelledSet)]
        size = config.image_size or (known[0] if known else PIXELS_SIZE if name == PIXELS else OTHER_SIZE)
        grey = name == PIXELS and all(map(is_grey, photos))
        try:
            network, transform = create_baseline(name, size, grey=grey, seed=config.seed)
        except UserError as error:
            raise UserError(str(error).replace("--checkpoint", "--features")) from error
        return Encoder(network, transform, [name, size, grey, config.seed if name.startswith(UNTRAINED) else None])
    if name.startswith(INCEPTION):
        path = Path(name.removeprefix(INCEPTION))
        if not path.is_file():
            raise UserError(
                f"--features {name}: there is no file {path}; give the weights that torch-fidelity publishes"
            )
        transform = InputTransform(config.image_size or 299, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        return Encoder(Inception(path), transform, [name, transform.image_size, *_stamp_of(path)])
    try:
        network, transform = load_encoder(name, config.arch)
    except UserError as error:
        raise UserError(f"--features {error}") from error
    if config.image_size and config.image_size != transform.image_size:
        raise UserError(
            f"--image-size {config.image_size}: the encoder of --features {name} takes {transform.image_size}; "
            "leave it out"
        )
    path = Path(name)
    exported = path / "exported" if (path / "exported").is_dir() else path
    files = sorted(exported.rglob("*")) if exported.is_dir() else [path] if path.is_file() else []
    return Encoder(network, transform, [name, config.arch, *[_stamp_of(file) for file in files if file.is_file()]])


def features_of_set(
    encoder: Encoder,
    pictures: PictureSet,
    out: Path,
    name: str,
    *,
    device: torch.device,
    batch_size: int,
    strict: bool,
) -> SetFeatures:
    """The features of each picture: those in out/features/NAME-*, and the rest, which are written there.

    Raises:
        UserError: none can be decoded, one cannot and strict, or a feature is not finite.
    """
    folder = out / FOLDER / f"{name}-{fingerprint([encoder.stamp, pictures.stamps()])}"
    for other in folder.parent.glob(f"{name}-*"):
        if other != folder:  # of an encoder that was trained again, or of pictures that are others now
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(_parts(folder))
    done = parts[-1][2] if parts else 0
    network = encoder.network.to(device).eval()
    title = f"features of {len(pictures):,} {name} pictures"
    found: list[NDArray[np.float32]] = []
    rows_of_part: list[int] = []
    written = time.monotonic()
    with runlog.progress(title, len(pictures), "images", start=done, show=done < len(pictures)) as bar:
        for rows, seen, inputs in _inputs(pictures, done, encoder.transform, device, batch_size):
            if strict and (lost := set(range(done, seen)) - set(rows)):
                raise UserError(f"--strict: {pictures.where(min(lost))} cannot be decoded; mend or remove it")
            with torch.inference_mode():  # float32: nearest neighbours are told apart by what bfloat16 rounds away
                found += [network(batch).float().cpu().numpy() for batch in inputs.split(batch_size) if len(batch)]
            rows_of_part += rows
            done = seen
            bar.update(done)
            if len(rows_of_part) >= PART or time.monotonic() - written > PART_SECONDS or done == len(pictures):
                x = np.concatenate(found) if found else np.zeros((0, 0), np.float32)
                parts.append((x, np.array(rows_of_part, np.int64), done))
                _write_part(folder, len(parts) - 1, *parts[-1])
                found, rows_of_part, written = [], [], time.monotonic()
    kept = np.concatenate([rows for _, rows, _ in parts]) if parts else np.zeros(0, np.int64)
    if not len(kept):
        raise UserError(f"none of the {len(pictures)} {name} pictures of {pictures.name} can be decoded")
    features = torch.from_numpy(np.concatenate([part for part, rows, _ in parts if len(rows)])).to(device)
    finite = torch.cat([rows.isfinite().all(1) for rows in features.split(PART)])
    if not finite.all():
        first = pictures.where(int(kept[int((~finite).nonzero()[0])]))
        raise UserError(
            f"--features {encoder.stamp[0]}: the features of {int((~finite).sum())} {name} pictures are not finite, "
            f"{first} first; the encoder's training has diverged, or its weights are damaged"
        )
    damaged = [pictures.where(int(row)) for row in np.setdiff1d(np.arange(len(pictures)), kept)]
    return SetFeatures(pictures.take(kept), features, damaged)


def _inputs(
    pictures: PictureSet, start: int, transform: InputTransform, device: torch.device, batch_size: int
) -> Iterator[tuple[list[int], int, Tensor]]:  # rows that could be decoded, how far we are, [B, 3, S, S]
    """What the encoder takes of a batch or more, from start on; large pictures are read few at a time."""
    if start == len(pictures):
        return
    rows: list[int] = []
    waiting: list[Tensor] = []
    seen = start
    for batch in pictures.photos.take(np.arange(start, len(pictures))).pictures(batch_size, device):
        rows += [row for row, picture in enumerate(batch, seen) if picture is not None]
        seen += len(batch)
        with torch.inference_mode():
            waiting.append(inputs_of(batch, transform, device))
        if len(rows) >= batch_size or seen == len(pictures):
            yield rows, seen, torch.cat(waiting)
            rows, waiting = [], []


def _write_part(folder: Path, number: int, x: NDArray[np.float32], rows: NDArray[np.int64], seen: int) -> None:
    data = io.BytesIO()
    np.savez(data, x=x, rows=rows, seen=seen)
    atomic.write(folder / f"{number:06}.npz", data.getvalue())


def _parts(folder: Path) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64], int]]:
    number = 0
    while (path := folder / f"{number:06}.npz").exists():
        with np.load(path) as part:
            yield part["x"], part["rows"], int(part["seen"])
        number += 1


def _stamp_of(path: Path) -> tuple[str, int, int]:
    about = path.stat()
    return path.name, about.st_size, about.st_mtime_ns
