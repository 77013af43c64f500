"""All numbers of two sets of features: as a whole, of each class and of each prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablerep import runlog
from stablerep.evaluate.quality.agreement import Agreement
from stablerep.evaluate.quality.config import QualityConfig
from stablerep.evaluate.quality.diversity import prompt_diversity, vendi_score
from stablerep.evaluate.quality.domain_gap import DomainGap
from stablerep.evaluate.quality.features import SetFeatures
from stablerep.evaluate.quality.frechet import frechet_distance, kernel_distance
from stablerep.evaluate.quality.manifold import Manifold, manifold
from stablerep.evaluate.quality.memorisation import Memorisation

Numbers = dict[str, Any]
DISTANCES, MANIFOLD = ("frechet_distance", "kid"), ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Found:
    """What is known of single pictures."""

    manifold: Manifold
    agreement: Agreement | None
    memorisation: Memorisation
    gap: DomainGap


def of_whole(real: SetFeatures, synthetic: SetFeatures, found: Found, config: QualityConfig) -> Numbers:
    return {
        **_of_rows(real.x, synthetic.x, _prompts(synthetic), config),
        **_of_manifold(found.manifold),
        "prompt_agreement": found.agreement.mean() if found.agreement else None,
        "prompt_agreement_kind": found.agreement.kind if found.agreement else None,
        "class_agreement_real": found.agreement.real_accuracy if found.agreement else None,
    }


def of_photos(real: Tensor, count: int, config: QualityConfig) -> Numbers:
    """The same numbers of photos among photos: what as many fresh photos as there are pictures would reach.

    So many are drawn (at most half of them) and compared with the rest. Without it a number says little: coverage by
    few pictures is low and their Fréchet distance high whatever they show.
    """
    drawn = min(count, len(real) // 2)
    if drawn <= config.neighbours:
        return {"images": drawn} | {name: None for name in (*DISTANCES, *MANIFOLD, "vendi_score")}
    order = torch.from_numpy(np.random.default_rng(config.seed).permutation(len(real))).to(real.device)
    fresh, rest = real[order[:drawn]], real[order[drawn:]]
    numbers = _of_rows(rest, fresh, None, config) | _of_manifold(manifold(rest, fresh, config.neighbours))
    return {"images": drawn} | {name: numbers[name] for name in (*DISTANCES, *MANIFOLD, "vendi_score")}


def of_classes(real: SetFeatures, synthetic: SetFeatures, found: Found, config: QualityConfig) -> list[Numbers]:
    """A class among its own real photos, for all that both sides have; nothing where they share none."""
    names = real.pictures.class_names
    shared = sorted(set(real.pictures.classes.tolist()) & set(synthetic.pictures.classes.tolist()) - {-1})
    rows = []
    with runlog.progress("quality of each class", len(shared), "classes", show=len(shared) > 1) as bar:
        for done, number in enumerate(shared):
            of_real, of_synthetic = (
                torch.from_numpy(np.flatnonzero(side.pictures.classes == number)).to(side.x.device)
                for side in (real, synthetic)
            )
            a, b = real.x[of_real], synthetic.x[of_synthetic]
            prompts = _prompts(synthetic)
            numbers = _of_rows(a, b, None if prompts is None else prompts[of_synthetic], config)
            inner = manifold(a, b, config.neighbours) if min(len(a), len(b)) > config.neighbours else None
            rows.append(
                {"class": names[number], **numbers, **_of_manifold(inner), **_of_class(found, of_synthetic, of_real)}
            )
            bar.update(done + 1)
    return rows


def of_prompts(synthetic: SetFeatures, centre: Tensor, found: Found) -> list[Numbers]:
    """What can be said of a few pictures: those of each prompt, in the order of their numbers."""
    prompts = _prompts(synthetic)
    if prompts is None:
        return []
    diversity = prompt_diversity(synthetic.x, prompts, centre)
    order = torch.argsort(prompts, stable=True)
    sizes = torch.bincount(prompts, minlength=len(synthetic.pictures.prompt_texts)).tolist()
    rows = []
    for number, chosen in enumerate(order.split(sizes)):
        if not len(chosen):
            continue
        of_class = int(synthetic.pictures.classes[int(chosen[0])])
        within = diversity.of_prompt[number].item() if diversity else float("nan")
        rows.append(
            {
                "prompt": synthetic.pictures.prompt_texts[number],
                "class": synthetic.pictures.class_names[of_class] if of_class >= 0 else None,
                "images": len(chosen),
                "precision": found.manifold.precision(chosen),
                "density": found.manifold.density(chosen),
                "diversity_within_prompt": within / diversity.between if diversity and len(chosen) > 1 else None,
                "prompt_agreement": found.agreement.mean(chosen) if found.agreement else None,
                "memorised": int(found.memorisation.memorised[chosen].sum()),
                "told_synthetic": found.gap.told_synthetic(chosen),
            }
        )
    return rows


def _of_rows(real: Tensor, synthetic: Tensor, prompts: Tensor | None, config: QualityConfig) -> Numbers:
    least = min(len(real), len(synthetic))
    size = min(config.kid_subset_size, least // 2)  # of all pictures each draw would be the same
    kid = (
        kernel_distance(real, synthetic, subsets=config.kid_subsets, subset_size=size, seed=config.seed)
        if size >= 2
        else None
    )
    diversity = prompt_diversity(synthetic, prompts, real.mean(0)) if prompts is not None else None
    return {
        "real_images": len(real),
        "synthetic_images": len(synthetic),
        "frechet_distance": frechet_distance(real, synthetic) if least > 1 else None,
        "kid": kid.mean if kid else None,
        "kid_std": kid.std if kid else None,
        "vendi_score": vendi_score(synthetic),
        "diversity_within_prompt": diversity.ratio if diversity else None,
    }


def _of_manifold(found: Manifold | None) -> Numbers:
    return {name: getattr(found, name)() if found else None for name in MANIFOLD}


def _of_class(found: Found, synthetic: Tensor, real: Tensor) -> Numbers:
    return {
        "prompt_agreement": found.agreement.mean(synthetic) if found.agreement else None,
        "memorised": int(found.memorisation.memorised[synthetic].sum()),
        "domain_gap": found.gap.accuracy(real, synthetic),
    }


def _prompts(side: SetFeatures) -> Tensor | None:
    prompts = side.pictures.prompts
    return None if prompts is None else torch.from_numpy(prompts).to(side.x.device)
