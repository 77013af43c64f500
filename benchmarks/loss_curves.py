"""python -m benchmarks.loss_curves: the losses of a training on one rank and on two, side by side.

Real trainings by torchrun over gloo, on pictures made here, of an encoder with BatchNorm of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

COMMAND = "from stablerep.cli import train; train()"
FLAGS = [
    "--objective", "simclr", "--image-size", "32", "--batch-size", "32", "--head-hidden", "64", "--head-out", "32",
    "--log-every", "1", "--base-lr", "2e-3", "--device", "cpu",
]  # fmt: skip


def write_photos(folder: Path, count: int) -> None:
    """Smooth pictures of colours of their own."""
    folder.mkdir()
    for number in range(count):
        corners = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(corners).resize((48, 48), Image.Resampling.BILINEAR).save(folder / f"{number:04}.png")


def losses(photos: Path, out: Path, ranks: int, arch: str, steps: int) -> list[float]:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "--no-python",
    ]
    command = [*torchrun, sys.executable, "-c", COMMAND, "--data", str(photos), "--out", str(out)]
    subprocess.run(
        [*command, "--arch", arch, "--steps", str(steps), *FLAGS], check=True, capture_output=True, text=True
    )
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet10t")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        write_photos(photos, 64)
        one, many = (
            losses(photos, Path(folder, f"of{ranks}"), ranks, asked.arch, asked.steps) for ranks in (1, asked.ranks)
        )
    print(f"{asked.arch}, loss by step\nstep   1 rank     {asked.ranks} ranks    difference")
    for step, (ours, theirs) in enumerate(zip(one, many, strict=True), 1):
        print(f"{step:4}   {ours:.6f}   {theirs:.6f}   {theirs - ours:+.1e}")


if __name__ == "__main__":
    main()
