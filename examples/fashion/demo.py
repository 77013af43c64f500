"""Is synthetic data worth it? The whole loop on garments, in one command.

    python -m examples.fashion.demo --out runs/demo

Makes prompts of every kind of garment, takes as many real photos, and asks stablerep.poc: encoders are trained on the
same number of pictures (real, synthetic, both) and measured on real test photos beside raw pixels and an untrained
encoder. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table

import stablerep
from examples.fashion.captions import all_captions
from stablerep import atomic
from stablerep.config import UserError
from stablerep.data.labelled import FASHION_MNIST_CLASSES, fashion_mnist
from stablerep.poc.split import spread
from stablerep.report import Report, write_report
from stablerep.shards import read_pictures

NUM_PROMPTS, IMAGES_PER_PROMPT = 200, 20
NUM_IMAGES = NUM_PROMPTS * IMAGES_PER_PROMPT  # seen by each trained encoder, whatever they are
SEED = 0
SAMPLING = {"num_inference_steps": 12, "scheduler": "dpmsolver++", "guidance_scale": 2.0}
ARCH = "resnet10t"
TRAINING = {
    "arch": ARCH,
    "image_size": 32,
    "batch_size": 256,
    "steps": 500,
    "views_per_prompt": 4,
    "base_lr": 2e-3,
    "warmup": 0.1,
    "head_hidden": 512,
    "head_out": 128,
    "min_scale": 0.5,  # the garments are centred and fill the picture: small crops cost a point and a half
    "blur": 0.0,  # 32 pixels have no detail to spare
}
MAX_TRAIN = 10_000  # labelled photos that the probes learn from; all 10,000 test photos are asked
# What the results call the arms of the proof of concept.
FEATURES = {
    "pixels": "pixels",
    "untrained": "untrained",
    "real": "simclr_real",
    "synthetic": "stablerep_synthetic",
    "hybrid-0.5": "stablerep_hybrid",
}
NAMES = {
    "pixels": "raw pixels",
    "untrained": "untrained encoder",
    "simclr_real": "SimCLR on real photos",
    "stablerep_synthetic": "StableRep on synthetic",
    "stablerep_hybrid": "StableRep on half of each",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    out = parser.parse_args().out
    try:
        demo(out)
    except UserError as error:
        raise SystemExit(f"demo: {error}") from error


def demo(out: Path) -> None:
    console, inputs = Console(highlight=False), out / "inputs"
    choose_inputs(inputs)
    found = stablerep.poc(
        prompts=inputs / "prompts.txt",
        real=str(inputs / "photos"),
        measure_on="fashion-mnist",
        out=out,
        budget_pictures=NUM_IMAGES,
        num_images_per_prompt=IMAGES_PER_PROMPT,
        arms=("pixels", "untrained", "real", "synthetic", "hybrid"),
        real_share=0.5,
        equal_cost=False,
        seeds=1,
        seed=SEED,
        max_train=MAX_TRAIN,
        train=str(inputs / "train.yaml"),
        **SAMPLING,
    )
    results = [result_of(out, arm) for arm in found["arms"]]
    atomic.write(out / "results.json", json.dumps(results, indent=1))
    costs = [(step["name"], step["seconds"]) for step in found["costs"]["steps"]]
    write_report(make_report(out, results, costs), out / "report.html")
    console.print(table(results))
    console.print(answer(results))
    console.print(f"together {sum(seconds for _, seconds in costs):.0f} s; the report: {out / 'report.html'}")


def choose_inputs(folder: Path) -> None:
    """Prompts for every garment in equal parts, as many real photos as pictures will be painted, and the settings.

    The demo's pictures have long been painted and mixed in two halves, which its draw made. They lie where the draw of
    the proof of concept looks for its first half and its second, so that its numbers stay what they were.
    """
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(SEED)
    captions = np.array([str(caption) for caption in all_captions(FASHION_MNIST_CLASSES)])
    of_garment = captions.reshape(len(FASHION_MNIST_CLASSES), -1)
    chosen = np.array([draw.choice(row, NUM_PROMPTS // len(of_garment), replace=False) for row in of_garment])
    order = spread(np.repeat(FASHION_MNIST_CLASSES, chosen.shape[1]).tolist(), SEED)
    prompts = np.empty(order.size, chosen.dtype)
    for first, places in zip((0, 1), np.split(order, 2), strict=True):
        prompts[np.sort(places)] = chosen[:, first::2].ravel()
    atomic.write(folder / "prompts.txt", "".join(f"{prompt}\n" for prompt in prompts))

    photos = fashion_mnist("train")
    halves = np.split(draw.choice(len(photos), NUM_IMAGES, replace=False), 2)
    numbers = np.concatenate([np.sort(half) for half in halves])
    for place, number in zip(spread([""] * NUM_IMAGES, SEED), numbers, strict=True):
        path = folder / "photos" / f"{place:05}.png"
        if not path.exists():
            Image.fromarray(photos.images[number]).save(path)
    atomic.write(folder / "train.yaml", yaml.safe_dump(TRAINING, sort_keys=False))


def result_of(out: Path, arm: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's line of results.json; its seconds are those of painting what it saw and of training on it."""
    (seed,) = arm["seeds"]
    measured = json.loads((out / seed["measured"] / "results.json").read_text())
    columns = ("linear_top1", "few_shot_10", "few_shot_10_ci95", "knn_top1")
    return {
        "features": FEATURES[arm["name"]],
        "images": arm["images"],
        **{name: round(measured[name], 2) for name in columns},
        "seconds": round(seed["seconds"]["paint"] + seed["seconds"]["train"], 1),
    }


