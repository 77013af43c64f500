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
from stablerep.report.words import answer

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
    page = stablerep.report(run=out)
    console.print(table(results))
    console.print(answer(found))
    seconds = sum(step["seconds"] for step in found["costs"]["steps"])
    console.print(f"together {seconds:.0f} s; the report: {page}")


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


if __name__ == "__main__":
    main()
