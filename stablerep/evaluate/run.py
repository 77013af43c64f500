"""One evaluation: an encoder and a labelled set in, results.json out."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stablerep import atomic, distributed, run_folder
from stablerep import config as configs
from stablerep.config import UserError, fingerprint
from stablerep.data.encoded import resolve_bit_range
from stablerep.data.labelled import (
    NAMED_SETS,
    LabelledData,
    LabelledFiles,
    LabelledSet,
    Photos,
    draw,
    open_labelled,
)
from stablerep.data.picture_files import counted
from stablerep.data.torchvision_sets import is_torchvision, metric_of, open_torchvision
from stablerep.evaluate.compare import PREDICTIONS, RESULTS
from stablerep.evaluate.config import PIXELS, EvaluateConfig
from stablerep.evaluate.feature_cache import FeatureCache, default_folder
from stablerep.evaluate.features import create_baseline, is_baseline, is_grey
from stablerep.evaluate.measure import Question, measure
from stablerep.evaluate.overlap import find_overlap
from stablerep.evaluate.scores import describe, to_arrays
from stablerep.evaluate.zero_shot import exported_folder, read_templates
from stablerep.models import InputTransform, load_encoder

SPLIT = "split.csv"
NAMED = 5  # damaged photos in a line
FREE = ("out", "device", "batch_size", "feature_cache", "download")  # where and how it is computed, not what
PIXELS_SIZE, UNTRAINED_SIZE = 32, 224  # of a folder's photos, where neither the user nor an encoder has one


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Probe the checkpoint's features; the numbers are returned and written to out/results.json.

    Results already there are returned as they are if they answer the same config, about the same files.

    Raises:
        UserError: no such checkpoint or set, a set that cannot be probed, or an --out that answers another question.
    """
    start = time.perf_counter()
    out = Path(config.out)
    _check_folder(out, config)
    _check_protocols(config)
    data = None if config.data in NAMED_SETS else _open_data(config)
    inputs = fingerprint([_encoder_files(Path(config.checkpoint)), _digests(data)])
    if (earlier := _read_results(out / RESULTS)).get("inputs") == inputs:
        return earlier

    with distributed.start(config.device) as device:
        data = data or open_labelled(config.data)
        overlap = find_overlap(data.train, data.test)
        if overlap and not config.allow_overlap and not is_torchvision(config.data):  # whose split is the field's own
            raise overlap.refuse(config.data)
        trained = None if is_baseline(config.checkpoint) else _open_checkpoint(config)
        trained_range = trained[1].bit_range if trained else None
        data = _with_bit_range(data, config.bit_range, trained_range)
        train, test = draw(data.train, config.max_train, config.seed), data.test
        size = config.image_size or (trained[1].image_size if trained else _default_size(config.checkpoint, train))
        encoder, transform = trained or create_baseline(
            config.checkpoint,
            size,
            grey=config.checkpoint == PIXELS and is_grey(train) and is_grey(test),
            seed=config.seed,
        )
        loaded = time.perf_counter()
        cache = FeatureCache(config.feature_cache or default_folder())
        options: dict[str, Any] = {"device": device, "batch_size": config.batch_size, "strict": config.strict}
        seen = [
            cache.get(encoder, transform, photos, title=f"features of {len(photos):,} {split} photos", **options)
            for split, photos in (("train", train), ("test", test))
        ]
    if seen[0] is None or seen[1] is None:  # another rank than the first, which has all features and goes on alone
        return {}
    extracted = time.perf_counter()
    question = Question(config, encoder, transform, train, test, seen[0], seen[1], device)
    probed = measure(question)
    end = time.perf_counter()
    left_out = [
        photos.where(int(row))
        for photos, features in ((train, seen[0]), (test, seen[1]))
        if isinstance(photos, LabelledFiles)
        for row in features.left_out
    ]
    bit_range = train.bit_range if isinstance(train, LabelledFiles) else None
    labels = seen[1].y
    results = {
        "checkpoint": config.checkpoint,
        "data": config.data,
        "train_photos": len(seen[0].y),
        "test_photos": len(seen[1].y),
        "classes": len(train.class_names),
        "damaged_photos": left_out,
        "files_not_read": dict(data.not_read),
        "photos_on_both_sides": overlap.count if overlap else 0,
        "split": "drawn" if data.was_drawn else "given",
        "bit_range": [bit_range.low, bit_range.high] if bit_range else None,
        "metric": metric_of(config.data),
        "feature_width": seen[0].x.shape[1],
        **probed.numbers,
        "probes": {
            name: describe(answer, labels, train.class_names, config.seed) for name, answer in probed.answers.items()
        },
        "seconds": round(end - start, 2),
        "feature_seconds": round(extracted - loaded, 2),
        "probe_seconds": round(end - extracted, 2),
        "features": "cached" if seen[0].from_cache and seen[1].from_cache else "computed",
        "feature_cache": str(cache.folder),
        "device": str(device),
        "test_digest": test.digest()[:16],
        "inputs": inputs,
        "config": configs.to_dict(config),
    }
    _write(config, results, out, to_arrays(probed.answers, labels, len(test), seen[1].left_out))
    if data.was_drawn:
        data.save_split(out / SPLIT)
    return results


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader of the numbers must know of the photos, a line each."""
    lines = []
    if damaged := results["damaged_photos"]:
        more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        were = "photo" if len(damaged) == 1 else "photos"
        lines.append(f"{len(damaged)} {were} could not be decoded, left out: {', '.join(damaged[:NAMED])}{more}")
    if results["files_not_read"]:
        lines.append(f"{counted(results['files_not_read'])} left out, not read as pictures")
    if results["split"] == "drawn":
        sides = f"{results['train_photos']:,} and {results['test_photos']:,} photos"
        lines.append(f"the split into {sides} was drawn: {results['config']['out']}/{SPLIT}")
    if both := results["photos_on_both_sides"]:
        were = "1 test photo is a training photo" if both == 1 else f"{both:,} test photos are training photos"
        lines.append(f"{were} too: the numbers flatter")
    if results["features"] == "cached":
        lines.append(f"features were read from {results['feature_cache']}")
    if results["bit_range"]:
        lines.append("values {:g} to {:g} shown as black to white (--bit-range)".format(*results["bit_range"]))
    return lines


def _open_checkpoint(config: EvaluateConfig) -> tuple[nn.Module, InputTransform]:
    try:
        return load_encoder(config.checkpoint, config.arch)
    except UserError as error:
        raise UserError(f"--checkpoint {error}") from error


def _default_size(checkpoint: str, photos: Photos) -> int:
    if isinstance(photos, LabelledSet):
        return photos.images.shape[1]
    return PIXELS_SIZE if checkpoint == PIXELS else UNTRAINED_SIZE


def _with_bit_range(data: LabelledData, text: str, trained: tuple[float, float] | None) -> LabelledData:
    """The set with the range of its photos of 16 bits: the encoder's, or as measured on the training photos."""
    train, test = data.train, data.test
    if not isinstance(train, LabelledFiles) or not isinstance(test, LabelledFiles):
        return data
    text = "{}:{}".format(*trained) if text == "auto" and trained else text
    bit_range = resolve_bit_range(text, train.index, train.cache) or resolve_bit_range(text, test.index, test.cache)
    return replace(data, train=replace(train, bit_range=bit_range), test=replace(test, bit_range=bit_range))


