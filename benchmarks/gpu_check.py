"""`make gpu-check`: everything that needs a CUDA GPU, in under ten minutes; a line per check, and the numbers as JSON.

What is not installed is skipped by name. Without a GPU every check is listed as skipped and the exit code is 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import record
from stablerep import native

Numbers = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
SEED = 5


class Skip(Exception):
    """A check cannot run here; the text says why."""


@dataclass(frozen=True)
class Result:
    name: str
    status: str  # passed, failed or skipped
    seconds: float
    detail: str
    numbers: Numbers


def native_half() -> Numbers:
    """The CUDA half of the extension is built and runs."""
    if reason := native.why_not("cuda"):
        raise Skip(reason)
    noise_on("cuda", "native", (4, 8, 8))
    torch.cuda.synchronize()
    return dict(native.build_info() or {})


def noise_on(device: str, impl: str, shape: tuple[int, ...]) -> torch.Tensor:
    from stablerep.ops import philox_normal

    ids = torch.arange(48, device=device)
    return philox_normal(SEED, ids * 10**10, ids % 6, shape, impl=impl).cpu()  # type: ignore[arg-type]


def philox_normal() -> Numbers:
    """Noise on CUDA is the noise of the CPU, in each implementation and at odd sizes."""
    worst, same_bits = 0.0, True
    for shape in [(1,), (63,), (127,), (1000,), (4, 64, 64)]:
        expected = noise_on("cpu", "reference", shape)
        for impl in ("reference", "native"):
            if impl == "native" and native.why_not("cuda"):
                continue
            actual = noise_on("cuda", impl, shape)
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
            worst = max(worst, float((actual - expected).abs().max()))
            if impl == "native" and native.why_not("cpu") is None:
                same_bits &= torch.equal(actual, noise_on("cpu", impl, shape))
    return {"worst_error": worst, "native_has_the_bits_of_the_cpu": same_bits, "native": native.why_not("cuda") is None}


def guided_step() -> Numbers:
    """A guided step on CUDA has the digits of the CPU's, in every dtype, aligned or not, with and without guidance."""
    from stablerep.ops import guided_step

    generator = torch.Generator().manual_seed(SEED)
    table = torch.tensor([[2.1, -1.85, 0.91, 0.14, -0.05], [14.6, -14.57, 0.97, 0.03, 0.0]])
    halves = ((torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16))
    same_bits, worst = True, 0.0
    for latents_dtype, output_dtype in (*halves, (torch.float32, torch.float32), (torch.float32, torch.bfloat16)):
        for shape in [(1, 1), (3, 63), (2, 127), (3, 1000), (16, 4, 64, 64)]:
            for halves_of_output in (1, 2):
                latents, x0 = torch.randn((2, *shape), generator=generator).to(latents_dtype)
                output = torch.randn((halves_of_output * shape[0], *shape[1:]), generator=generator).to(output_dtype)
                for step, scale in ((0, torch.tensor(2.0)), (1, torch.linspace(0, 7.5, shape[0]))):
                    inputs = (latents, output, x0, table, torch.tensor(step), scale)
                    actual = guided_step(*(tensor.cuda() for tensor in inputs))
                    for one, other in zip(actual, guided_step(*inputs), strict=True):
                        difference = (one.cpu().double() - other.double()).abs().max()
                        assert difference <= 4 * torch.finfo(latents_dtype).eps * other.abs().max().double()
                        worst, same_bits = max(worst, float(difference)), same_bits and not difference
    return {"worst_error": worst, "native_has_the_bits_of_the_cpu": same_bits, "native": native.why_not("cuda") is None}


