"""Is StableRep on synthetic pictures ahead of SimCLR on as many real photos? With intervals, and no look at the answer.

    python -m examples.fashion.claim --out runs/claim

1. Every method gets a search of the same size (TRIALS settings) on 5,000 photos held out from the 60,000 of training.
2. Its best setting is trained with SEEDS seeds: other weights, other batches, other photos, other pictures.
3. Only then are the 10,000 test photos asked, once an encoder. The table says what they answered.

Hours on two cores; stopped at any moment, the same line goes on. --publish writes README's table and results.json here.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

import stablerep
from examples.fashion.captions import all_captions
from stablerep import atomic
from stablerep.config import UserError, fingerprint
from stablerep.data.labelled import FASHION_MNIST_CLASSES, LabelledSet, fashion_mnist, rank_in_class
from stablerep.evaluate.few_shot import mean_and_interval

NUM_IMAGES, VIEWS = 4_000, 4  # pictures that a method learns from, whatever they are
HELD_OUT = 500  # photos a class that settings are chosen by; no encoder learns from them
LABELLED = 10_000  # photos that the probes learn from
TRIALS, SEEDS = 8, 5
MEASURES = ("linear_top1", "few_shot_10", "knn_top1")
FIXED = {
    "arch": "resnet10t", "image_size": 32, "batch_size": 256, "warmup": 0.1, "head_hidden": 512, "head_out": 128,
    "blur": 0.0, "steps": 1000,
}  # fmt: skip
# The first value of each is the demo's.
TRAINING: dict[str, tuple[Any, ...]] = {
    "base_lr": (2e-3, 1e-3, 4e-3),
    "temperature": (0.1, 0.07, 0.2),
    "min_scale": (0.5, 0.3, 0.7),
    "jitter_strength": (1.0, 0.5),
    "weight_decay": (0.1, 0.01),
}
PAINTING: dict[str, tuple[Any, ...]] = {"num_prompts": (200, 400, 1000), "guidance_scale": (2.0, 1.0, 3.0)}
SHARE = {"simclr_real": 0.0, "stablerep_synthetic": 1.0, "stablerep_hybrid": 0.5}  # of synthetic pictures
CEILINGS = {"simclr_real_60000": "simclr", "supervised_60000": "supcon"}  # with SimCLR's setting, and all the photos
BASELINES = {"pixels": "pixels", "untrained": "untrained:resnet10t"}
NAMES = {
    "pixels": "raw pixels",
    "untrained": "untrained encoder",
    "simclr_real": "SimCLR on real photos",
    "stablerep_synthetic": "**StableRep on synthetic**",
    "stablerep_hybrid": "StableRep on half of each",
    "simclr_real_60000": "SimCLR on all real photos",
    "supervised_60000": "supervised (SupCon) on all real photos",
}
ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results.json"
BEGIN, END = "<!-- python -m examples.fashion.claim --publish -->\n", "<!-- end -->\n"

Setting = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/claim"))
    parser.add_argument("--publish", action="store_true", help="write README's table and examples/fashion/results.json")
    asked = parser.parse_args()
    try:
        results = claim(asked.out)
        print(table(results), differences(results), sep="\n")
        if asked.publish:
            atomic.write(RESULTS, json.dumps(results, indent=1) + "\n")
            publish(ROOT / "README.md", table(results))
    except UserError as error:
        raise SystemExit(f"claim: {error}") from error


def claim(out: Path) -> list[dict[str, Any]]:
    """The numbers of every method and seed; settings are searched first."""
    console = Console(highlight=False)
    photos = fashion_mnist("train")
    held = rank_in_class(photos.labels, 0) < HELD_OUT
    write_photos(out, photos, held)
    chosen = {}
    for method in SHARE:
        scores = []
        for number, setting in enumerate(settings_of(method)):
            run = train(out, method, setting, seed=0)
            measured = measure(out, run, str(run), f"{out}/validation.csv", seed=0)
            scores.append(np.mean([measured[name] for name in MEASURES]))
            console.print(f"{method}, setting {number + 1} of {TRIALS}: {scores[-1]:.2f} on held-out photos, {setting}")
        chosen[method] = settings_of(method)[int(np.argmax(scores))]
    atomic.write(out / "chosen.json", json.dumps(chosen, indent=1) + "\n")

    results = []
    for method in NAMES:
        setting = chosen["simclr_real"] if method in CEILINGS else chosen.get(method)
        rows: dict[str, list[float]] = {name: [] for name in MEASURES}
        for seed in range(1, SEEDS + 1):  # 0 was the search's
            run = train(out, method, setting, seed) if setting else out / method
            checkpoint = BASELINES.get(method, str(run))
            measured = measure(out, Path(f"{run}-seed{seed}"), checkpoint, "fashion-mnist", seed)
            for name in MEASURES:
                rows[name].append(round(measured[name], 2))
            console.print(f"{method}, seed {seed}: {' / '.join(f'{rows[name][-1]:.1f}' for name in MEASURES)}")
        images = 0 if method in BASELINES else len(photos) - held.sum() if method in CEILINGS else NUM_IMAGES
        results.append({"features": method, "images": int(images), **rows})
        atomic.write(out / "results.json", json.dumps(results, indent=1) + "\n")
    return results


def settings_of(method: str) -> list[Setting]:
    """TRIALS settings, the first of them the demo's, the others drawn: as many for each method."""
    space = TRAINING | (PAINTING if SHARE[method] else {})
    draw = np.random.default_rng(list(SHARE).index(method))
    found = [{name: values[0] for name, values in space.items()}]
    while len(found) < TRIALS:
        setting = {name: values[draw.integers(len(values))] for name, values in space.items()}
        if setting not in found:
            found.append(setting)
    return found