def answer(results: Sequence[Mapping[str, Any]]) -> str:
    """The result in a sentence, whichever it is."""
    few_shot = {row["features"]: (row["few_shot_10"], row["few_shot_10_ci95"]) for row in results}
    synthetic, real = few_shot["stablerep_synthetic"], few_shot["simclr_real"]
    gap = synthetic[0] - real[0]
    if abs(gap) <= max(synthetic[1], real[1]):
        verdict = "as good as"
    else:
        verdict = f"{abs(gap):.1f} points {'better' if gap > 0 else 'worse'} than"
    return (
        f"With ten labelled photos a class, an encoder trained on {NUM_IMAGES:,} synthetic pictures alone is {verdict} "
        f"one trained on {NUM_IMAGES:,} real photos ({synthetic[0]:.1f} and {real[0]:.1f} % of real test photos right)."
    )


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    rows = Table("features", title="top-1 on real test photos, %")
    for heading in ("pictures", "linear", "10 a class", "kNN", "seconds"):
        rows.add_column(heading, justify="right")
    for row in results:
        rows.add_row(
            NAMES[row["features"]],
            f"{row['images']:,}" if row["images"] else "-",
            f"{row['linear_top1']:.1f}",
            f"{row['few_shot_10']:.1f} ± {row['few_shot_10_ci95']:.1f}",
            f"{row['knn_top1']:.1f}",
            f"{row['seconds']:.0f}" if row["images"] else "-",
        )
    return rows


def make_report(out: Path, results: Sequence[Mapping[str, Any]], costs: list[tuple[str, float]]) -> Report:
    pictures: dict[str, list[bytes]] = {}
    for row, data in read_pictures(out / "painted/part-1"):
        pictures.setdefault(row["prompt"], []).append(data)
    every = len(pictures) // 20
    return Report(
        title="Is synthetic data worth it? Garments, 32x32",
        answer=answer(results),
        pictures={prompt: pictures[prompt][:10] for prompt in list(pictures)[::every][:20]},
        losses={
            features: read_losses(path)
            for arm, features in FEATURES.items()
            if (path := out / "runs" / arm / f"seed-{SEED}/metrics.jsonl").exists()
        },
        results=results,
        names=NAMES,
        costs=costs,
        settings={
            "pictures": f"{NUM_PROMPTS} prompts, {IMAGES_PER_PROMPT} a prompt, {SAMPLING}",
            "encoder and training": str(TRAINING),
            "labelled photos": f"{MAX_TRAIN:,} for the probes, 10,000 test photos",
        },
    )


def read_losses(path: Path) -> list[tuple[int, float]]:
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]


if __name__ == "__main__":
    main()