def to_pixels() -> Numbers:
    """Pixels on CUDA are those of the CPU to a grey level, in every dtype and layout, and in a pool."""
    from stablerep.ops import to_pixels

    generator = torch.Generator().manual_seed(SEED)
    different = total = 0
    for height, width, size in [
        (1, 1, None),
        (63, 127, None),
        (63, 127, 40),
        (40, 33, 70),
        (512, 512, 256),
        (1000, 64, 1),
    ]:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for layout in (torch.contiguous_format, torch.channels_last):
                images = torch.randn((3, 3, height, width), generator=generator).to(dtype)
                images = images.contiguous(memory_format=layout)
                expected = to_pixels(images, size)
                actual = to_pixels(images.cuda(), size)
                pool = torch.full((4, *expected.shape[1:]), 77, dtype=torch.uint8, device="cuda")
                to_pixels(images.cuda(), size, pool, torch.tensor([2, -1, 2], device="cuda"))
                assert torch.equal(pool[2], actual[2]) and (pool[[0, 1, 3]] == 77).all()
                difference = (actual.cpu().int() - expected.int()).abs()
                assert difference.max() <= 1
                different, total = different + int(difference.sum()), total + difference.numel()
    assert different <= 1e-4 * total
    return {"share_of_different_levels": different / total, "native": native.why_not("cuda") is None}