def _open_data(config: EvaluateConfig) -> LabelledData:
    if is_torchvision(config.data):
        return open_torchvision(config.data, config.data_root, config.seed, download=config.download)
    return open_labelled(config.data, config.seed)


def _digests(data: LabelledData | None) -> list[str]:
    return [] if data is None else [data.train.digest(), data.test.digest()]


def _check_protocols(config: EvaluateConfig) -> None:
    """Raise a UserError for what a protocol lacks, before any work."""
    if "zero-shot" in config.protocol_names:
        exported_folder(config.checkpoint)
        read_templates(config.templates)


def _check_folder(out: Path, config: EvaluateConfig) -> None:
    """Raise a UserError unless --out is free, or the folder of this evaluation."""
    earlier = run_folder.read_config(EvaluateConfig, out, "evaluation")
    run_folder.check_same_run(out, earlier, config, FREE)
    if earlier is None and (out / RESULTS).exists():
        raise UserError(f"--out {out} holds a {RESULTS} that is no evaluation's; choose another --out")


def _encoder_files(path: Path) -> list[tuple[str, int, int]]:
    folder = path
    if path.is_file():
        folder = path.parent
        if not (folder / "config.json").is_file():  # a file of weights, among who knows what
            return [(path.name, path.stat().st_size, path.stat().st_mtime_ns)]
    return _file_stamps(folder / "exported" if (folder / "exported").is_dir() else folder)


def _file_stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of each file: enough to see that a checkpoint was trained again or a photo replaced."""
    files = ((path, path.stat()) for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else ()
    return sorted((str(path.relative_to(folder)), about.st_size, about.st_mtime_ns) for path, about in files)


def _read_results(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # none yet, or cut short: computed again
        return {}


def _write(config: EvaluateConfig, results: dict[str, Any], out: Path, arrays: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    configs.save(config, out / run_folder.CONFIG)
    with atomic.new_file(out / PREDICTIONS) as file:
        np.savez(file, allow_pickle=False, **arrays)
    atomic.write(out / RESULTS, json.dumps(results, indent=2) + "\n")
