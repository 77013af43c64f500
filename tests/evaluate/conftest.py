"""Real features to probe: small pictures of real photos."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from stablerep.data.labelled import draw, fashion_mnist
from stablerep.evaluate.features import Pixels, features_of
from stablerep.models import InputTransform


@dataclass(frozen=True)
class Problem:
    train_x: Tensor  # [1000, 256]
    train_y: Tensor
    test_x: Tensor  # [1000, 256]
    test_y: Tensor


@pytest.fixture(scope="session")
def problem() -> Problem:
    """Fashion-MNIST's pixels at 16 x 16; both halves are of its test photos, which load sooner."""
    photos = draw(fashion_mnist("test"), 2000, seed=3)
    pixels = InputTransform(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    found = features_of(Pixels(True), pixels, photos, device=torch.device("cpu"), show=False)
    return Problem(found.x[:1000], found.y[:1000], found.x[1000:], found.y[1000:])
