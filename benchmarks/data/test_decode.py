"""Decoding a batch of photos: ours (a look at the structure, then DALI), DALI alone, Pillow alone, torchvision."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image

from benchmarks.record import Bench
from stablerep.data.decode import decoded
from stablerep.data.encoded import Encoded
from stablerep.data.integrity import is_whole

CASES = {"fashion": ("PNG", 32, 768), "sd15": ("JPEG", 256, 128)}
CPU = torch.device("cpu")


def photos(kind: str, size: int, count: int) -> list[NDArray[np.uint8]]:
    """Smooth pictures with some noise, as encoders like neither flat nor random ones."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        corners = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        pixels = np.asarray(corners.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
        noisy = (pixels + random.integers(-8, 9, pixels.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, kind, quality=95)
        found.append(np.frombuffer(file.getvalue(), np.uint8))
    return found


def dali(batch: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor | None]:
    (pictures,) = decoded(
        [[Encoded(each) for each in batch]], batch_size=len(batch), num_threads=1, device=CPU, deep=False
    )
    return pictures


@pytest.mark.parametrize("name", CASES)
def test_decode(bench: Bench, name: str) -> None:
    kind, size, count = CASES[name]
    batch = photos(kind, size, 8 if bench.quick else count)

    def ours() -> list[torch.Tensor | None]:
        assert all(is_whole(each) for each in batch)
        return dali(batch)

    def pillow() -> list[NDArray[np.uint8]]:
        with ThreadPoolExecutor(1) as thread:
            return list(thread.map(lambda each: np.asarray(Image.open(io.BytesIO(each.data)).convert("RGB")), batch))

    def of_torchvision() -> list[torch.Tensor]:
        return [torchvision.io.decode_image(torch.from_numpy(each.copy())) for each in batch]

    for one, other in zip(ours(), pillow(), strict=True):
        assert one is not None and np.array_equal(one.numpy(), other)
    bench.compare(
        f"decode {len(batch)} {kind} of {size}, one thread",
        "cpu",
        {
            "ours": ours,
            "DALI": lambda: dali(batch),
            "structure": lambda: all(is_whole(each) for each in batch),
            "Pillow": pillow,
            "torchvision": of_torchvision,
        },
    )
