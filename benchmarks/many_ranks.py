"""The plan of docs/training.md for many GPUs: bytes and milliseconds of a step by arithmetic, and what can be run here.

    python -m benchmarks.many_ranks --ranks 1024 --rows 64

What every rank does over the whole batch (the picks of a step) is measured on this machine; the network is on paper.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ENCODER, HEAD = 85.8e6, 21.0e6  # weights of ViT-B/16, and of its head 768-4096-4096-256
FORWARD_BACKWARD = 3 * 2 * 17.6e9  # floating point operations a picture of 224
OUT, HIDDEN, BLOCKS = 256, 4096, 14  # 12 blocks, what is around them, the head
FLOPS = 400e12  # what a step reaches in bfloat16 on an H100
WIRE = 50e9  # bytes/s a GPU: a 400 Gb/s adapter each
HOP = 10e-6  # seconds of a hop between nodes
DISK = 1e9  # bytes/s of one writer
PROMPTS, PER_PROMPT, VIEWS = 8_300_000, 10, 6  # CC12M


@dataclass(frozen=True)
class Line:
    what: str
    megabytes: float  # that a rank sends or reads
    milliseconds: float


def plan(ranks: int, rows: int) -> list[Line]:
    """A step of ranks x rows pictures; hops of a collective grow with the logarithm of the ranks (NCCL's trees)."""
    whole = ranks * rows
    hops = HOP * np.log2(ranks)

    def collective(what: str, sent: float, launches: int = 1) -> Line:
        return Line(what, sent / 1e6, (sent / WIRE + launches * hops) * 1e3)

    compute = rows * FORWARD_BACKWARD / FLOPS
    scores = 3 * 2 * rows * whole * OUT / FLOPS  # forward, and two products of the gradient
    weights = ENCODER + HEAD
    return [
        Line("encoder, forward and backward", 0.0, compute * 1e3),
        Line("scores of the loss, forward and backward", 0.0, scores * 1e3),
        collective("gather features (bfloat16)", whole * OUT * 2),
        collective("gather labels and log-sum-exps", whole * 12, launches=2),
        collective("head's BatchNorm: two layers, both ways", 4 * 2 * (2 * HIDDEN * 4), launches=4),
        collective("ddp: gradients (float32), while the encoder goes back", 2 * weights * 4),
        collective("fsdp: weights twice, gradients once, block by block", 3 * weights * 4, launches=3 * BLOCKS),
        Line("checkpoint of one writer", weights * 12 / 1e6, weights * 12 / DISK * 1e3),
    ]


def picks_milliseconds(whole: int) -> float:
    """What a rank takes to choose the pictures of a step, of which it then reads its own, from a set like CC12M."""
    from stablerep.data.sampling import Sampler, open_source

    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            Image.new("RGB", (8, 8)).save(Path(folder, f"{number}.png"))
        source = dataclasses.replace(
            open_source(folder, "prompt", 1),
            members=np.arange(PROMPTS * PER_PROMPT),
            first=np.arange(PROMPTS) * PER_PROMPT,
            count=np.full(PROMPTS, PER_PROMPT),
            caption=np.zeros(PROMPTS, np.uint64),
        )
    sampler = Sampler([source], whole // VIEWS, VIEWS, 0)
    sampler.picks(0)  # orders the epoch
    start = time.perf_counter()
    for step in range(1, 4):
        sampler.picks(step)
    return (time.perf_counter() - start) / 3 * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=384, help="pictures of a rank in a step")
    arguments = parser.parse_args()
    print(f"{arguments.ranks} ranks, {arguments.rows} pictures each: a batch of {arguments.ranks * arguments.rows:,}")
    for line in plan(arguments.ranks, arguments.rows):
        print(f"| {line.what} | {line.megabytes:,.1f} MB | {line.milliseconds:,.2f} ms |")
    whole = arguments.ranks * arguments.rows
    print(f"| choosing the pictures of a step, measured here | | {picks_milliseconds(whole):,.1f} ms |")


if __name__ == "__main__":
    main()
