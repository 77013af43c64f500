"""Features of a frozen encoder, and of what a trained one is compared with: raw pixels and untrained weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stablerep import runlog
from stablerep.config import UserError
from stablerep.evaluate.config import PIXELS, UNTRAINED
from stablerep.models import InputTransform, create_encoder


def features_of(
    encoder: nn.Module,
    transform: Callable[[Tensor], Tensor],  # uint8 [B, H, W, 3] -> float [B, 3, S, S]
    images: Tensor,  # [N, H, W, 3] uint8 in host memory
    *,
    device: torch.device,
    batch_size: int = 256,
    title: str = "features",
    show: bool = True,
) -> Tensor:  # [N, D] float32 on the device
    """The features of each picture. bfloat16 on CUDA, float32 elsewhere.

    The encoder is left on the device, in eval mode.
    """
    encoder = encoder.to(device).to(memory_format=torch.channels_last).eval()
    features: Tensor | None = None
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    with runlog.progress(title, len(images), "images", show=show) as bar:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(device)
            with torch.inference_mode(), bf16:
                rows = encoder(transform(batch).contiguous(memory_format=torch.channels_last))
            if features is None:  # made outside inference mode: the probes take gradients through it
                features = torch.empty(len(images), rows.shape[1], device=device)
            features[start : start + len(rows)] = rows
            bar.update(start + len(rows))
    assert features is not None, "no images"
    return features


def standardiser(x: Tensor) -> tuple[Tensor, Tensor]:  # [N, D] -> [D] shift, [D] scale
    """(x - shift) * scale has mean 0 and deviation 1 in each column; a constant column becomes 0.

    The same as a BatchNorm without weights that has seen all of x.
    """
    shift, deviation = x.mean(0), x.std(0, unbiased=False)
    constant = deviation <= 1e-6 * x.abs().amax(0)  # rounding leaves a little deviation in a constant column
    return shift, torch.where(constant, 0.0, 1.0 / deviation)


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


def is_grey(images: NDArray[np.uint8]) -> bool:  # [N, H, W, 3]
    return all(np.array_equal(images[..., 0], images[..., channel]) for channel in (1, 2))
