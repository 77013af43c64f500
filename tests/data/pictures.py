"""Small picture sets to read, made for the test that reads them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stablerep.shards import Picture, Sample, start_dataset, write_shard


def encode(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def random_pixels(seed: int, height: int = 32, width: int = 32) -> NDArray[np.uint8]:
    """A smooth picture of its own colours, so that two pictures never look alike."""
    corners = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR))


def write_folder(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:03}.png").write_bytes(encode(random_pixels(number)))
    return folder


def write_shards(out: Path, prompts: int, per_prompt: int, rejected: set[tuple[int, int]] = frozenset()) -> Path:  # type: ignore[assignment]
    """Two shards of prompts with ids 100, 101, ..., each picture of another colour."""
    start_dataset(out, {"num_images_per_prompt": per_prompt})
    half = (prompts + 1) // 2
    for shard, ids in enumerate([range(half), range(half, prompts)]):
        samples = []
        for prompt in ids:
            pictures = [
                Picture(k, encode(random_pixels(1000 * prompt + k)), {"kept": (prompt, k) not in rejected})
                for k in range(per_prompt)
            ]
            samples.append(Sample(100 + prompt, f"prompt {prompt}", "png", pictures))
        write_shard(out, shard, samples)
    return out
