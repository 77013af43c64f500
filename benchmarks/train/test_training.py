"""Whole training steps with their data: ours, a loop as people write it, that loop compiled, lightly's SimCLR.

Each takes turns of its own: a turn opens the data, trains as many steps as are then measured (compiles, fills queues),
measures, and closes everything, so that no loader works ahead during another one's turn.
"""

from __future__ import annotations

import importlib.util
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.record import Bench
from benchmarks.train import plain_loop
from benchmarks.train.plain_loop import Recipe
from stablerep.data.loader import Batch
from stablerep.shards import Picture, Sample, start_dataset, write_shard
from stablerep.train import loop
from stablerep.train.config import TrainConfig
from stablerep.train.initial import Initial
from stablerep.train.metrics import metrics_of

PROMPTS, PER_PROMPT, SIDE = 200, 10, 256
TURNS = {"cpu": 5, "cuda": 2}  # make gpu-check grants a check three minutes
CHUNKS = 6  # of the resident case
# Device, arch, image size, batch size, measured steps.
CASES = [
    ("cpu", "vit_small_patch16_224", 64, 96, 3),
    ("cpu", "resnet18", 32, 192, 8),
    ("cuda", "vit_base_patch16_224", 224, 384, 12),
]


@dataclass(frozen=True)
class Photos:
    folder: Path  # PROMPT/*.jpg
    shards: Path


