"""What `make gpu-check` asks NVIDIA's tools: whether any kernel of ours reaches beyond its memory or races, and what
bounds the loss.

The tools run `python -m benchmarks.gpu_tools CASE`, a process that launches our kernels and little else.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.checks import ROOT, SEED, Numbers, Skip

LOSS_KERNELS = ("_logsumexp", "_weighted_rows", "_gradient")
LOSS_ROWS, LOSS_DIM = 32_768, 256
SECTIONS = (
    "SpeedOfLight",
    "LaunchStats",
    "Occupancy",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "WarpStateStats",
)
NCU = {  # what these sections call the numbers that our records have
    "ms": "Duration",
    "sm_share": "Compute (SM) Throughput",
    "dram_share": "DRAM Throughput",
    "l2_share": "L2 Cache Throughput",
    "occupancy": "Achieved Occupancy",
    "registers": "Registers Per Thread",
}
UNITS = {"second": 1e3, "s": 1e3, "msecond": 1.0, "ms": 1.0, "usecond": 1e-3, "us": 1e-3, "nsecond": 1e-6, "ns": 1e-6}


def memory_checked() -> Numbers:
    """compute-sanitizer's memcheck over every op at small, odd sizes, each tensor an allocation of its own."""
    return sanitized("memcheck")


def races_checked() -> Numbers:
    """compute-sanitizer's racecheck: no two threads meet in shared memory without a barrier between them."""
    return sanitized("racecheck")


def sanitized(tool: str) -> Numbers:
    if shutil.which("compute-sanitizer") is None:
        raise Skip("compute-sanitizer is not on the PATH")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    # Without torch's caching a tensor ends where its allocation ends.
    _run([*command, *_case("small_ops")], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    return {}


def loss_kernels(out: Path) -> Numbers:
    """ncu of the three kernels of multi_positive_loss, bfloat16, N 32,768, D 256; its text goes beside the records."""
    if shutil.which("ncu") is None:
        raise Skip("ncu is not on the PATH")
    names = "|".join(LOSS_KERNELS)
    command = ["ncu", "--kernel-name", f"regex:^({names})$", "--launch-count", str(len(LOSS_KERNELS))]
    for section in SECTIONS:
        command += ["--section", section]
    text = _run([*command, *_case("loss")])
    out.mkdir(parents=True, exist_ok=True)
    (out / "ncu_loss_kernels.txt").write_text(text)
    numbers = ncu_numbers(text)
    assert len(numbers) == len(LOSS_KERNELS), f"ncu saw {sorted(numbers)}; its text is in {out}"
    return {f"{kernel[1:]}_{name}": value for kernel, found in numbers.items() for name, value in found.items()}


def ncu_numbers(text: str) -> dict[str, dict[str, float]]:
    """By kernel, what ncu's text says of each of NCU's names; times in milliseconds."""
    numbers: dict[str, dict[str, float]] = {}
    for block in re.split(r"^  (?=\w[^\n]*Context \d)", text, flags=re.MULTILINE)[1:]:
        found = numbers.setdefault(re.split(r"[ (<]", block, maxsplit=1)[0], {})
        for name, label in NCU.items():
            if line := re.search(rf"^ +{re.escape(label)} +(\S+) +([\d.,]+) *$", block, flags=re.MULTILINE):
                value = float(line[2].replace(",", ""))
                found[name] = value * UNITS[line[1]] if name == "ms" else value
    return numbers


def _case(name: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu_tools", name]


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What it prints; its last lines, if it fails."""
    run = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | (environment or {}),
    )
    if run.returncode:
        print("\n".join(run.stdout.splitlines()[-40:]), flush=True)
    assert run.returncode == 0, f"{command[0]} ended with {run.returncode}; its last lines are above"
    return run.stdout


def small_ops(device: str = "cuda", dims: tuple[int, ...] = (30, 256, 512)) -> None:
    """Every op and its backward, at sizes that fill no tile, in each dtype that has kernels of its own."""
    from stablerep.ops import AugmentSpec, guided_step, image_text_loss, multi_positive_loss, philox_normal, to_pixels
    from stablerep.ops import strong_augment as augment

    generator = torch.Generator().manual_seed(SEED)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    ids = torch.arange(3, device=device)
    for shape in ((63,), (4, 8, 8)):
        philox_normal(SEED, ids, ids, shape, impl="native")
    table, step, scale = normal(2, 5), ids[1], torch.tensor(2.0, device=device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for elements in (63, 128):
            latents = normal(3, elements)
            guided_step(latents, normal(6, elements, dtype=dtype), latents, table, step, scale, impl="native")
        for layout in (torch.contiguous_format, torch.channels_last):
            images = normal(2, 3, 45, 33, dtype=dtype).contiguous(memory_format=layout)
            for size in (None, 20, 70):
                to_pixels(images, size, impl="native")
    keys = torch.stack([torch.arange(4, device=device)] * 3, dim=1)
    spec = AugmentSpec(image_size=40, blur=1.0, downsample=0.5, seed=SEED)
    sizes = [(1, 1), (63, 40), (97, 30), (40, 40)]
    ragged = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8).to(device) for size in sizes]
    for pictures in (ragged, torch.stack([ragged[1]] * 4)):
        for layout in (torch.contiguous_format, torch.channels_last):
            augment(pictures, keys, spec, memory_format=layout, impl="native")
    labels = torch.arange(130, device=device) // 3
    for dim in dims:
        features = normal(130, dim, dtype=torch.bfloat16).requires_grad_()
        multi_positive_loss(features, labels, impl="triton").backward()
        image_text_loss(features, features * 2, labels, scale, impl="triton").backward()
    if device == "cuda":
        torch.cuda.synchronize()


def loss(device: str = "cuda", rows: int = LOSS_ROWS) -> None:
    """multi_positive_loss and its gradient, once."""
    from stablerep.ops import multi_positive_loss

    features = torch.randn(rows, LOSS_DIM, device=device, dtype=torch.bfloat16, requires_grad=True)
    multi_positive_loss(features, torch.arange(rows, device=device) // 6, impl="triton").backward()
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    {"small_ops": small_ops, "loss": loss}[sys.argv[1]]()
