"""One evaluation: an encoder and a labelled set in, results.json out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from stablerep import atomic, distributed
from stablerep import config as configs
from stablerep.config import UserError, fingerprint
from stablerep.data.labelled import load_labelled
from stablerep.evaluate.baselines import create_baseline, is_baseline, is_grey
from stablerep.evaluate.config import PIXELS, EvaluateConfig
from stablerep.evaluate.features import features_of
from stablerep.evaluate.probes import probe_features
from stablerep.models import load_encoder

CONFIG, RESULTS = "config.yaml", "results.json"
FREE = ("out", "device", "batch_size")  # where and how it is computed, not what
PIXELS_SIZE, UNTRAINED_SIZE = 32, 224  # of a folder's photos, where neither the user nor an encoder says one


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Probe the checkpoint's features; the numbers are returned and written to out/results.json.

    Results already there are returned as they are if they answer the same config, about the same files.

    Raises:
        UserError: no such checkpoint or set, a set that cannot be probed, or an --out that answers another question.
    """
    began = time.perf_counter()
    out = _claim(config)
    inputs = fingerprint([_files_of_encoder(Path(config.checkpoint)), _files_of_set(Path(config.data))])
    if (earlier := _earlier(out / RESULTS)).get("inputs") == inputs:
        return earlier

    with distributed.start(config.device) as device:
        trained = None if is_baseline(config.checkpoint) else load_encoder(Path(config.checkpoint))
        size = config.image_size or (trained[1].image_size if trained else _usual_size(config.checkpoint))
        train = load_labelled(config.data, "train", size, config.max_train, config.seed)
        test = load_labelled(config.data, "test", size)
        encoder, transform = trained or create_baseline(
            config.checkpoint,
            config.image_size or train.images.shape[1],
            grey=is_grey(train.images) and is_grey(test.images),
            seed=config.seed,
        )

        loaded = time.perf_counter()
        x, y = {}, {}
        for split, photos in (("train", train), ("test", test)):
            title = f"features of {len(photos):,} {split} photos"
            images = torch.from_numpy(photos.images)
            x[split] = features_of(encoder, transform, images, device=device, batch_size=config.batch_size, title=title)
            y[split] = torch.from_numpy(photos.labels).to(device)
        extracted = time.perf_counter()
        probes = probe_features(
            x["train"], y["train"], x["test"], y["test"], seed=config.seed, epochs=config.epochs, show=True
        )
    ended = time.perf_counter()
    results = {
        "checkpoint": config.checkpoint,
        "data": config.data,
        "train_photos": len(train),
        "test_photos": len(test),
        "classes": len(train.class_names),
        "feature_width": x["train"].shape[1],
        **probes,
        "seconds": round(ended - began, 2),
        "feature_seconds": round(extracted - loaded, 2),
        "probe_seconds": round(ended - extracted, 2),
        "device": str(device),
        "inputs": inputs,
        "config": configs.to_dict(config),
    }
    _write(config, results, out)
    return results


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


def _usual_size(checkpoint: str) -> int:
    return PIXELS_SIZE if checkpoint == PIXELS else UNTRAINED_SIZE


def _claim(config: EvaluateConfig) -> Path:
    """Make --out the folder of this evaluation, or see that it already is."""
    out = Path(config.out)
    path = out / CONFIG
    if path.exists():
        try:
            earlier = configs.load(EvaluateConfig, path)
        except (UserError, TypeError) as error:  # a training run's, for example
            raise UserError(f"--out {out} holds another run, no evaluation; choose another --out") from error
        configs.refuse_other_run(out, _identity(earlier), _identity(config))
    elif out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; choose a folder")
    elif (out / RESULTS).exists():
        raise UserError(f"--out {out} holds a {RESULTS} that is no evaluation's; choose another --out")
    return out


def _identity(config: EvaluateConfig) -> dict[str, Any]:
    return {name: value for name, value in configs.to_dict(config).items() if name not in FREE}


def _files_of_encoder(path: Path) -> list[tuple[str, int, int]]:
    folder = path.parent if path.is_file() else path
    return _files_under(folder / "exported" if (folder / "exported").is_dir() else folder)


def _files_of_set(path: Path) -> list[list[tuple[str, int, int]]]:
    return [_files_under(path / split) for split in ("train", "test")]


def _files_under(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of each file: enough to see that a checkpoint was trained again or a photo replaced."""
    files = ((path, path.stat()) for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else ()
    return sorted((str(path.relative_to(folder)), about.st_size, about.st_mtime_ns) for path, about in files)


def _earlier(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # none yet, or cut short: computed again
        return {}


def _write(config: EvaluateConfig, results: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    configs.save(config, out / CONFIG)
    atomic.write(out / RESULTS, json.dumps(results, indent=2) + "\n")
