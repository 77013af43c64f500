"""What strong_augment does, in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stablerep.ops import impls

MOST_SIGMA = 8.0  # csrc/augment.h: kMostBlurRadius = 3 of them
MOST_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """As it stands: the strong augmentation of StableRep (and SimCLR), with its augmentation by downsampling."""

    image_size: int = 224
    """Height and width of the result."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest part of the picture's area that a crop keeps."""

    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width of a crop for its height."""

    flip: float = 0.5
    """Probability of mirroring left and right."""

    jitter: float = 0.8
    """Probability of the four changes of colour, in random order."""

    brightness: float = 0.4
    """Its factor lies within 1 - this and 1 + this, but not below 0; so for contrast and saturation."""

    contrast: float = 0.4

    saturation: float = 0.4

    hue: float = 0.1
    """The hue turns by at most this part of the circle, either way."""

    grey: float = 0.2
    """Probability of taking the colour away."""

    blur: float = 0.5
    """Probability of Gaussian blur."""

    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Its smallest and largest sigma in pixels of the result."""

    downsample: float = 0.05
    """Probability that the picture, before its crop, is brought to a short side of `downsample_sizes` and back."""

    downsample_sizes: tuple[int, int] = (64, 128)
    """One of them, each as likely. A picture that is not larger stays as it is."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue, 0 to 1: taken from the colours; ImageNet's."""

    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """What the colours are divided by."""

    dtype: torch.dtype = torch.float32
    """Of the result: float32, bfloat16 or float16."""

    seed: int = 0
    """Of everything drawn, 0 to 2^64 - 1."""

    def __post_init__(self) -> None:
        def check(name: str, fits: bool, wanted: str) -> None:
            if not fits:
                raise ValueError(f"AugmentSpec: {name} must be {wanted}, got {getattr(self, name)}")

        check("image_size", 1 <= self.image_size <= MOST_SIZE, f"from 1 to {MOST_SIZE}")
        check("scale", _is_range(self.scale, 0, 1), "two numbers above 0 and at most 1, the smaller first")
        check("ratio", _is_range(self.ratio, 0, 1e4) and self.ratio[0] >= 1e-4, "two numbers from 1e-4 to 1e4")
        for name in ("flip", "jitter", "grey", "blur", "downsample"):
            check(name, 0 <= getattr(self, name) <= 1, "a probability from 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            check(name, 0 <= getattr(self, name) < math.inf, "at least 0")
        check("hue", 0 <= self.hue <= 0.5, "from 0 to 0.5")
        check("blur_sigma", _is_range(self.blur_sigma, 0, MOST_SIGMA), f"two numbers above 0, at most {MOST_SIGMA}")
        sizes = self.downsample_sizes
        check("downsample_sizes", len(sizes) == 2 and all(1 <= size < 2**31 for size in sizes), "two sizes from 1 on")
        check("mean", len(self.mean) == 3 and all(map(math.isfinite, self.mean)), "three numbers")
        check("std", len(self.std) == 3 and all(0 < value < math.inf for value in self.std), "three numbers above 0")
        check("dtype", self.dtype in impls.DTYPES, "float32, bfloat16 or float16")
        check("seed", 0 <= self.seed < 2**64, "from 0 to 2^64 - 1")

    def numbers(self) -> list[float]:
        """All but dtype and seed, in the order of csrc/augment.h: what crosses into native code."""
        return [
            float(value)
            for value in (
                self.image_size, *self.scale, *self.ratio, *self.log_ratio,
                self.flip, self.jitter, self.brightness, self.contrast, self.saturation, self.hue,
                self.grey, self.blur, *self.blur_sigma, self.downsample, *self.downsample_sizes,
                *self.mean, *self.std,
            )
        ]  # fmt: skip

    @classmethod
    def from_numbers(cls, n: Sequence[float], dtype: torch.dtype, seed: int) -> AugmentSpec:
        return cls(
            image_size=int(n[0]), scale=(n[1], n[2]), ratio=(n[3], n[4]),
            flip=n[7], jitter=n[8], brightness=n[9], contrast=n[10], saturation=n[11], hue=n[12],
            grey=n[13], blur=n[14], blur_sigma=(n[15], n[16]), downsample=n[17],
            downsample_sizes=(int(n[18]), int(n[19])), mean=(n[20], n[21], n[22]), std=(n[23], n[24], n[25]),
            dtype=dtype, seed=seed,
        )  # fmt: skip

    @property
    def log_ratio(self) -> tuple[float, float]:
        return math.log(self.ratio[0]), math.log(self.ratio[1])


def _is_range(pair: tuple[float, float], above: float, most: float) -> bool:
    return len(pair) == 2 and above < pair[0] <= pair[1] <= most