def multi_positive_loss() -> Numbers:
    """The loss and its gradient on CUDA against float64 on the CPU, in float32 and bfloat16."""
    from stablerep.ops import multi_positive_loss

    def loss_and_gradient(features: torch.Tensor, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = features.to(device, copy=True).requires_grad_()
        loss = multi_positive_loss(leaf, labels.to(device))
        loss.backward()
        assert leaf.grad is not None
        return loss.detach().cpu().double(), leaf.grad.cpu().double()

    generator = torch.Generator().manual_seed(SEED)
    numbers: Numbers = {}
    for rows in (1, 63, 127, 1000, 2048):
        labels = torch.randint(0, max(1, rows // 5), (rows,), generator=generator)
        features = torch.randn(rows, 256, generator=generator)
        for dtype in (torch.float32, torch.bfloat16):
            rounded = features.to(dtype)
            exact_loss, exact = loss_and_gradient(rounded.double(), "cpu")
            loss, gradient = loss_and_gradient(rounded, "cuda")
            torch.testing.assert_close(loss, exact_loss, rtol=1e-5, atol=1e-5)
            error = float((gradient - exact).norm() / exact.norm().clamp(min=1e-30)) if exact.any() else 0.0
            assert error < 4 * torch.finfo(dtype).eps + 1e-5, f"gradient off by {error:.1e} at {rows} rows, {dtype}"
            numbers[f"gradient_error_{rows}_{str(dtype).removeprefix('torch.')}"] = error
    return numbers


def no_waiting() -> Numbers:
    """No op waits for the device."""
    from stablerep.ops import guided_step, multi_positive_loss, philox_normal, to_pixels

    labels = torch.arange(96, device="cuda") // 6
    features = torch.randn(96, 64, device="cuda", requires_grad=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        multi_positive_loss(features, labels).backward()
        philox_normal(SEED, labels, labels, (4, 8, 8))
        latents, zero = torch.randn(96, 4, 8, 8, device="cuda"), torch.zeros((), dtype=torch.int64, device="cuda")
        guided_step(latents, latents, latents, torch.ones(1, 5, device="cuda"), zero, zero.float())
        to_pixels(latents[:, :3], 4, torch.zeros(96, 4, 4, 3, dtype=torch.uint8, device="cuda"), labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {}


def op_benchmarks(out: Path) -> Numbers:
    """Benchmarks of the ops, each beside its peers."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"{ROOT}/benchmarks/ops", "-k", "cuda", "--benchmark", f"--out={folder}", "-q", "--no-header"]
        code = pytest.main([*arguments, "-p", "no:cacheprovider"])
        rows = [json.loads(line) for file in Path(folder).glob("*.jsonl") for line in file.read_text().splitlines()]
        for file in Path(folder).glob("*.jsonl"):
            out.mkdir(parents=True, exist_ok=True)
            with (out / file.name).open("a") as kept:
                kept.write(file.read_text())
    assert code == 0, f"pytest ended with {code!r}; its lines are above"
    return {"rows": rows}


def generation() -> Numbers:
    """Pictures per second of the embedded generator."""
    from stablerep.config import UserError
    from stablerep.generate.config import GenerateConfig
    from stablerep.generate.job import generate

    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder, "prompts.txt")
        prompts.write_text("".join(f"a photo of a plain slim ankle boot, number {i}\n" for i in range(400)))

        def run(name: str, **fields: Any) -> Any:
            return generate(
                GenerateConfig(prompts=str(prompts), out=f"{folder}/{name}", batch_size=512, device="cuda", **fields)
            )

        try:
            run("warm", num_images_per_prompt=2, num_inference_steps=2)
        except UserError as error:
            raise Skip(str(error)) from error
        summary = run("out", num_images_per_prompt=10, num_inference_steps=50)
    return {"images_per_second": summary.images_made / summary.seconds, "images": summary.images_made}


def training() -> Numbers:
    """Pictures per second of the training loop, ViT-B/16 at 224, from JPEG files, the last half of 60 steps."""
    from PIL import Image

    from stablerep.train.config import TrainConfig
    from stablerep.train.loop import train

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.mkdir()
        noise = np.random.default_rng(SEED)
        for i in range(1024):
            coarse = noise.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((256, 256)).save(data / f"{i:04}.jpg", quality=95)
        out = Path(folder, "run")
        train(TrainConfig(data=(str(data),), out=out, batch_size=384, steps=60, log_every=10, device="cuda"))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    late = lines[len(lines) // 2 :]
    return {name: float(np.mean([line[name] for line in late])) for name in ("images_per_second", "data_wait_share")}


def run_check(name: str, check: Callable[[], Numbers]) -> Result:
    start = time.perf_counter()
    torch.manual_seed(SEED)
    random.seed(SEED)
    try:
        status, detail, numbers = "passed", "", check()
    except Skip as skip:
        status, detail, numbers = "skipped", str(skip), {}
    except ModuleNotFoundError as error:
        ours = (error.name or "").startswith("stablerep")  # then it is our mistake
        status, detail, numbers = "failed" if ours else "skipped", f"{error.name} is not installed", {}
    except Exception as error:
        traceback.print_exc()
        text = str(error).strip().splitlines() or [""]
        status, detail, numbers = "failed", f"{type(error).__name__}: {text[0]}", {}
    return Result(name, status, round(time.perf_counter() - start, 2), detail, numbers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON")
    out = parser.parse_args().out
    checks: dict[str, Callable[[], Numbers]] = {
        "native half": native_half,
        "philox_normal": philox_normal,
        "guided_step": guided_step,
        "to_pixels": to_pixels,
        "multi_positive_loss": multi_positive_loss,
        "no waiting": no_waiting,
        "op benchmarks": lambda: op_benchmarks(out),
        "generation": generation,
        "training": training,
    }
    if not torch.cuda.is_available():
        print("gpu-check: there is no CUDA GPU that torch can use; nothing was checked")
        for name in checks:
            print(f"  skipped  {name}: no CUDA GPU")
        return 0
    start = time.perf_counter()
    results = []
    for name, check in checks.items():
        result = run_check(name, check)
        results.append(result)
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in result.numbers.items() if isinstance(value, float))
        print(f"  {result.status:8} {name} ({result.seconds:.1f} s) {result.detail or numbers}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{datetime.date.today()}_{record.device_slug('cuda')}_gpu_check.json"
    rows = [dataclasses.asdict(result) for result in results]
    path.write_text(json.dumps({**record.environment("cuda"), "checks": rows}, indent=1) + "\n")
    counts = {status: sum(result.status == status for result in results) for status in ("passed", "failed", "skipped")}
    print(f"gpu-check: {counts} in {time.perf_counter() - start:.0f} s; {path}")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
