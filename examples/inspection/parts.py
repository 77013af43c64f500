"""Photos of metal and fabric parts with scratches, dents, stains and holes, drawn: the "real" world of this example.

    python -m examples.inspection.parts --out runs/parts

writes OUT/train/CLASS/ and OUT/test/CLASS/ (good, dent, hole, scratch, stain), the table photos.csv (path, label,
split, caption) and prompts.csv. Its labels are the states, or with --label kind which of the eight parts it is.
Test photos are taken under light from other sides, and by a noisier camera.
Each photo is a function of (seed, split, number).
"""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.inspection.camera import TEST, TRAIN, Conditions, take_photo
from examples.inspection.surface import DEFECTS, MATERIALS, SHAPES, draw_part
from stablerep import atomic

CLASSES = ("good", *DEFECTS)
# Short words: the embedded generator's tokenizer, made for garments, takes letter by letter what it does not know.
WORDS = {"dent": "dented", "hole": "pierced", "scratch": "scratched", "stain": "stained"}
SPLITS: dict[str, Conditions] = {"train": TRAIN, "test": TEST}


@dataclass(frozen=True)
class Part:
    """What a photo shows."""

    material: str
    shape: str
    label: str  # of CLASSES

    @property
    def kind(self) -> str:
        return f"{self.material}_{self.shape}"

    @property
    def caption(self) -> str:
        state = [WORDS[self.label]] if self.label in WORDS else []
        thing = ["a", *state, "metal", self.shape] if self.material == "metal" else [*state, self.shape, "cloth"]
        return " ".join(["a photo of", *thing])


def all_parts() -> list[Part]:
    """Every shape of every material in every state, 40 in all."""
    return [
        Part(material, shape, label)
        for label, material in product(CLASSES, MATERIALS)
        for shape in SHAPES[material]
    ]  # fmt: skip


def draw(part: Part, conditions: Conditions, size: int, *key: int) -> NDArray[np.uint8]:  # [size, size, 3]
    """A photo of such a part; another one for each key."""
    drawn = np.random.default_rng(key)
    surface = draw_part(part.material, part.shape, part.label, drawn)
    return take_photo(surface, conditions, size, drawn)


def photos(split: str, count: int, size: int, seed: int) -> list[tuple[Part, NDArray[np.uint8]]]:
    """Photos of every kind of part in equal numbers."""
    parts = all_parts()
    order = np.random.default_rng((seed, len(split))).permutation(count) % len(parts)
    return [
        (parts[kind], draw(parts[kind], SPLITS[split], size, seed, list(SPLITS).index(split), number))
        for number, kind in enumerate(order)
    ]


def write(out: Path, *, train: int, test: int, size: int, seed: int, label: str = "state") -> None:
    def label_of(part: Part) -> str:
        return part.kind if label == "kind" else part.label

    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(("path", "label", "split", "caption"))
    for split, count in (("train", train), ("test", test)):
        for number, (part, pixels) in enumerate(photos(split, count, size, seed)):
            path = Path(split, part.label, f"{part.kind}_{number:04}.png")
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(out / path)
            rows.writerow((path, label_of(part), split, part.caption))
    atomic.write(out / "photos.csv", table.getvalue())
    prompts = io.StringIO()
    rows = csv.writer(prompts)
    rows.writerow(("prompt", "label"))
    rows.writerows((part.caption, label_of(part)) for part in all_parts())
    atomic.write(out / "prompts.csv", prompts.getvalue())


def contact_sheet(split: str, size: int, seed: int) -> Image.Image:
    """A row a class, a column a kind of part, twice."""
    kinds = [(material, shape) for material in MATERIALS for shape in SHAPES[material]] * 2
    rows = [
        np.concatenate(
            [draw(Part(*kind, label), SPLITS[split], size, seed, 9, column, row) for column, kind in enumerate(kinds)],
            axis=1,
        )
        for row, label in enumerate(CLASSES)
    ]
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=200, help="training photos")
    parser.add_argument("--test", type=int, default=1000, help="test photos, taken under other conditions")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--label", choices=("state", "kind"), default="state", help="what the classes are")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out, train=args.train, test=args.test, size=args.size, seed=args.seed, label=args.label)
    for split in SPLITS:
        contact_sheet(split, args.size, args.seed).save(args.out / f"{split}.png")
    print(f"{args.train} training photos, {args.test} test photos, prompts.csv and two contact sheets in {args.out}")


if __name__ == "__main__":
    main()
