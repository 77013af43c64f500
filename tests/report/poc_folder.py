"""A folder as stablerep-poc leaves it: really painted pictures, numbers made up by a seed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import stablerep
from examples.fashion.captions import all_captions
from stablerep.data.labelled import FASHION_MNIST_CLASSES, fashion_mnist

GUIDANCES = (1.0, 2.0, 4.0)
TEST_PHOTOS = 2000
# name, kind, comparison, synthetic, real, seeds, linear, half-width
ARMS: list[tuple[str, str, str, int, int, int, float, float]] = [
    ("pixels", "pixels", "baseline", 0, 0, 1, 79.8, 0.9),
    ("untrained", "untrained", "baseline", 0, 0, 3, 71.2, 1.3),
    ("pretrained", "pretrained", "baseline", 0, 0, 1, 82.4, 0.8),
    ("supervised", "supervised", "baseline", 0, 1000, 3, 80.9, 1.0),
    ("real", "real", "equal_pictures", 0, 4000, 3, 81.7, 0.6),
    ("synthetic", "synthetic", "equal_pictures", 4000, 0, 3, 83.6, 0.5),
    ("hybrid_50", "hybrid", "equal_pictures", 2000, 2000, 3, 83.4, 0.6),
    ("hybrid_25", "hybrid", "equal_pictures", 3000, 1000, 3, 83.3, 0.5),
    ("synthetic_cost", "synthetic", "equal_cost", 9000, 0, 3, 84.4, 0.5),
]


def write_poc(folder: Path, classes: tuple[str, ...] = FASHION_MNIST_CLASSES) -> Path:
    """The whole of it, as real as the page needs it; a few seconds, of which painting is most."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    _paint(folder, classes)
    _write_photos(folder, classes)
    for name, kind, _, synthetic, real, seeds, linear, _ in ARMS:
        for seed in range(seeds):
            _write_measured(folder / "measured" / name / f"seed-{seed}", kind, classes, linear, draw)
            if synthetic or real:
                _write_training(folder / "runs" / name / f"seed-{seed}", kind, draw)
    _write_json(folder / "quality" / "quality.json", _quality(folder, classes))
    _write_json(folder / "search" / "search.json", _search(draw))
    _write_json(folder / "poc.json", poc(classes))
    return folder


def poc(classes: tuple[str, ...] = FASHION_MNIST_CLASSES, **recommendation: Any) -> dict[str, Any]:
    """poc.json by its contract."""
    told = {
        "choice": "synthetic",
        "reason": "synthetic_ahead",
        "a": "synthetic",
        "b": "real",
        "difference": 1.9,
        "ci95": 0.7,
    }
    return {
        "version": 1,
        "question": {
            "prompts": "prompts.csv",
            "real": "photos",
            "budget": {"pictures": 4000, "seconds": None, "usd": None},
            "config": {
                "prompts": "prompts.csv",
                "real": "photos",
                "arch": "resnet10t",
                "image_size": 32,
                "steps": 500,
                "seeds": [0, 1, 2],
                "hybrids": [0.5, 0.25],
            },
        },
        "data": {
            "classes": list(classes),
            "train": 1000,
            "validation": 300,
            "test": TEST_PHOTOS,
            "unlabelled": 3000,
            "split": "split.csv",
        },
        "arms": [_arm(*arm) for arm in ARMS],
        "comparisons": [
            _compare("synthetic", "real", 1.9, 0.7, 0.0004),
            _compare("hybrid_50", "real", 1.7, 0.8, 0.002),
            _compare("synthetic", "pretrained", 1.2, 0.9, 0.011),
            _compare("synthetic", "hybrid_50", 0.2, 0.7, 0.58),
        ],
        "recommendation": told | recommendation,
        "costs": {
            "steps": [
                {"name": "search guidance", "kind": "search", "seconds": 1240.0, "images": 3200, "kwh": 0.11},
                *(
                    {
                        "name": f"paint guidance {scale:g}",
                        "kind": "paint",
                        "seconds": 410.0 + scale,
                        "images": 3000,
                        "kwh": 0.04,
                    }
                    for scale in GUIDANCES
                ),
                *(
                    {
                        "name": f"train {name}",
                        "kind": "train",
                        "seconds": 160.0 * seeds,
                        "images": synthetic + real,
                        "kwh": 0.02,
                    }
                    for name, _, _, synthetic, real, seeds, *_ in ARMS
                    if synthetic or real
                ),
                {"name": "evaluate", "kind": "evaluate", "seconds": 260.0, "images": TEST_PHOTOS, "kwh": None},
                {"name": "quality", "kind": "quality", "seconds": 41.0, "images": 6000, "kwh": None},
            ],
            "usd_per_hour": 2.5,
            "device": "cuda (NVIDIA H200)",
        },
        "risks": {"duplicates": 41, "damaged": 3, "rejected": 112},
        "commands": [
            "stablerep-poc --prompts prompts.csv --real photos --out runs/poc --pictures 4000 --seeds 0 1 2",
            "stablerep-quality --synthetic runs/poc/painted/synthetic --real runs/poc/split.csv --out runs/poc/quality",
            "stablerep-report runs/poc --usd-per-photo 0.4 --usd-per-label 0.12",
        ],
    }


