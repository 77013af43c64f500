"""One evaluation: an encoder and a labelled set in, results.json out."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
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
from stablerep.evaluate.config import PIXELS, EvaluateConfig
from stablerep.evaluate.features import create_baseline, features_of, is_baseline, is_grey
from stablerep.evaluate.probes import probe_features
from stablerep.models import InputTransform, load_encoder

RESULTS, SPLIT = "results.json", "split.csv"
NAMED = 5  # damaged photos in a line
FREE = ("out", "device", "batch_size")  # where and how it is computed, not what
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
    data = None if config.data in NAMED_SETS else open_labelled(config.data, config.seed)
    inputs = fingerprint([_encoder_files(Path(config.checkpoint)), _stamps(data)])
    if (earlier := _read_results(out / RESULTS)).get("inputs") == inputs:
        return earlier

    with distributed.start(config.device) as device:
        trained = None if is_baseline(config.checkpoint) else _open_checkpoint(config)
        trained_range = trained[1].bit_range if trained else None
        data = _with_bit_range(data or open_labelled(config.data), config.bit_range, trained_range)
        train, test = draw(data.train, config.max_train, config.seed), data.test
        size = config.image_size or (trained[1].image_size if trained else _default_size(config.checkpoint, train))
        encoder, transform = trained or create_baseline(
            config.checkpoint,
            size,
            grey=config.checkpoint == PIXELS and is_grey(train) and is_grey(test),
            seed=config.seed,
        )

        loaded = time.perf_counter()
        options: dict[str, Any] = {"device": device, "batch_size": config.batch_size, "strict": config.strict}
        seen = {
            split: features_of(
                encoder, transform, photos, title=f"features of {len(photos):,} {split} photos", **options
            )
            for split, photos in (("train", train), ("test", test))
        }
        extracted = time.perf_counter()
        probes = probe_features(
            seen["train"].x, seen["train"].y, seen["test"].x, seen["test"].y,
            seed=config.seed, epochs=config.epochs, show=True,
        )  # fmt: skip
    end = time.perf_counter()
    left_out = [
        photos.where(int(row))
        for split, photos in (("train", train), ("test", test))
        if isinstance(photos, LabelledFiles)
        for row in seen[split].left_out
    ]
    bit_range = train.bit_range if isinstance(train, LabelledFiles) else None
    results = {
        "checkpoint": config.checkpoint,
        "data": config.data,
        "train_photos": len(seen["train"].y),
        "test_photos": len(seen["test"].y),
        "classes": len(train.class_names),
        "damaged_photos": left_out,
        "files_not_read": dict(data.not_read),
        "split": "drawn" if data.was_drawn else "given",
        "bit_range": [bit_range.low, bit_range.high] if bit_range else None,
        "feature_width": seen["train"].x.shape[1],
        **probes,
        "seconds": round(end - start, 2),
        "feature_seconds": round(extracted - loaded, 2),
        "probe_seconds": round(end - extracted, 2),
        "device": str(device),
        "inputs": inputs,
        "config": configs.to_dict(config),
    }
    _write(config, results, out)
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
    if results["bit_range"]:
        lines.append("values {:g} to {:g} shown as black to white (--bit-range)".format(*results["bit_range"]))
    return lines


def table(*results: dict[str, Any]) -> Table:
    """A row an evaluation, for the terminal; the few-shot column with its 95 % interval."""
    shown = Table(title=f"top-1 on {results[0]['test_photos']:,} test photos of {results[0]['data']}, %")
    shown.add_column("features", overflow="fold")
    for column in ("photos", "linear", "10 a class", "kNN", "seconds"):
        shown.add_column(column, justify="right")
    for row in results:
        few = row["few_shot_10"]
        shown.add_row(
            row["checkpoint"],
            f"{row['train_photos']:,}",
            f"{row['linear_top1']:.1f}",
            "too few" if few is None else f"{few:.1f} ± {row['few_shot_10_ci95']:.1f}",
            f"{row['knn_top1']:.1f}",
            f"{row['seconds']:.0f}",
        )
    return shown


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


def _stamps(data: LabelledData | None) -> list[Any]:
    if data is None or not isinstance(data.train, LabelledFiles) or not isinstance(data.test, LabelledFiles):
        return []
    return [data.train.stamps(), data.test.stamps()]


def _check_folder(out: Path, config: EvaluateConfig) -> None:
    """Raise a UserError unless --out is free, or the folder of this evaluation."""
    try:
        earlier = run_folder.read_config(EvaluateConfig, out)
    except (UserError, TypeError) as error:  # a training run's, for example
        raise UserError(f"--out {out} holds another run, no evaluation; choose another --out") from error
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


def _write(config: EvaluateConfig, results: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    configs.save(config, out / run_folder.CONFIG)
    atomic.write(out / RESULTS, json.dumps(results, indent=2) + "\n")
