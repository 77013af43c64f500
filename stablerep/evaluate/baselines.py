"""What a trained encoder is held against: raw pixels, and an encoder with the weights it starts from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stablerep.config import UserError
from stablerep.evaluate.config import PIXELS, UNTRAINED
from stablerep.models import InputTransform, create_encoder


class Pixels(nn.Module):
    """The picture's own values in a row."""

    def __init__(self, grey: bool) -> None:
        super().__init__()
        self.grey = grey  # one channel says it all: a third of the width, and no value counted three times

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, S, S] -> [B, S*S] or [B, 3*S*S]
        return (images[:, :1] if self.grey else images).flatten(1)


def is_baseline(checkpoint: str) -> bool:
    return checkpoint == PIXELS or checkpoint.startswith(UNTRAINED)


def create_baseline(checkpoint: str, image_size: int, *, grey: bool, seed: int) -> tuple[nn.Module, InputTransform]:
    """`pixels` (0 to 1) or `untrained:ARCH`, in the form load_encoder gives.

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


def is_grey(images: NDArray[np.uint8]) -> bool:  # [N, H, W, 3]
    return all(np.array_equal(images[..., 0], images[..., channel]) for channel in (1, 2))
