"""Whether pictures show what their prompts ask for: by the encoder's text tower, or by a classifier of real photos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stablerep.data.labelled import rank_in_class
from stablerep.evaluate.quality.classifier import fit
from stablerep.models.text_tower import FOLDER, load_text_tower

HELD_OUT = 5  # every fifth real photo of a class says how far the classifier can be trusted
MOST = 10_000  # real photos that the classifier is fitted to, as even over the classes as they allow
TEXTS = 256  # encoded together


@dataclass(frozen=True)
class Agreement:
    kind: str  # "text": cosine of picture and prompt; "class": 1 where the class asked for is named, else 0
    scores: Tensor  # [M] float, nan of a picture that asks for nothing known
    real_accuracy: float | None  # of kind class: the share of held-out real photos that are named right

    def mean(self, rows: Tensor | slice = slice(None)) -> float | None:
        scores = self.scores[rows]
        return None if scores.isnan().all() else scores.double().nanmean().item()


def class_agreement(
    real: Tensor,  # [N, D] float
    real_classes: Tensor,  # [N] int64, -1: none
    synthetic: Tensor,  # [M, D]
    asked: Tensor,  # [M] int64, -1: none that the real photos know
    seed: int,
) -> Agreement | None:
    """A classifier that was fitted to real photos looks at synthetic pictures; None without two classes to tell apart.

    What it names is what the encoder can tell: real_accuracy is the most that can be asked of the pictures.
    """
    known = real_classes >= 0
    real, labels = real[known], real_classes[known]
    found = labels.unique()
    answerable = torch.isin(asked, found)
    if len(found) < 2 or not answerable.any():
        return None
    rank = rank_in_class(labels.cpu().numpy(), seed)
    drawn = torch.from_numpy(np.sort(np.argsort(rank, kind="stable")[:MOST])).to(real.device)
    held = torch.from_numpy(rank % HELD_OUT == HELD_OUT - 1).to(real.device)[drawn]
    real, labels = real[drawn], labels[drawn]
    classifier = fit(real[~held], labels[~held], int(found.max()) + 1)
    named = classifier.scores(synthetic).argmax(1)
    scores = torch.where(answerable, (named == asked).float(), torch.nan)
    right = (classifier.scores(real[held]).argmax(1) == labels[held]).double()
    return Agreement("class", scores, right.mean().item() if len(right) else None)


def has_text_tower(features: str) -> Path | None:
    """The exported folder of a run with a text tower; None for any other encoder."""
    for folder in (Path(features) / "exported", Path(features)):
        if (folder / FOLDER).is_dir():
            return folder
    return None


@torch.inference_mode()
def text_agreement(exported: Path, x: Tensor, prompts: np.ndarray, texts: tuple[str, ...]) -> Agreement:
    """The cosine of each picture and its own prompt, as CLIP score has it (Hessel et al. 2021, without its factor).

    x: [M, D] features of the encoder in `exported`; prompts: [M] index into texts.
    """
    tower, projection, _ = load_text_tower(exported)
    tower, projection = tower.to(x.device), projection.to(x.device)
    embedded = torch.cat(
        [tower(tower.tokenizer(texts[at : at + TEXTS]).to(x.device)) for at in range(0, len(texts), TEXTS)]
    )
    of = torch.from_numpy(prompts).to(x.device)
    scores = [
        functional.cosine_similarity(rows @ projection.T, embedded[prompt])
        for rows, prompt in zip(x.split(8192), of.split(8192), strict=True)
    ]
    return Agreement("text", torch.cat(scores), None)
