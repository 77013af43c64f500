"""Fine-tuning: the whole encoder with a linear classifier, by a short standard recipe that has nothing to choose."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stablerep import runlog
from stablerep.config import UserError
from stablerep.data.labelled import Photos
from stablerep.evaluate.augmented import augmented
from stablerep.evaluate.features import Features, features_of
from stablerep.evaluate.scores import Answer
from stablerep.models import InputTransform

BATCH_SIZE = 128
LEARNING_RATE = 1e-3  # of the classifier and the last layer; each layer before has LAYER_DECAY of the next one's
LAYER_DECAY = 0.75
WEIGHT_DECAY = 0.05
WARMUP = 0.1  # of all steps
SMOOTHING = 0.1
LEAST_AREA = 0.35  # of a crop
LARGEST_GRADIENT = 1.0


def fine_tune(
    encoder: nn.Module,
    transform: InputTransform,
    photos: Photos,
    test_photos: Photos,
    test: Features,
    *,
    epochs: int,
    seed: int,
    device: torch.device,
    batch_size: int,
) -> tuple[dict[str, Any], Answer]:
    """AdamW with a cosine, layer-wise decay of the rate, crops and flips, label smoothing. The encoder stays as it was.

    Raises:
        UserError: there is nothing to train.
    """
    if not any(True for _ in encoder.parameters()):
        raise UserError("--protocols fine-tune: --checkpoint pixels has nothing to train; leave it out")
    tuned = copy.deepcopy(encoder).requires_grad_(True).train()
    head = nn.Linear(test.x.shape[1], len(photos.class_names), device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    groups = _groups(tuned, head)
    optimiser = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.999))
    batch = min(BATCH_SIZE, len(photos))
    steps = epochs * (len(photos) // batch)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    step = 0
    with runlog.progress("fine-tuning", steps, "steps", show=True) as bar:
        for epoch in range(epochs):
            views = augmented(
                photos, transform, epoch=epoch, seed=seed, batch_size=batch, device=device, least_area=LEAST_AREA
            )
            for view in views:
                for group in optimiser.param_groups:
                    group["lr"] = LEARNING_RATE * group["lr_scale"] * _schedule(step / steps)
                with bf16:
                    scores = head(tuned(view.images.contiguous(memory_format=torch.channels_last)))
                F.cross_entropy(scores.float(), view.labels, label_smoothing=SMOOTHING).backward()
                nn.utils.clip_grad_norm_([*tuned.parameters(), *head.parameters()], LARGEST_GRADIENT)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                step += 1
                bar.update(step)
    seen = features_of(tuned, transform, test_photos, device=device, batch_size=batch_size, title="test photos, tuned")
    with torch.no_grad():
        answer = Answer.of_scores(head(seen.x))
    right = answer.named == seen.y
    return {"fine_tune_top1": 100 * right.double().mean().item(), "fine_tune_epochs": epochs}, answer


def _schedule(progress: float) -> float:
    if progress < WARMUP:
        return max(progress, 1e-3) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def _groups(encoder: nn.Module, head: nn.Module) -> list[dict[str, Any]]:
    """timm's groups of layers; decay on matrices only."""
    from timm.optim import param_groups_layer_decay

    groups: list[dict[str, Any]] = param_groups_layer_decay(encoder, WEIGHT_DECAY, layer_decay=LAYER_DECAY)
    own: list[Tensor] = list(head.parameters())
    return [*groups, {"params": own, "weight_decay": 0.0, "lr_scale": 1.0}]
