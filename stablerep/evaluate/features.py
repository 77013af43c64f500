"""Features of a frozen encoder, and of what a trained one is compared with: raw pixels and untrained weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stablerep import runlog
from stablerep.config import UserError
from stablerep.data.labelled import LabelledFiles, Photos
from stablerep.evaluate.config import PIXELS, UNTRAINED
from stablerep.models import InputTransform, create_encoder

GREY_BATCH = 256  # photos looked at together


@dataclass(frozen=True)
class Features:
    """The features of those photos that could be decoded."""

    x: Tensor  # [N, D] float32 on the device; of a large set float16 in a file
    y: Tensor  # [N] int64 on the device
    left_out: NDArray[np.int64]  # rows of the photos that could not be decoded
    from_cache: bool = False


def features_of(
    encoder: nn.Module,
    transform: InputTransform,
    photos: Photos,
    *,
    device: torch.device,
    batch_size: int = 256,
    title: str = "features",
    show: bool = True,
    strict: bool = False,
    allocate: Callable[[int, int], Tensor] | None = None,
) -> Features:
    """The features of each photo. bfloat16 on CUDA, float32 elsewhere.

    allocate gives what they are written to: [photos, width] of any float type, anywhere; else float32 on the device.

    Photos of one size are made square as the transform says; of others the middle is cut out first, at the size that
    the transform wants. The encoder is left on the device, in eval mode.

    Raises:
        UserError: a photo cannot be decoded and strict, or none can.
    """
    encoder = encoder.to(device).to(memory_format=torch.channels_last).eval()
    features: Tensor | None = None
    left_out: list[int] = []
    done = 0
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    with runlog.progress(title, len(photos), "images", show=show) as bar:
        for images in _batches(photos, transform, device, batch_size, strict, left_out):
            with torch.inference_mode(), bf16:
                rows = encoder(images.contiguous(memory_format=torch.channels_last))
            if features is None:  # made outside inference mode: the probes take gradients through it
                features = (allocate or _on(device))(len(photos), rows.shape[1])
            features[done : done + len(rows)] = rows
            done += len(rows)
            bar.update(done + len(left_out))
    if features is None:
        raise UserError(f"none of {len(photos)} photos can be decoded" if len(photos) else "there are no photos")
    kept = np.setdiff1d(np.arange(len(photos)), left_out)
    return Features(features[:done], torch.from_numpy(photos.labels[kept]).to(device), np.array(left_out, np.int64))


def _on(device: torch.device) -> Callable[[int, int], Tensor]:
    return lambda rows, width: torch.empty(rows, width, device=device)


def _batches(
    photos: Photos, transform: InputTransform, device: torch.device, batch_size: int, strict: bool, left_out: list[int]
) -> Iterator[Tensor]:  # [B, 3, S, S]
    """What the encoder takes of batch_size photos at once, of which large ones are decoded few at a time.

    left_out gets the rows of those that cannot be decoded.
    """
    inputs: list[Tensor] = []
    start = 0
    for pictures in photos.pictures(batch_size, device):
        if not isinstance(pictures, Tensor):
            left_out += _damaged(pictures, photos, start, strict)
        start += len(pictures)
        with torch.inference_mode():
            inputs.append(inputs_of(pictures, transform, device))
        if sum(map(len, inputs)) >= batch_size or start == len(photos):
            images = torch.cat(inputs)
            yield from images.split(batch_size) if len(images) else ()
            inputs = []


def inputs_of(
    pictures: Tensor | list[Tensor | None],  # uint8 [B, H, W, 3], or [H_i, W_i, 3] each
    transform: InputTransform,
    device: torch.device,
) -> Tensor:  # [B', 3, S, S] float, without those that are None
    if isinstance(pictures, Tensor):
        return transform(pictures.to(device))
    squares = [_middle(picture, transform) for picture in pictures if picture is not None]
    if not squares:
        return torch.empty(0, 3, transform.image_size, transform.image_size, device=device)
    return replace(transform, crop_pct=1.0)(torch.stack(squares).to(device))


def _middle(picture: Tensor, transform: InputTransform) -> Tensor:  # uint8 [H, W, 3] -> uint8 [S, S, 3]
    """What timm's evaluation shows of a photo: the short side brought to S / crop_pct, the middle cut out."""
    height, width, _ = picture.shape
    size = replace(transform, crop_mode="center").resized(height, width)
    pixels = picture.permute(2, 0, 1)[None]
    if size != (height, width):
        if picture.is_cuda:  # no kernel there takes uint8
            pixels = pixels.float()
        pixels = functional.interpolate(pixels, size, mode=transform.interpolation, antialias=True)
        if picture.is_cuda:
            pixels = pixels.round().clamp(0, 255).byte()
    top, left = (round((side - transform.image_size) / 2) for side in size)
    middle = pixels[0, :, top : top + transform.image_size, left : left + transform.image_size]
    return middle.permute(1, 2, 0)


def _damaged(pictures: list[Tensor | None], photos: Photos, start: int, strict: bool) -> list[int]:
    damaged = [row for row, picture in enumerate(pictures, start) if picture is None]
    if damaged and strict:
        raise_strict(photos, damaged[0])
    return damaged


def raise_strict(photos: Photos, row: int) -> NoReturn:
    assert isinstance(photos, LabelledFiles)
    raise UserError(f"--strict: {photos.where(row)} cannot be decoded; mend or remove it")


class Pixels(nn.Module):
    """The values of a picture as its features."""

    def __init__(self, grey: bool) -> None:
        super().__init__()
        self.grey = grey  # one channel of three equal ones: a third of the width, and no value counted three times

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, S, S] -> [B, S*S] or [B, 3*S*S]
        return (images[:, :1] if self.grey else images).flatten(1)


def is_baseline(checkpoint: str) -> bool:
    return checkpoint == PIXELS or checkpoint.startswith(UNTRAINED)


def create_baseline(checkpoint: str, image_size: int, *, grey: bool, seed: int) -> tuple[nn.Module, InputTransform]:
    """`pixels` (0 to 1) or `untrained:ARCH`, as load_encoder gives them.

    Raises:
        UserError: timm has no such ARCH, or it cannot take that size.
    """
    if checkpoint == PIXELS:
        return Pixels(grey), InputTransform(image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return create_encoder(checkpoint.removeprefix(UNTRAINED), image_size), InputTransform(image_size)
        except UserError as error:
            raise UserError(f"--checkpoint {checkpoint}: {error}") from error


def is_grey(photos: Photos) -> bool:
    """Whether the three channels of every photo that can be decoded are one."""
    return all(
        torch.equal(picture[..., :1].expand_as(picture), picture)
        for batch in photos.pictures(GREY_BATCH, torch.device("cpu"))
        for picture in batch
        if picture is not None
    )
