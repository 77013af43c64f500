"""Training as people write it for themselves: ImageFolder, torchvision's v2 transforms in workers, timm, N x N scores.

And SimCLR of the lightly library by the example in its documentation, where that library is installed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from stablerep.ops.contrastive import reference

WORKERS = 2


@dataclass(frozen=True)
class Recipe:
    """What all loops of a case share."""

    folder: Path  # PROMPT/*.jpg
    arch: str
    image_size: int
    batch_size: int
    views: int  # pictures of a prompt in a batch
    steps: int  # that are measured, after as many that are not
    device: str
    bf16: bool = False
    workers: int = WORKERS
    lr: float = 1e-4
    temperature: float = 0.1
    head_hidden: int = 4096
    head_out: int = 256


class PromptBatches:
    """Batches of `views` pictures of each of some prompts."""

    def __init__(self, targets: list[int], recipe: Recipe, batches: int) -> None:
        self._rows: dict[int, list[int]] = {}
        for row, target in enumerate(targets):
            self._rows.setdefault(target, []).append(row)
        self._recipe, self._batches = recipe, batches

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        prompts, views = self._recipe.batch_size // self._recipe.views, self._recipe.views
        for _ in range(self._batches):
            chosen = random.sample(sorted(self._rows), prompts)
            yield [row for prompt in chosen for row in random.sample(self._rows[prompt], views)]


def augmentation(size: int) -> v2.Compose:
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(size // 20 * 2 + 1, (0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def create_encoder(recipe: Recipe) -> nn.Module:
    options: dict[str, Any] = {"img_size": recipe.image_size} if recipe.arch.split("_")[-1].isdigit() else {}
    return timm.create_model(recipe.arch, num_classes=0, **options)


def multi_positive(recipe: Recipe, *, compiled: bool) -> float:
    """Milliseconds of a step."""
    dataset = ImageFolder(str(recipe.folder), augmentation(recipe.image_size))
    encoder = create_encoder(recipe)
    hidden = recipe.head_hidden
    head = nn.Sequential(
        nn.Linear(encoder.num_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, recipe.head_out),
    )  # fmt: skip
    model = nn.Sequential(encoder, head).to(recipe.device)
    forward: Any = torch.compile(model) if compiled else model

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = (each.to(recipe.device, non_blocking=True) for each in batch)
        with torch.autocast(recipe.device, torch.bfloat16, enabled=recipe.bf16):
            rows = forward(images)
        return reference.multi_positive_loss(rows.float(), labels, recipe.temperature)

    batches = PromptBatches(dataset.targets, recipe, 2 * recipe.steps)
    return _milliseconds(recipe, dataset, {"batch_sampler": batches}, model, loss)


def lightly_simclr(recipe: Recipe) -> float:
    """Milliseconds of a step of as many pictures: two views of half as many photos."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=recipe.image_size, gaussian_blur=0.5, cj_strength=0.5)
    dataset = ImageFolder(str(recipe.folder), transform)
    encoder = create_encoder(recipe)
    head = SimCLRProjectionHead(encoder.num_features, recipe.head_hidden, recipe.head_out, num_layers=3)
    model = nn.Sequential(encoder, head).to(recipe.device)
    criterion = NTXentLoss(temperature=recipe.temperature)

    def loss(batch: Any) -> Tensor:
        (one, other), _ = batch
        with torch.autocast(recipe.device, torch.bfloat16, enabled=recipe.bf16):
            rows = [model(view.to(recipe.device, non_blocking=True)) for view in (one, other)]
        return criterion(*rows)

    options = {"batch_size": recipe.batch_size // 2, "shuffle": True, "drop_last": True}
    return _milliseconds(recipe, dataset, options, model, loss)


def _milliseconds(
    recipe: Recipe, dataset: Dataset[Any], batches: dict[str, Any], model: nn.Module, loss: Callable[[Any], Tensor]
) -> float:
    loader = DataLoader(
        dataset, num_workers=recipe.workers, pin_memory=recipe.device == "cuda",
        persistent_workers=recipe.workers > 0, **batches,
    )  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.1)
    done, start = 0, 0.0
    model.train()
    while True:  # as many epochs as the steps take
        for batch in loader:
            optimiser.zero_grad()
            value = loss(batch)
            value.backward()
            optimiser.step()
            done += 1
            if done % recipe.steps == 0:
                assert value.item() == value.item(), "the loss is NaN"  # people log; it also waits for the device
                if done == 2 * recipe.steps:
                    return (time.perf_counter() - start) * 1e3 / recipe.steps
                start = time.perf_counter()
