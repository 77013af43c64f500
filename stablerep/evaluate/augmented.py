"""The linear probe with augmentation: random resized crops and flips through the frozen encoder, each epoch anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stablerep import ops, runlog
from stablerep.data.labelled import Photos
from stablerep.evaluate import linear
from stablerep.evaluate.features import Features
from stablerep.evaluate.folds import Answers, draw_folds
from stablerep.evaluate.scores import Answer
from stablerep.evaluate.standard import standardiser
from stablerep.models import InputTransform

LEAST_AREA = 0.08  # of a crop, as in training on ImageNet


@dataclass(frozen=True)
class Views:
    """Augmented pictures of some photos."""

    images: Tensor  # [B, 3, S, S]
    rows: Tensor  # [B] int64, of the photos
    labels: Tensor  # [B] int64


def augmented(
    photos: Photos,
    transform: InputTransform,
    *,
    epoch: int,
    seed: int,
    batch_size: int,
    device: torch.device,
    least_area: float = LEAST_AREA,
) -> Iterator[Views]:
    """All photos once, in an order of the epoch's own, each as a random resized crop that may be mirrored.

    Whole batches only; photos that cannot be decoded are passed over.
    """
    spec = ops.AugmentSpec(
        image_size=transform.image_size, scale=(least_area, 1.0), jitter=0.0, grey=0.0, blur=0.0, downsample=0.0,
        mean=transform.mean, std=transform.std, seed=seed,
    )  # fmt: skip
    order = np.random.default_rng((seed, epoch)).permutation(len(photos))
    parts: list[tuple[Tensor, Tensor]] = []
    start = 0
    for pictures in photos.take(order).pictures(batch_size, device):
        rows = order[start : start + len(pictures)]
        start += len(pictures)
        whole = [(picture, row) for picture, row in zip(pictures, rows, strict=True) if picture is not None]
        if whole:
            number = torch.from_numpy(np.array([row for _, row in whole]))
            keys = torch.stack([torch.full_like(number, epoch), number, torch.zeros_like(number)], 1)
            views = ops.strong_augment([picture.contiguous().to(device) for picture, _ in whole], keys.to(device), spec)
            parts.append((views, number.to(device)))
        if sum(len(each) for _, each in parts) >= batch_size:
            images, number = (torch.cat(each) for each in zip(*parts, strict=True))
            labels = torch.from_numpy(photos.labels).to(device)[number]
            yield Views(images[:batch_size], number[:batch_size], labels[:batch_size])
            parts = [(images[batch_size:], number[batch_size:])]


def linear_augmented(
    encoder: nn.Module,
    transform: InputTransform,
    photos: Photos,
    train: Features,
    test: Features,
    *,
    epochs: int,
    seed: int,
    device: torch.device,
) -> tuple[dict[str, Any], Answer]:
    """Two sets of classifiers in one pass over the augmented photos: one has not seen a fold, on which the rate is
    chosen; the other has seen all and gives the answer. Photos are asked as they are, without augmentation."""
    classes, rates = len(photos.class_names), linear.LEARNING_RATES
    photos = photos.take(np.setdiff1d(np.arange(len(photos)), train.left_out))  # rows as those of the features
    fold = draw_folds(photos.labels, seed, device)[0]
    seen = torch.ones(2, len(photos), device=device)
    seen[0, fold.held] = 0
    batch = min(linear.BATCH_SIZE, len(photos))
    shift, scale = standardiser(train.x)
    descent = linear.Descent(2, classes, rates, train.x.shape[1], batch, device)
    steps = epochs * (len(photos) // batch)
    step = 0
    encoder.eval()
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    with runlog.progress("linear probe, augmented", steps, "steps", show=True) as bar:
        for epoch in range(epochs):
            for views in augmented(photos, transform, epoch=epoch, seed=seed, batch_size=batch, device=device):
                with torch.inference_mode(), bf16:
                    x = encoder(views.images.contiguous(memory_format=torch.channels_last)).float()
                inputs = torch.cat([(x - shift) * scale, torch.ones_like(x[:, :1])], 1).expand(2, -1, -1)
                descent.step(inputs, views.labels.expand(2, -1), step / steps, seen[:, views.rows])
                step += 1
                bar.update(step)
    without, whole = descent.probes(shift, scale)
    tried = Answers(len(photos), len(rates), device)
    tried.add(fold.held, without.right(train.x[fold.held], train.y[fold.held]))
    chosen = tried.best_of_curve()
    final = whole.of_rate(chosen)
    answer = Answer.of_scores(torch.cat([final.scores(rows)[0] for rows in test.x.split(linear.BLOCK)]))
    right = answer.named == test.y
    return {
        "linear_augmented_top1": 100 * right.double().mean().item(), "linear_augmented_lr": rates[chosen]
    }, answer  # fmt: skip
