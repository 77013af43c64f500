"""`python -m benchmarks.structure`: how long the files are, and whom a prompt and a batch meet on their way."""

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


def way_of_a_prompt(folder: Path) -> list[str]:
    from diffusers import UNet2DConditionModel

    from stablerep import cli

    prompts = folder / "prompts.txt"
    prompts.write_text("a photo of a bag\n")
    options = ["--engine", "torch", "--num-inference-steps", "2", "--num-images-per-prompt", "2", "--device", "cpu"]
    sys.argv = ["stablerep-gen", "--prompts", str(prompts), "--out", str(folder / "shards"), *options]
    unet = UNet2DConditionModel.forward.__code__
    return files_met(cli.gen, lambda frame: frame.f_code is unet)


def way_of_a_batch(folder: Path) -> list[str]:
    from stablerep import cli

    options = ["--arch", "resnet10t", "--image-size", "32", "--head-hidden", "16", "--steps", "1", "--device", "cpu"]
    views = ["--views-per-prompt", "2", "--batch-size", "4"]
    data = folder / "photos"
    data.mkdir()
    for path in (folder / "shards").glob("*.tar"):
        import tarfile

        with tarfile.open(path) as tar:
            pictures = [member for member in tar if member.name.endswith(".jpg")]
            for number in range(4):
                extracted = tar.extractfile(pictures[number % 2])
                assert extracted is not None
                (data / f"{number}.jpg").write_bytes(extracted.read())
    sys.argv = ["stablerep-train", "--data", str(data), "--out", str(folder / "run"), *options, *views]

    def is_loss(frame: FrameType) -> bool:
        return frame.f_code.co_name == "logsumexp" and "tiled" in frame.f_code.co_filename

    return files_met(cli.train, is_loss)


def main() -> None:
    lines = sorted(len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py"))
    patches = sum(len(re.findall(r"\.setattr\(", path.read_text())) for path in (ROOT / "tests").rglob("*.py"))
    with tempfile.TemporaryDirectory() as folder:
        prompt = way_of_a_prompt(Path(folder))
        batch = way_of_a_batch(Path(folder))
    print(f"files in stablerep/: {len(lines)}; lines: {sum(lines)}")
    print(f"lines a file: median {statistics.median(lines):.0f}, 90th percentile {lines[len(lines) * 9 // 10]}")
    print(f"from command to UNet:  {len(prompt) - 1} files after {prompt[0]}: {', '.join(prompt[1:])}")
    print(f"from command to loss:  {len(batch) - 1} files after {batch[0]}: {', '.join(batch[1:])}")
    print(f"monkeypatch.setattr in tests/: {patches}")


if __name__ == "__main__":
    main()
