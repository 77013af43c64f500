"""`python -m benchmarks.structure`: how long the files are, and which of them a prompt and a batch meet."""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "stablerep"


def files_met(run: Callable[[], object], reached: Callable[[FrameType], bool]) -> list[str]:
    """Our files on the stack when run first calls a function for which reached is true, from the outside in."""
    met: list[str] = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or met or not reached(frame):
            return
        caller: FrameType | None = frame
        while caller is not None:
            path = Path(caller.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                met.append(str(path.relative_to(PACKAGE).with_suffix("")))
            caller = caller.f_back
        met.reverse()

    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
    return list(dict.fromkeys(met))


def files_to_unet(folder: Path) -> list[str]:
    from diffusers import UNet2DConditionModel

    from stablerep import cli

    prompts = folder / "prompts.txt"
    prompts.write_text("a photo of a bag\n")
    few = ["--num-inference-steps", "2", "--num-images-per-prompt", "1", "--engine", "torch", "--device", "cpu"]
    argv = ["--prompts", str(prompts), "--out", str(folder / "shards"), *few]
    unet = UNet2DConditionModel.forward.__code__
    return files_met(lambda: cli.gen(argv), lambda frame: frame.f_code is unet)


def files_to_loss(folder: Path) -> list[str]:
    from PIL import Image

    from stablerep import cli

    photos = folder / "photos"
    photos.mkdir()
    for level in range(4):
        Image.new("RGB", (32, 32), (60 * level,) * 3).save(photos / f"{level}.png")
    small = ["--arch", "resnet10t", "--image-size", "32", "--head-hidden", "16", "--steps", "1", "--device", "cpu"]
    argv = ["--data", str(photos), "--out", str(folder / "run"), *small, "--views-per-prompt", "2", "--batch-size", "4"]

    def is_loss(frame: FrameType) -> bool:
        return frame.f_code.co_name == "logsumexp" and "tiled" in frame.f_code.co_filename

    return files_met(lambda: cli.train(argv), is_loss)


def main() -> None:
    lines = sorted(len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py"))
    patches = sum(len(re.findall(r"\.setattr\(", path.read_text())) for path in (ROOT / "tests").rglob("*.py"))
    with tempfile.TemporaryDirectory() as folder:
        to_unet, to_loss = files_to_unet(Path(folder)), files_to_loss(Path(folder))
    print(f"files in stablerep/: {len(lines)}; lines: {sum(lines)}")
    print(f"lines a file: median {statistics.median(lines):.0f}, 90th percentile {lines[len(lines) * 9 // 10]}")
    for goal, (command, *met) in (("UNet", to_unet), ("loss", to_loss)):
        print(f"from command to {goal}: {len(met)} files after {command}: {', '.join(met)}")
    print(f"monkeypatch.setattr in tests/: {patches}")


if __name__ == "__main__":
    main()