def _arm(
    name: str, kind: str, comparison: str, synthetic: int, real: int, seeds: int, linear: float, half: float
) -> Any:
    trained = bool(synthetic or real)
    return {
        "name": name,
        "kind": kind,
        "comparison": comparison,
        "objective": "stablerep" if trained else None,
        "arch": {"pixels": None, "pretrained": "resnet50.a1_in1k"}.get(name, "resnet10t"),
        "images": synthetic + real,
        "synthetic_images": synthetic,
        "real_images": real,
        "seeds": [
            {
                "seed": seed,
                "linear_top1": round(linear + 0.2 * (seed - 1), 2),
                "few_shot_10": round(linear - 11 - 0.1 * seed, 2),
                "knn_top1": round(linear - 2 + 0.1 * seed, 2),
                "train": f"runs/{name}/seed-{seed}" if trained else None,
                "measured": f"measured/{name}/seed-{seed}",
                "seconds": {"paint": 410.0, "train": 160.0, "evaluate": 9.0},
            }
            for seed in range(seeds)
        ],
        "mean": {"linear_top1": linear, "few_shot_10": linear - 11.1, "knn_top1": linear - 1.9},
        "ci95": {"linear_top1": half, "few_shot_10": half + 0.4, "knn_top1": half + 0.1},
    }


def _compare(a: str, b: str, difference: float, ci95: float, p: float) -> dict[str, Any]:
    verdict = "undecided" if abs(difference) <= ci95 else "better" if difference > 0 else "worse"
    return {
        "a": a,
        "b": b,
        "measure": "linear_top1",
        "difference": difference,
        "ci95": ci95,
        "p": p,
        "verdict": verdict,
    }


def _paint(folder: Path, classes: tuple[str, ...]) -> None:
    captions = np.array([str(caption) for caption in all_captions(FASHION_MNIST_CLASSES)]).reshape(
        len(FASHION_MNIST_CLASSES), -1
    )
    rows = [
        (caption, label) for label, of_class in zip(classes, captions, strict=True) for caption in of_class[7:80:29]
    ]
    (folder / "prompts").mkdir()
    with (folder / "prompts" / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "label"), *rows])
    stablerep.generate(
        prompts=folder / "prompts" / "prompts.csv",
        out=folder / "painted",
        guidance_scale=GUIDANCES,
        num_inference_steps=6,
        scheduler="dpmsolver++",
        num_images_per_prompt=2,
        device="cpu",
        prompts_per_shard=10,
    )


