"""Real features to probe: small pictures of real photos."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from stablerep.data.labelled import load_labelled
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
    photos = load_labelled("fashion-mnist", "test", 32, max_images=2000, seed=3)
    pixels = InputTransform(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    x = features_of(Pixels(True), pixels, torch.from_numpy(photos.images), device=torch.device("cpu"), show=False)
    y = torch.from_numpy(photos.labels)
    return Problem(x[:1000], y[:1000], x[1000:], y[1000:])
