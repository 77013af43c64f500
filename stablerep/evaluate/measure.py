"""All protocols that an evaluation asks for, each handed what it needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from stablerep.data.labelled import Photos
from stablerep.evaluate import anomaly, augmented, few_shot, fine_tune, logistic, retrieval, zero_shot
from stablerep.evaluate.config import EvaluateConfig, parse_few_shot
from stablerep.evaluate.features import Features
from stablerep.evaluate.folds import draw_folds
from stablerep.evaluate.probes import Probed, probe
from stablerep.models import InputTransform


@dataclass(frozen=True)
class Question:
    config: EvaluateConfig
    encoder: nn.Module
    transform: InputTransform
    train_photos: Photos
    test_photos: Photos
    train: Features
    test: Features
    device: torch.device


def measure(question: Question) -> Probed:
    """The numbers of results.json and the answers of each probe.

    Raises:
        UserError: the data is not what a protocol needs.
    """
    config, names = question.config, question.train_photos.class_names
    asked = config.protocol_names
    features = (question.train.x, question.train.y, question.test.x, question.test.y)
    probed = probe(*features, asked, seed=config.seed, epochs=config.epochs, batch_norm=config.batch_norm, show=True)
    numbers, answers = dict(probed.numbers), dict(probed.answers)
    if config.few_shot:
        way, shot = parse_few_shot(config.few_shot)
        mean, interval = few_shot.episodes(*features, names, way, shot, seed=config.seed)
        numbers |= {"few_shot_episodes": {"way": way, "shot": shot, "top1": mean, "ci95": interval}}
    if "logistic" in asked:
        fold = draw_folds(question.train.y.cpu().numpy(), config.seed, question.device)[0]
        found, answers["logistic"] = logistic.transfer(*features, len(names), fold)
        numbers |= found
    if "retrieval" in asked:
        numbers |= retrieval.retrieve(*features, seed=config.seed)
    if "zero-shot" in asked:
        exported = zero_shot.exported_folder(config.checkpoint)
        templates = zero_shot.read_templates(config.templates)
        answers["zero-shot"] = zero_shot.name_by_text(question.test.x, names, exported, templates)
        right = answers["zero-shot"].named == question.test.y
        numbers |= {"zero_shot_top1": 100 * right.double().mean().item()}
    if "anomaly" in asked:
        numbers |= anomaly.score_anomalies(*features, names)
    if "linear-augmented" in asked:
        found, answers["linear-augmented"] = augmented.linear_augmented(
            question.encoder, question.transform, question.train_photos, question.train, question.test,
            epochs=config.epochs, seed=config.seed, device=question.device,
        )  # fmt: skip
        numbers |= found
    if "fine-tune" in asked:
        found, answers["fine-tune"] = fine_tune.fine_tune(
            question.encoder, question.transform, question.train_photos, question.test_photos, question.test,
            epochs=config.fine_tune_epochs, seed=config.seed, device=question.device, batch_size=config.batch_size,
        )  # fmt: skip
        numbers |= found
    return Probed(numbers, answers)
