"""Paint with ONNX Runtime where memory runs out: python -m tests.engines.memory_driver STORE.

Prints the batch size that fitted and by how many grey levels the pictures differ from those painted with room.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from torch import Tensor

from stablerep.engines.select import open_engine
from stablerep.engines.store import Store
from stablerep.generate.config import GenerateConfig
from stablerep.generate.painter import BatchSize, Painter, paint_shard
from stablerep.generate.pipeline import open_pipeline
from stablerep.generate.schedulers import make_schedule
from stablerep.prompts import Prompt

CPU = torch.device("cpu")
MOST = 256
ROOM = 100 << 20  # bytes of address space beyond what is taken before the first batch


def main(store: Path) -> None:
    pipeline = open_pipeline("default", CPU)
    engine = open_engine("onnx", pipeline, Store(store), batch_size=2)
    fields = {"num_images_per_prompt": MOST, "num_inference_steps": 1, "screen": "keep"}
    config = GenerateConfig(prompts=Path("p.txt"), out=Path("out"), **fields)
    schedule = make_schedule("ddim", pipeline.scheduler_config, 1, CPU)

    def paint(batch_size: int) -> tuple[list[Tensor], int]:
        painter = Painter(pipeline, engine, schedule, config, BatchSize(batch_size))
        [pictures] = paint_shard(painter, [Prompt(0, "a photo of a bag")])
        return [picture.pixels for picture in pictures], painter.batch_size.value

    paint(2)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.RLIM_INFINITY))
    got, fitted = paint(MOST)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    expected, _ = paint(MOST)
    difference = max(int((a.int() - b.int()).abs().max()) for a, b in zip(got, expected, strict=True))
    sys.stdout.write(f"{fitted} {difference}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