@pytest.fixture(scope="session")
def photos(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """2,000 JPEG pictures of 256 x 256 with edges and texture, as shards and as folders."""
    return write_photos(tmp_path_factory.mktemp("photos"), prompts=8 if bench.quick else PROMPTS)


def write_photos(root: Path, prompts: int) -> Photos:
    photos = Photos(root / "folder", root / "shards")
    start_dataset(photos.shards, {"num_images_per_prompt": PER_PROMPT})
    samples = []
    for prompt in range(prompts):
        folder = photos.folder / f"{prompt:04}"
        folder.mkdir(parents=True)
        pictures = []
        for number in range(PER_PROMPT):
            data = _jpeg(prompt * PER_PROMPT + number)
            (folder / f"{number}.jpg").write_bytes(data)
            pictures.append(Picture(number, data, {"kept": True}))
        samples.append(Sample(prompt, f"a photo of number {prompt}", "jpg", pictures))
    write_shard(photos.shards, 0, samples)
    return photos


def _jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed)
    coarse = Image.fromarray(noise.integers(0, 255, (16, 16, 3), dtype=np.uint8)).resize((SIDE, SIDE))
    texture = noise.normal(0, 12, (SIDE, SIDE, 1))
    file = io.BytesIO()
    Image.fromarray((np.asarray(coarse) + texture).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def ours(recipe: Recipe, shards: Path) -> float:
    """Milliseconds of a step of `train()`, by its own metrics."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(recipe, shards, Path(folder, "run"))
        loop.train(config)
        return _last_ms(recipe, Path(folder, "run"))


def config_of(recipe: Recipe, shards: Path, out: Path) -> TrainConfig:
    same = {name: getattr(recipe, name) for name in ("arch", "image_size", "batch_size", "head_hidden", "head_out")}
    return TrainConfig(
        data=(str(shards),), out=out, views_per_prompt=recipe.views, temperature=recipe.temperature,
        steps=2 * recipe.steps, log_every=recipe.steps, checkpoint_every=2 * recipe.steps, device=recipe.device,
        precision="bf16" if recipe.bf16 else "fp32", **same,
    )  # fmt: skip


def _last_ms(recipe: Recipe, out: Path) -> float:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return recipe.batch_size * 1e3 / lines[-1]["images_per_second"]


def measured(bench: Bench, case: str, device: str, turns: dict[str, Callable[[], float]], batch_size: int) -> None:
    """Let the loops take turns, keep milliseconds a step, and print pictures a second."""
    samples: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(1 if bench.quick else TURNS[device]):
        for name, turn in turns.items():
            samples[name].append(turn())
    bench.keep(case, device, samples)
    for name, values in samples.items():
        print(f"    {case}, {name}: {batch_size * 1e3 / statistics.median(values):,.0f} images/s")


@pytest.mark.parametrize(("device", "arch", "image_size", "batch_size", "steps"), CASES)
def test_steps_with_data(
    bench: Bench, photos: Photos, device: str, arch: str, image_size: int, batch_size: int, steps: int
) -> None:
    recipe = recipe_of(bench, photos, device, arch, image_size, batch_size, steps)
    turns: dict[str, Callable[[], float]] = {
        "stablerep": lambda: ours(recipe, photos.shards),
        "plain PyTorch": lambda: plain_loop.multi_positive(recipe, compiled=False),
    }
    if not bench.quick:
        turns["plain PyTorch, torch.compile"] = lambda: plain_loop.multi_positive(recipe, compiled=True)
    if importlib.util.find_spec("lightly"):
        turns["lightly SimCLR"] = lambda: plain_loop.lightly_simclr(recipe)
    measured(
        bench, f"training {arch} at {recipe.image_size}, batch {recipe.batch_size}", device, turns, recipe.batch_size
    )


def recipe_of(
    bench: Bench, photos: Photos, device: str, arch: str, image_size: int, batch_size: int, steps: int
) -> Recipe:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    if bench.quick:
        tiny = {"test_vit": 160} if "vit" in arch else {"test_resnet": 32}
        ((arch, image_size),) = tiny.items()
        few: dict[str, Any] = {"workers": 0, "head_hidden": 16, "head_out": 8}
        return Recipe(photos.folder, arch, image_size, 12, 6, 1, device, **few)
    return Recipe(
        photos.folder, arch, image_size, batch_size, 6, steps, device, bf16=device == "cuda",
        workers=16 if device == "cuda" else plain_loop.WORKERS,
    )  # fmt: skip


class Interleaved:
    """A batch that lies on the device, as loop.run takes its data; every few steps it times as many of `bare`'s.

    So ours and the bare ones are neighbours, and a loaded machine slows both.
    """

    steps_per_epoch = 1.0

    def __init__(self, recipe: Recipe, chunk: int, bare: Callable[[Batch], None]) -> None:
        shape = (recipe.batch_size, 3, recipe.image_size, recipe.image_size)
        images = torch.randn(shape, device=recipe.device).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(recipe.batch_size, device=recipe.device) // recipe.views
        self._batch, self._chunk, self._bare, self._device = Batch(images, labels), chunk, bare, recipe.device
        self.ours_ms: list[float] = []  # a step, of each chunk
        self.bare_ms: list[float] = []

    @contextmanager
    def batches(self, *_: Any, first_step: int, last_step: int) -> Iterator[Iterator[Batch]]:
        yield self._batches(last_step - first_step)

    def _batches(self, steps: int) -> Iterator[Batch]:
        for _ in range(steps // self._chunk):
            start = self._now()
            for _ in range(self._chunk):
                self._bare(self._batch)
            middle = self._now()
            for _ in range(self._chunk):
                yield self._batch
            self.ours_ms.append((self._now() - middle) * 1e3 / self._chunk)
            self.bare_ms.append((middle - start) * 1e3 / self._chunk)

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def fingerprint(self) -> str:
        return "resident"

    def drain(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(("device", "arch", "image_size", "batch_size", "steps"), CASES)
def test_what_the_loop_adds(
    bench: Bench, photos: Photos, device: str, arch: str, image_size: int, batch_size: int, steps: int, tmp_path: Path
) -> None:
    """Our loop (metrics, learning rate, guard against what is not finite) against the bare step of the same model.

    With a log line every few steps, where a run has ten: more than it will cost.
    """
    recipe = recipe_of(bench, photos, device, arch, image_size, batch_size, steps)
    where, chunks = torch.device(device), 1 if bench.quick else CHUNKS
    config = config_of(recipe, photos.shards, tmp_path / "run")
    config = replace(config, steps=(1 + chunks) * steps, log_every=steps, checkpoint_every=10**9)
    bare_model, bare_optimiser = loop.build(config, where)

    def bare(batch: Batch) -> None:
        bare_model(batch).backward()
        bare_optimiser.step()
        bare_optimiser.zero_grad()

    data = Interleaved(recipe, steps, bare)
    model, optimiser = loop.build(config, where)
    metrics = metrics_of(config, model, where)
    loop.run(config, data, model, optimiser, where, Initial(), metrics)  # type: ignore[arg-type]
    case = f"training loop {arch} at {recipe.image_size}, batch {recipe.batch_size}, resident data"
    samples = {"stablerep": data.ours_ms[1:], "forward, backward, AdamW": data.bare_ms[1:]}
    bench.keep(case, device, samples)
    shares = [ours / bare for ours, bare in zip(*samples.values(), strict=True)]
    print(f"    {case}: {statistics.median(shares) - 1:+.1%} of a bare step's time")