def train(out: Path, method: str, setting: Setting, seed: int) -> Path:
    """The run of a method, a setting and a seed."""
    share, ceiling = SHARE.get(method, 0.0), CEILINGS.get(method)
    data = []
    if share:
        data.append(paint(out, setting, round(share * NUM_IMAGES), seed))
    if share < 1:
        data.append(out / "photos" if ceiling else real_photos(out, round((1 - share) * NUM_IMAGES), seed))
    fields = {name: value for name, value in setting.items() if name in TRAINING} | FIXED
    run = out / "runs" / f"{method}-{fingerprint([setting, FIXED])[:8]}-{seed}"
    views = {} if ceiling == "supcon" or not share else {"views_per_prompt": VIEWS}
    objective = ceiling or ("stablerep" if share else "simclr")
    stablerep.train(
        data=tuple(map(str, data)), out=run, seed=seed, objective=objective, checkpoint_every=500, keep_checkpoints=1,
        **views, **fields,
    )  # fmt: skip
    return run


def measure(out: Path, run: Path, checkpoint: str, data: str, seed: int) -> dict[str, Any]:
    size = FIXED["image_size"] if checkpoint.startswith("untrained") else None
    where = out / "measured" / f"{run.name}-{Path(data).stem}"
    return stablerep.evaluate(
        checkpoint=checkpoint, data=data, out=where, image_size=size, max_train=LABELLED, seed=seed
    )


def paint(out: Path, setting: Setting, number: int, seed: int) -> Path:
    """Pictures of captions drawn by the seed, as many of each garment."""
    per_prompt = NUM_IMAGES // setting["num_prompts"]
    of_garment = np.array([str(caption) for caption in all_captions(FASHION_MNIST_CLASSES)]).reshape(10, -1)
    draw = np.random.default_rng([seed, setting["num_prompts"]])
    each = number // per_prompt // len(of_garment)
    prompts = "\n".join(caption for row in of_garment for caption in draw.choice(row, each, replace=False)) + "\n"
    folder = out / "painted" / f"{fingerprint([prompts, setting['guidance_scale']])[:8]}-{seed}"
    path = folder.with_suffix(".txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, prompts)
    stablerep.generate(
        prompts=path, out=folder, num_images_per_prompt=per_prompt, seed=seed, num_inference_steps=12,
        scheduler="dpmsolver++", guidance_scale=setting["guidance_scale"],
    )  # fmt: skip
    return folder


def real_photos(out: Path, number: int, seed: int) -> Path:
    """A folder of photos drawn by the seed from those that are not held out."""
    folder = out / "real" / f"{number}-{seed}"
    every = sorted((out / "photos").rglob("*.png"))
    folder.mkdir(parents=True, exist_ok=True)
    for row in np.random.default_rng([seed, number]).choice(len(every), number, replace=False):
        link = folder / every[row].name
        if not link.exists():
            link.hardlink_to(every[row])
    return folder


def write_photos(out: Path, photos: LabelledSet, held: np.ndarray) -> None:
    """photos/CLASS/: what may be learned from; held_out/; and a table that measures by the held-out ones."""
    table, labelled = io.StringIO(), rank_in_class(photos.labels, 0)
    rows = csv.writer(table)
    rows.writerow(("path", "label", "split"))
    for number, (image, label) in enumerate(zip(photos.images, photos.labels, strict=True)):
        name = photos.class_names[label]
        path = (out / ("held_out" if held[number] else "photos") / name / f"{number:05}.png").absolute()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")  # 60,000 of them: not each is waited for on the disk
            Image.fromarray(image).save(partial, "png")
            partial.rename(path)
        if held[number] or labelled[number] < HELD_OUT + LABELLED // len(photos.class_names):
            rows.writerow((path, name, "test" if held[number] else "train"))
    atomic.write(out / "validation.csv", table.getvalue())


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean over seeds, and the half-width of its 95 % interval (Student's t)."""
    lines = ["| features | pictures | linear probe | 10 photos a class | kNN |", "| --- | --- | --- | --- | --- |"]
    for row in results:
        cells = ["{:.1f} ± {:.1f}".format(*mean_and_interval(row[name])) for name in MEASURES]
        images = f"{row['images']:,}" if row["images"] else ""
        lines.append(f"| {NAMES[row['features']]} | {images} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def differences(results: Sequence[Mapping[str, Any]]) -> str:
    """Who is ahead of whom, seed by seed, a line each."""
    by_name = {row["features"]: row for row in results}
    return "\n".join(_differences(by_name)) + "\n"


def _differences(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for ours, theirs in (
        ("stablerep_synthetic", "simclr_real"),
        ("stablerep_synthetic", "pixels"),
        ("stablerep_hybrid", "simclr_real"),
        ("stablerep_hybrid", "stablerep_synthetic"),
    ):
        paired = [
            mean_and_interval([a - b for a, b in zip(rows[ours][name], rows[theirs][name], strict=True)])
            for name in MEASURES
        ]
        numbers = " / ".join(f"{mean:+.1f} ± {interval:.1f}" for mean, interval in paired)
        yield f"{NAMES[ours].strip('*')} less {NAMES[theirs].strip('*')}: {numbers}"


def publish(readme: Path, markdown: str) -> None:
    """Write the table between the two marks.

    Raises:
        UserError: the page has no such marks.
    """
    before, mark, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise UserError(f"{readme} lacks the lines {BEGIN.strip()} and {END.strip()} that the table goes between")
    atomic.write(readme, before + BEGIN + markdown + END + after)


if __name__ == "__main__":
    main()
