"""Is synthetic data worth it? The whole loop on garments, in one command.

    python -m examples.fashion.demo --out runs/demo

Paints pictures of every kind of garment, trains encoders on the same number of pictures (real, synthetic, both) and
measures them on real test photos beside raw pixels and an untrained encoder. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

import stablerep
from examples.fashion.captions import all_captions
from stablerep import atomic
from stablerep.config import UserError
from stablerep.data.labelled import FASHION_MNIST_CLASSES, fashion_mnist
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
    "base_lr": 2e-3,
    "warmup": 0.1,
    "head_hidden": 512,
    "head_out": 128,
    "min_scale": 0.5,  # the garments are centred and fill the picture: small crops cost a point and a half
    "blur": 0.0,  # 32 pixels have no detail to spare
}
MAX_TRAIN = 10_000  # labelled photos that the probes learn from; all 10,000 test photos are asked
# Pictures lie in two halves, a and b, so that the mixed run takes half of each kind.
RUNS: dict[str, dict[str, Any]] = {
    "simclr_real": {"objective": "simclr", "data": ("real",)},
    "stablerep_synthetic": {"objective": "stablerep", "data": ("synthetic_a", "synthetic_b"), "views_per_prompt": 4},
    "stablerep_hybrid": {"objective": "stablerep", "data": ("synthetic_a", "real/a"), "views_per_prompt": 4},
}
NAMES = {
    "pixels": "raw pixels",
    "untrained": "untrained encoder",
    "simclr_real": "SimCLR on real photos",
    "stablerep_synthetic": "StableRep on synthetic",
    "stablerep_hybrid": "StableRep on half of each",
}
NUM_STEPS = 3 + len(RUNS) + len(NAMES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    out = parser.parse_args().out
    try:
        demo(out)
    except UserError as error:
        raise SystemExit(f"demo: {error}") from error


def demo(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock(out / "seconds.json")
    clock.run("inputs", "choose prompts and real photos", lambda: choose_inputs(out))
    for half in "ab":
        clock.run(f"paint_{half}", f"paint pictures, half {half}", lambda half=half: paint(out, half))
    for run in RUNS:
        clock.run(f"train_{run}", f"train {NAMES[run]}", lambda run=run: train(out, run))
    results = [
        {"features": features, "images": NUM_IMAGES if features in RUNS else 0}
        | clock.run(f"measure_{features}", f"measure {name}", lambda features=features: measure(out, features))
        | {"seconds": round(cost(features, clock.seconds), 1)}
        for features, name in NAMES.items()
    ]
    atomic.write(out / "results.json", json.dumps(results, indent=1))
    write_report(make_report(out, results, clock.costs()), out / "report.html")
    clock.console.print(table(results))
    clock.console.print(answer(results))
    clock.console.print(f"together {sum(clock.seconds.values()):.0f} s; the report: {out / 'report.html'}")


class Clock:
    """Says each step before it starts and keeps what it took, also over a stop and a rerun."""

    def __init__(self, path: Path) -> None:
        self.console = Console(highlight=False)
        self.seconds: dict[str, float] = {}
        self._titles: dict[str, str] = {}
        self._path = path
        self._done: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        self._number = itertools.count(1)

    def run(self, key: str, title: str, work: Callable[[], Any]) -> Any:
        self.console.print(f"[bold]{next(self._number)}/{NUM_STEPS} {title}[/bold]")
        start = time.perf_counter()
        result = work()
        # A step that was finished before returns at once: its cost is what it took then.
        self._titles[key] = title
        self.seconds[key] = self._done.setdefault(key, round(time.perf_counter() - start, 1))
        atomic.write(self._path, json.dumps(self._done, indent=1))
        return result

    def costs(self) -> list[tuple[str, float]]:
        """Each step's title and seconds, in the order they ran."""
        return [(self._titles[key], seconds) for key, seconds in self.seconds.items()]


def choose_inputs(out: Path) -> None:
    """Prompts for every garment in equal parts, and as many real photos as pictures will be painted."""
    draw = np.random.default_rng(SEED)
    captions = np.array([str(caption) for caption in all_captions(FASHION_MNIST_CLASSES)])
    of_garment = captions.reshape(len(FASHION_MNIST_CLASSES), -1)
    chosen = [draw.choice(row, NUM_PROMPTS // len(of_garment), replace=False) for row in of_garment]
    for half, first in zip("ab", (0, 1), strict=True):
        lines = [f"{caption}\n" for row in chosen for caption in row[first::2]]
        (out / f"prompts_{half}.txt").write_text("".join(lines))

    photos = fashion_mnist("train")
    numbers = draw.choice(len(photos), NUM_IMAGES, replace=False)
    for half, of_half in zip("ab", np.split(numbers, 2), strict=True):
        folder = out / "real" / half
        folder.mkdir(parents=True, exist_ok=True)
        for number in of_half:
            path = folder / f"{number:05}.png"
            if not path.exists():
                Image.fromarray(photos.images[number]).save(path)


def paint(out: Path, half: str) -> None:
    stablerep.generate(
        prompts=out / f"prompts_{half}.txt",
        out=out / f"synthetic_{half}",
        num_images_per_prompt=IMAGES_PER_PROMPT,
        seed=SEED + "ab".index(half),  # prompt ids begin at 0 in both halves; their noise should differ
        **SAMPLING,
    )


def train(out: Path, run: str) -> None:
    fields = RUNS[run] | {"data": tuple(str(out / name) for name in RUNS[run]["data"])}
    stablerep.train(out=out / run, seed=SEED, **fields, **TRAINING)


def measure(out: Path, features: str) -> dict[str, float]:
    checkpoint = {"pixels": "pixels", "untrained": f"untrained:{ARCH}"}.get(features, str(out / features))
    size = TRAINING["image_size"] if features == "untrained" else None  # a trained encoder brings its own
    measured = stablerep.evaluate(
        checkpoint=checkpoint,
        data="fashion-mnist",
        out=out / "measured" / features,
        image_size=size,
        max_train=MAX_TRAIN,
        seed=SEED,
    )
    return {name: round(measured[name], 2) for name in ("linear_top1", "few_shot_10", "few_shot_10_ci95", "knn_top1")}


def cost(features: str, seconds: Mapping[str, float]) -> float:
    """Seconds to paint the pictures a run saw and to train on them."""
    if features not in RUNS:
        return 0.0
    halves = [name[-1] for name in RUNS[features]["data"] if name.startswith("synthetic")]
    return seconds[f"train_{features}"] + sum(seconds[f"paint_{half}"] for half in halves)


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
    for row, data in read_pictures(out / "synthetic_a"):
        pictures.setdefault(row["prompt"], []).append(data)
    every = len(pictures) // 20
    return Report(
        title="Is synthetic data worth it? Garments, 32x32",
        answer=answer(results),
        pictures={prompt: pictures[prompt][:10] for prompt in list(pictures)[::every][:20]},
        losses={run: read_losses(out / run / "metrics.jsonl") for run in RUNS},
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
