"""One comparison: synthetic pictures, real photos and an encoder in, quality.json and pictures out."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from stablerep import atomic, distributed, run_folder, runlog
from stablerep import config as configs
from stablerep.config import UserError, fingerprint
from stablerep.data.labelled import LabelledFiles
from stablerep.evaluate.quality import measures, thumbnails
from stablerep.evaluate.quality.agreement import Agreement, class_agreement, has_text_tower, text_agreement
from stablerep.evaluate.quality.config import QualityConfig
from stablerep.evaluate.quality.domain_gap import DomainGap, domain_gap
from stablerep.evaluate.quality.features import SetFeatures, features_of_set, open_encoder
from stablerep.evaluate.quality.manifold import manifold
from stablerep.evaluate.quality.memorisation import Memorisation, find_memorised
from stablerep.evaluate.quality.sets import PictureSet, images_of, open_real, open_synthetic

RESULTS, VERSION = "quality.json", 1
PAIRS, GIVEAWAYS, LIFELIKE = "pairs", "most_synthetic", "most_real_like"
FREE = ("out", "device", "batch_size")  # where and how it is computed, not what


def quality(config: QualityConfig) -> dict[str, Any]:
    """Compare the synthetic set with the real one; the numbers are returned and written to out/quality.json.

    Shares and agreements are from 0 to 1. Numbers already there are returned as they are if they answer the same config
    about the same pictures and the same encoder; features already there are used.

    Raises:
        UserError: no pictures on a side, too few, the same ones on both, features that are not finite, or an --out that
            answers another question.
    """
    start = time.perf_counter()
    out = Path(config.out)
    _check_folder(out, config)
    real = open_real(config.real, config.real_split, config.seed, config.bit_range)
    training = real
    if config.real_split == "test":
        training = open_real(config.real, "train", config.seed, config.bit_range)
    synthetic = open_synthetic(config.synthetic, real.class_names)
    _check_apart(config, real, synthetic)
    training, real = (side.at_most(config.max_real, config.seed) for side in (training, real))
    synthetic = synthetic.at_most(config.max_synthetic, config.seed)

    sides = {"real": real, "synthetic": synthetic} | ({"training": training} if config.real_split == "test" else {})
    encoder = open_encoder(config, tuple(sides.values()))
    inputs = fingerprint([encoder.stamp, *(side.stamps() for side in sides.values())])
    if (earlier := _read_results(out / RESULTS)).get("inputs") == inputs:
        return earlier
    out.mkdir(parents=True, exist_ok=True)
    configs.save(config, out / run_folder.CONFIG)
    with distributed.start(config.device) as device:
        seen = {
            name: features_of_set(
                encoder, side, out, name, device=device, batch_size=config.batch_size, strict=config.strict
            )
            for name, side in sides.items()
        }
        seen.setdefault("training", seen["real"])
        results = _measure(config, seen["real"], seen["synthetic"], seen["training"], out)
    results |= {
        "damaged": [where for side in sides for where in seen[side].damaged],
        "files_not_read": {"real": real.not_read, "synthetic": synthetic.not_read},
        "feature_width": seen["real"].x.shape[1],
        "device": str(device),
        "inputs": inputs,
        "config": configs.to_dict(config),
        "seconds": round(time.perf_counter() - start, 2),
    }
    atomic.write(out / RESULTS, json.dumps(results, indent=2) + "\n")
    return results


def _measure(
    config: QualityConfig, real: SetFeatures, synthetic: SetFeatures, training: SetFeatures, out: Path
) -> dict[str, Any]:
    _check_enough(config, real, synthetic, training)
    with runlog.progress("measures", 6, "measures") as bar:
        bar.update(0, "nearest neighbours")
        among = manifold(real.x, synthetic.x, config.neighbours)
        bar.update(1, "memorised pictures")
        memorised = find_memorised(training.x, synthetic.x, config.memorised_quantile)
        bar.update(2, "agreement with the prompt")
        agreement = _agreement(config, real, synthetic)
        bar.update(3, "domain gap")
        gap = domain_gap(real.x, synthetic.x, synthetic.pictures.prompts, config.seed)
        found = measures.Found(among, agreement, memorised, gap)
        bar.update(4, "distances")
        whole = measures.of_whole(real, synthetic, found, config)
        bar.update(5, "photos among photos")
        photos = measures.of_photos(real.x, len(synthetic.x), config)
        bar.update(6)
    return {
        "version": VERSION,
        "features": config.features,
        "real": config.real,
        "synthetic": config.synthetic,
        **whole,
        "photos": photos,
        "memorised": _memorised(memorised, training.pictures, synthetic.pictures, config.thumbnails, out),
        "domain_gap": _domain_gap(gap, synthetic.pictures, config.thumbnails, out),
        "per_class": measures.of_classes(real, synthetic, found, config),
        "per_prompt": measures.of_prompts(synthetic, real.x.mean(0), found),
    }


def _agreement(config: QualityConfig, real: SetFeatures, synthetic: SetFeatures) -> Agreement | None:
    pictures = synthetic.pictures
    exported = has_text_tower(config.features)
    if exported and pictures.prompts is not None:
        return text_agreement(exported, synthetic.x, pictures.prompts, pictures.prompt_texts)
    device = real.x.device
    labels, asked = (torch.from_numpy(side.pictures.classes).to(device) for side in (real, synthetic))
    return class_agreement(real.x, labels, synthetic.x, asked, config.seed)


def _memorised(
    found: Memorisation, training: PictureSet, synthetic: PictureSet, count: int, out: Path
) -> dict[str, Any]:
    """The count of what is memorised, and the nearest pairs, of which pairs/NNN.png are pictures in the same order."""
    nearest = found.similarity.argsort(descending=True, stable=True)[:count].tolist()
    of_training = found.nearest[nearest].tolist()
    pictures = zip(images_of(synthetic, nearest), images_of(training, of_training), strict=True)
    thumbnails.write_pictures(out / PAIRS, [thumbnails.side_by_side(*pair) for pair in pictures])
    closest = [
        {
            "synthetic": synthetic.where(row),
            "real": training.where(other),
            "similarity": found.similarity[row].item(),
            "picture": f"{PAIRS}/{number:03}.png",
        }
        for number, (row, other) in enumerate(zip(nearest, of_training, strict=True))
    ]
    memorised = int(found.memorised.sum())
    return {
        "threshold": found.threshold,
        "count": memorised,
        "share": memorised / len(found.similarity),
        "expected_share": found.expected_share,
        "training_photos": len(training),
        "pairs": closest[:memorised],
        "closest": closest,
    }


def _domain_gap(gap: DomainGap, synthetic: PictureSet, count: int, out: Path) -> dict[str, Any]:
    named = {GIVEAWAYS: gap.most_synthetic(count), LIFELIKE: gap.most_real_like(count)}
    for folder, rows in named.items():
        thumbnails.write_pictures(out / folder, [thumbnails.thumbnail(each) for each in images_of(synthetic, rows)])
    places = {folder: [synthetic.where(row) for row in rows] for folder, rows in named.items()}
    return {"accuracy": gap.accuracy(), "ci95": gap.ci95(), **places}


def _check_folder(out: Path, config: QualityConfig) -> None:
    earlier = run_folder.read_config(QualityConfig, out, "comparison")
    run_folder.check_same_run(out, earlier, config, FREE)
    if earlier is None and (out / RESULTS).exists():
        raise UserError(f"--out {out} holds a {RESULTS} that is no comparison's; choose another --out")


def _check_apart(config: QualityConfig, real: PictureSet, synthetic: PictureSet) -> None:
    """Raise a UserError where both sides are the same pictures: all numbers would be perfect and mean nothing."""
    files = [
        {os.path.realpath(str(side.photos.index.files[number])) for number in set(side.photos.index.file.tolist())}
        for side in (real, synthetic)
        if isinstance(side.photos, LabelledFiles)
    ]
    if len(files) == 2 and (both := files[0] & files[1]):
        raise UserError(
            f"--synthetic {config.synthetic} and --real {config.real} share {len(both)} files, {min(both)} first; "
            "give two sets of different pictures"
        )


def _check_enough(config: QualityConfig, real: SetFeatures, synthetic: SetFeatures, training: SetFeatures) -> None:
    least = config.neighbours + 1
    for flag, name, side in (("--real", config.real, real), ("--synthetic", config.synthetic, synthetic)):
        if len(side.x) < least:
            raise UserError(
                f"{flag} {name} has {len(side.x)} pictures that can be compared; --neighbours {config.neighbours} "
                f"needs {least} or more on each side"
            )
    if len(training.x) < 2:
        raise UserError(f"--real {config.real} has fewer than two training photos to search for memorised ones")


def _read_results(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # none yet, or cut short: computed again
        return {}
