"""A score of painted pictures without training: how they compare with the real photos in features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from stablerep import distributed
from stablerep.config import UserError
from stablerep.data.index import index_images
from stablerep.data.labelled import LabelledFiles, open_labelled
from stablerep.evaluate.features import Features, create_baseline, features_of, is_baseline
from stablerep.evaluate.probes import knn_top1
from stablerep.evaluate.quality.frechet import frechet_distance
from stablerep.models import InputTransform, load_encoder
from stablerep.prompts.text import caption_key
from stablerep.search.config import SearchConfig

MOST_PICTURES = 2000  # of a trial, spread over all: a distance between means and covariances needs no more
NEIGHBOURS = 10
BASELINE_SIZE = 32  # pixels a side that `pixels` and untrained encoders see


class Proxy(Protocol):
    """What scores pictures: higher is better."""

    @property
    def name(self) -> str: ...

    def __call__(self, painted: Path, real: Path) -> float:
        """painted: shards of stablerep-gen. real: a table of labelled photos, whose training photos count.

        Raises:
            UserError: the pictures cannot be scored.
        """


def open_proxy(config: SearchConfig) -> Proxy:
    """The proxy that a config asks for, by features of stablerep-eval's own encoders."""
    return FeatureProxy(config.proxy, config.features, config.device, config.seed)


@dataclass(frozen=True)
class FeatureProxy:
    """Fréchet distance, negated, or agreement in percent, in the features of one frozen encoder."""

    kind: str  # frechet or agreement
    features: str
    device: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind} of {self.features}"

    @cached_property
    def _encoder(self) -> tuple[nn.Module, InputTransform]:
        try:
            if is_baseline(self.features):
                return create_baseline(self.features, BASELINE_SIZE, grey=False, seed=self.seed)
            return load_encoder(self.features)
        except UserError as error:
            raise UserError(f"--features {str(error).removeprefix('--checkpoint ')}") from error

    def __call__(self, painted: Path, real: Path) -> float:
        with distributed.start(self.device) as device:
            photos = open_labelled(str(real), self.seed).train
            theirs = self._seen(photos, device)  # type: ignore[arg-type]
            pictures = pictures_of(painted, photos.class_names, MOST_PICTURES)
            ours = self._seen(pictures, device)
            if self.kind == "frechet":
                if min(len(theirs.x), len(ours.x)) < 2:
                    raise UserError(f"--proxy frechet needs two pictures on each side; {painted} has {len(ours.x)}")
                return -frechet_distance(theirs.x, ours.x)
            named = ours.y >= 0
            if not named.any():
                raise UserError(f"--proxy agreement needs labels in --prompts; {painted} has none of a class of --real")
            classes = len(photos.class_names)
            return knn_top1(theirs.x, theirs.y, ours.x[named], ours.y[named], classes, (NEIGHBOURS,)).item()

    def _seen(self, photos: LabelledFiles, device: torch.device) -> Features:
        encoder, transform = self._encoder
        return features_of(encoder, transform, photos, device=device, show=False)


def pictures_of(painted: Path, classes: tuple[str, ...], most: int) -> LabelledFiles:
    """At most so many painted pictures, spread over all; the label is -1 where no class is named."""
    index = index_images(painted)
    numbers = {class_key(name): number for number, name in enumerate(classes)}
    names = index.classes if index.classes is not None else np.full(len(index), "")
    labels = np.array([numbers.get(class_key(name), -1) for name in names.tolist()], np.int64)
    rows = np.linspace(0, len(index) - 1, min(most, len(index))).round().astype(np.int64)
    return replace(LabelledFiles(index, np.arange(len(index)), labels, classes), rows=rows, labels=labels[rows])


def class_key(name: str) -> str:
    """The same for a class as a folder and as a person writes it: Ankle_boot is "ankle boot"."""
    return caption_key(name.replace("_", " ").replace("-", " "))
