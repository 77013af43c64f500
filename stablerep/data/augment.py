"""What is done to each picture of a batch: numbers drawn from (seed, step), to be carried out by any pipeline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stablerep.config import UserError
from stablerep.data.sampling import AUGMENT, random_stream

ASPECT = (3 / 4, 4 / 3)
BLUR_SIGMA = (0.1, 2.0)  # pixels of a 224 x 224 picture; smaller pictures are blurred in proportion


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How hard pictures are augmented. As it stands: the strong augmentation of StableRep (and SimCLR)."""

    min_scale: float = 0.08
    """Smallest part of a picture's area that a random crop keeps."""

    jitter: float = 0.8
    """Probability of colour jitter."""

    jitter_strength: float = 1.0
    """Times (0.4, 0.4, 0.4, 0.1), the largest change of brightness, contrast, saturation and hue."""

    grey: float = 0.2
    """Probability of taking the colour away."""

    blur: float = 0.5
    """Probability of Gaussian blur."""

    flip: float = 0.5
    """Probability of mirroring left and right."""

    def __post_init__(self) -> None:
        for name in ("jitter", "grey", "blur", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} must be a probability from 0 to 1, got {getattr(self, name)}")
        if not 0 < self.min_scale <= 1:
            raise UserError(f"--min-scale must be above 0 and at most 1, got {self.min_scale}")
        if not 0 <= self.jitter_strength <= 2.5:
            raise UserError(f"--jitter-strength must be from 0 to 2.5, got {self.jitter_strength}")


@dataclass(frozen=True)
class Augmentation:
    """The draws for B pictures."""

    area: NDArray[np.float32]  # [B] part of the picture's area
    place: NDArray[np.float32]  # [B, 3] 0..1: aspect ratio, top, left, each within what the picture allows
    twist: NDArray[np.float32]  # [B, 3] factors of brightness, contrast, saturation; saturation 0 is grey
    hue: NDArray[np.float32]  # [B] degrees
    blur_sigma: NDArray[np.float32]  # [B] pixels
    blur_window: NDArray[np.int32]  # [B] pixels, 1 = no blur
    mirror: NDArray[np.int32]  # [B] 0 or 1


def draw(config: AugmentConfig, num_images: int, image_size: int, seed: int, step: int) -> Augmentation:
    random = random_stream(seed, AUGMENT, step)

    def uniform(low: float, high: float, *shape: int) -> NDArray[np.float32]:
        return random.uniform(low, high, (num_images, *shape)).astype(np.float32)

    jittered = random.random(num_images) < config.jitter
    grey = random.random(num_images) < config.grey
    blurred = random.random(num_images) < config.blur
    strength = 0.4 * config.jitter_strength * jittered[:, None]
    twist = (1 + strength * uniform(-1, 1, 3)).astype(np.float32)
    twist[grey, 2] = 0.0
    sigma = uniform(*BLUR_SIGMA) * np.float32(image_size / 224)
    return Augmentation(
        area=uniform(config.min_scale, 1),
        place=uniform(0, 1, 3),
        twist=twist,
        hue=(36 * config.jitter_strength * jittered * uniform(-1, 1)).astype(np.float32),  # 0.1 of the circle
        blur_sigma=sigma,
        blur_window=np.where(blurred, 2 * np.ceil(3 * sigma) + 1, 1).astype(np.int32),
        mirror=(random.random(num_images) < config.flip).astype(np.int32),
    )