def _write_photos(folder: Path, classes: tuple[str, ...]) -> None:
    photos, rows = fashion_mnist("test"), []
    for label, name in enumerate(classes):
        numbers = np.flatnonzero(photos.labels == label)[: 30 - 2 * label]
        for at, number in enumerate(numbers):
            path = folder / "photos" / f"{number:05}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(photos.images[number]).save(path)
            rows.append(
                (str(path.relative_to(folder)), name, "test" if at < 6 else "validation" if at < 9 else "train")
            )
    with (folder / "split.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])


def _write_measured(
    folder: Path, kind: str, classes: tuple[str, ...], linear: float, draw: np.random.Generator
) -> None:
    photos = TEST_PHOTOS // len(classes)
    offsets = np.linspace(-20, 9, len(classes)) + draw.normal(0, 1, len(classes))
    if kind == "synthetic":
        offsets[:5] -= (7, 5, 9, 4, 6)
    right = np.clip(linear + offsets, 5, 99.5) / 100 * photos
    confusion = np.zeros((len(classes), len(classes)), int)
    for row, count in enumerate(right.astype(int)):
        confusion[row, row] = count
        confusion[row, (row + 3) % len(classes)] += (photos - count) * 2 // 3
        confusion[row, (row + 1) % len(classes)] += photos - confusion[row].sum()
    _write_json(
        folder / "results.json",
        {
            "checkpoint": kind,
            "data": "split.csv",
            "train_photos": 1000,
            "test_photos": TEST_PHOTOS,
            "damaged_photos": [],
            "classes": len(classes),
            "linear_top1": linear,
            "few_shot_10": linear - 11,
            "few_shot_10_ci95": 0.8,
            "knn_top1": linear - 2,
            "seconds": 9.0,
            "device": "cuda",
            "per_class": [
                {"class": name, "accuracy": 100 * float(confusion[row, row]) / photos, "photos": photos}
                for row, name in enumerate(classes)
            ],
            "confusion": confusion.tolist(),
        },
    )


def _write_training(folder: Path, kind: str, draw: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    bottom = {"synthetic": 4.05, "real": 4.4, "hybrid": 4.2}.get(kind, 1.2)
    lines = [
        json.dumps(
            {"step": step, "loss": bottom + 1.6 * float(np.exp(-step / 90)) + float(draw.normal(0, 0.06)), "lr": 1e-3}
        )
        for step in range(0, 500, 5)
    ]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 500, "lo']))  # cut off while it was written


def _quality(folder: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    pictures = [f"painted/guidance_2/000000.tar/{prompt:09}.{index}.jpg" for prompt in range(3) for index in range(2)]
    photos = sorted((folder / "photos").glob("*.png"))
    (folder / "quality" / "pairs").mkdir(parents=True)
    pairs = []
    for number, photo in enumerate(photos[:3]):
        pair = Image.new("RGB", (66, 32), "white")
        pair.paste(Image.open(photo), (0, 0))
        pair.paste(Image.open(photos[number + 4]), (34, 0))
        pair.save(folder / "quality" / "pairs" / f"{number:03}.png")
        pairs.append(
            {"synthetic": pictures[number], "real": str(photo.relative_to(folder)), "similarity": 0.981 - number / 100}
        )
    each = {"frechet_distance": 34.1, "precision": 0.71, "recall": 0.44, "coverage": 0.6}
    return {
        "version": 1,
        "features": "DINOv2 ViT-S/14",
        "real": "split.csv",
        "synthetic": "painted/guidance_2",
        "real_images": 3000,
        "synthetic_images": 3000,
        "frechet_distance": 21.43,
        "kid": 0.0123,
        "kid_std": 0.0011,
        "precision": 0.78,
        "recall": 0.52,
        "density": 0.91,
        "coverage": 0.66,
        "vendi_score": 31.2,
        "diversity_within_prompt": 0.42,
        "prompt_agreement": 0.29,
        "memorised": {"threshold": 0.95, "count": 3, "share": 0.001, "pairs": pairs},
        "domain_gap": {"accuracy": 0.873, "ci95": 0.012, "most_synthetic": pictures, "most_real_like": pictures[::-1]},
        "per_class": [{"class": name, "images": 300, **each} for name in classes],
        "per_prompt": [{"prompt": "a photo of a dark slim sneaker", "images": 20, **each}],
        "config": {"features": "dinov2"},
        "seconds": 41.0,
    }


def _search(draw: np.random.Generator) -> dict[str, Any]:
    trials = []
    for number in range(24):
        guidance, steps = round(float(draw.uniform(1, 8)), 1), int(draw.choice([8, 12, 25, 50]))
        score = 84 - (guidance - 2.3) ** 2 * 0.35 - 12 / steps + float(draw.normal(0, 0.4))
        trials.append(
            {
                "number": number,
                "params": {"guidance_scale": guidance, "num_inference_steps": steps},
                "state": "complete",
                "values": {
                    "score": score,
                    "images": 400,
                    "seconds": 8.0 * steps + float(draw.uniform(0, 30)),
                    "usd": None,
                },
            }
        )
    trials.append({"number": 24, "params": {"guidance_scale": 9.0}, "values": {}, "state": "failed"})
    ranked = sorted((trial for trial in trials if trial["values"]), key=lambda trial: trial["values"]["seconds"])
    front, best = [], -1.0
    for trial in ranked:
        if trial["values"]["score"] > best:
            best = trial["values"]["score"]
            front.append(trial["number"])
    scales = (1, 1.5, 2, 3, 4, 6, 8)
    return {
        "version": 1,
        "trials": trials,
        "pareto": front,
        "importances": {"guidance_scale": 0.71, "num_inference_steps": 0.29},
        "best": front[-1],
        "guidance_curve": [
            {"guidance_scale": scale, "score": 83.6 - 0.4 * (scale - 2) ** 2 + 0.07 * (scale - 2) ** 3, "ci95": 0.6}
            for scale in scales
        ],
        "proxy": {"name": "frechet_distance", "rank_correlation": -0.71, "ci95": 0.14},
        "config": {"trials": 25},
    }


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False))
