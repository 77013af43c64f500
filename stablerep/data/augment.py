"""How hard pictures are augmented: flags, and what they mean to stablerep.ops.strong_augment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stablerep.config import UserError, flag_of

if TYPE_CHECKING:
    from stablerep.ops import AugmentSpec

BLUR_SIGMA = (0.1, 2.0)  # pixels of a 224 x 224 picture; others are blurred in proportion


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

    downsample: float = 0.05
    """Probability that a picture is brought to a short side of 64 or 128 pixels and back; smaller ones never are."""

    def __post_init__(self) -> None:
        for name in ("jitter", "grey", "blur", "flip", "downsample"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{flag_of(name)} must be a probability from 0 to 1, got {getattr(self, name)}")
        if not 0 < self.min_scale <= 1:
            raise UserError(f"--min-scale must be above 0 and at most 1, got {self.min_scale}")
        if not 0 <= self.jitter_strength <= 2.5:
            raise UserError(f"--jitter-strength must be from 0 to 2.5, got {self.jitter_strength}")

    def spec(
        self, image_size: int, mean: tuple[float, float, float], std: tuple[float, float, float], seed: int
    ) -> AugmentSpec:
        """Blur is in proportion to image_size."""
        from stablerep.ops.strong_augment.spec import MOST_SIGMA, AugmentSpec  # torch: flags are read without it

        strength, blur = 0.4 * self.jitter_strength, image_size / 224
        return AugmentSpec(
            image_size=image_size, scale=(self.min_scale, 1.0), flip=self.flip, jitter=self.jitter,
            brightness=strength, contrast=strength, saturation=strength, hue=strength / 4, grey=self.grey,
            blur=self.blur, blur_sigma=(BLUR_SIGMA[0] * blur, min(BLUR_SIGMA[1] * blur, MOST_SIGMA)),
            downsample=self.downsample, mean=mean, std=std, seed=seed,
        )  # fmt: skip
