"""`make gpu-check`: everything that needs a CUDA GPU; a line per check, and the numbers as JSON.

Four parts, in order of worth: ops, painting, training, profiles. `--part` runs one, `--only` runs some. What is not
installed is skipped by name, and what has passed today for this commit is not run again. Without a GPU every check
is listed as skipped and the exit code is 0. Each check runs in a process of its own: after an illegal address CUDA
answers nothing more in the process that met it.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import multiprocessing
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_generate, gpu_modules, gpu_ops, gpu_profiles, gpu_train, record
from benchmarks.checks import ROOT, SEED, Numbers, Skip

MOST_SECONDS = 180  # of one check
OPS = ("multi_positive_loss", "image_text_loss", "strong_augment", "guided_step", "to_pixels", "philox_normal")
PRELOADED = [
    "torch",
    "triton",
    "numpy",
    "benchmarks.gpu_ops",
    "benchmarks.gpu_generate",
]  # imported once for all checks


@dataclass(frozen=True)
class Result:
    name: str
    status: str  # passed, failed or skipped
    seconds: float
    detail: str
    numbers: Numbers


def benchmark(what: str, out: Path) -> Numbers:
    """A benchmark (`ops/test_NAME`), beside its peers; its rows also go to the folder of the records."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"{ROOT}/benchmarks/{what}.py", "-k", "cuda", "--benchmark", f"--out={folder}"]
        code = pytest.main([*arguments, "-q", "--no-header", "-p", "no:cacheprovider"])
        rows = [json.loads(line) for file in Path(folder).glob("*.jsonl") for line in file.read_text().splitlines()]
        for file in Path(folder).glob("*.jsonl"):
            with (out / file.name).open("a") as kept:
                kept.write(file.read_text())
    for row in rows:
        peak = "" if row["peak_mib"] is None else f", {row['peak_mib']:.0f} MiB"
        print(f"    {row['case']}, {row['impl']}: {row['p50_ms']:.3f} ms{peak}", flush=True)
    assert code == 0, f"pytest ended with {code!r}; its lines are above"
    return {"rows": rows}


def generation() -> Numbers:
    """Pictures per second of the embedded generator."""
    from stablerep.config import UserError
    from stablerep.generate.config import GenerateConfig
    from stablerep.generate.run import generate

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


def training_by_nvjpeg() -> Numbers:
    """The same where nvJPEG decodes, as it does where a rank has few cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stablerep.data.decode.FEW_THREADS", 10**6)
        return training()


def run_check(name: str, check: Callable[[], Numbers]) -> Result:
    """The check's result, in a process of its own; one that dies or hangs is a failure."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(name, check, sender), name=name)
    start = time.perf_counter()
    process.start()
    sender.close()
    try:
        if receiver.poll(MOST_SECONDS):
            return receiver.recv()
        detail = f"still ran after {MOST_SECONDS} s"
    except EOFError:
        process.join()
        detail = f"its process died (exit code {process.exitcode})"
    finally:
        process.kill()
        process.join()
    return Result(name, "failed", round(time.perf_counter() - start, 2), detail, {})


def _in_process(name: str, check: Callable[[], Numbers], sender: Connection) -> None:
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
    sender.send(Result(name, status, round(time.perf_counter() - start, 2), detail, numbers))


def parts_of(out: Path) -> list[dict[str, Callable[[], Numbers]]]:
    """The checks by name: ops, painting, training, profiles; in each what may be wrong first, then rates."""
    ops = (
        gpu_ops.native_half,
        gpu_ops.philox_normal,
        gpu_ops.guided_step,
        gpu_ops.to_pixels,
        gpu_ops.strong_augment,
        gpu_ops.multi_positive_loss,
        gpu_ops.image_text_loss,
        gpu_ops.no_waiting,
    )
    painting = (
        gpu_generate.painting_tests,
        gpu_generate.sd15_compiled_rate,
        gpu_generate.turbo_compiled_rate,
        gpu_generate.turbo_rate,
        gpu_generate.sd15_rate,
        gpu_generate.jpeg_rates,
        generation,
    )
    networks = (gpu_train.step_tests, gpu_train.training_steps, training, training_by_nvjpeg)
    profiles = (
        gpu_profiles.training_kernels,
        gpu_profiles.unet_kernels,
        gpu_modules.sd15_modules,
        gpu_modules.vit_step,
    )
    of_ops, of_painting, of_training, of_profiles = (
        {check.__name__: check for check in checks} for checks in (ops, painting, networks, profiles)
    )
    of_ops |= {f"benchmark_{op}": functools.partial(benchmark, f"ops/test_{op}", out) for op in OPS}
    of_training["benchmark_training"] = functools.partial(benchmark, "train/test_training", out)
    return [of_ops, of_painting, of_training, of_profiles]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON")
    parser.add_argument("--part", type=int, choices=range(1, 5), help="1 ops, 2 painting, 3 training, 4 profiles")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="run these alone")
    arguments = parser.parse_args()
    out: Path = arguments.out
    parts = parts_of(out)
    checks = {name: check for part in parts for name, check in part.items()}
    if arguments.part:
        checks = parts[arguments.part - 1]
    if unknown := set(arguments.only or ()) - set(checks):
        parser.error(f"there is no check {', '.join(sorted(unknown))}; there are {', '.join(checks)}")
    checks = {name: check for name, check in checks.items() if name in (arguments.only or checks)}
    if not torch.cuda.is_available():
        print("gpu-check: there is no CUDA GPU that torch can use; nothing was checked")
        for name in checks:
            print(f"  skipped  {name}: no CUDA GPU")
        return 0
    start = time.perf_counter()
    results = []
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{datetime.date.today()}_{record.device_slug('cuda')}_gpu_check.json"
    rows = {row["name"]: row for row in json.loads(path.read_text())["checks"]} if path.exists() else {}
    environment = record.environment("cuda")
    for name, check in checks.items():
        row = rows.get(name, {})
        if row.get("status") == "passed" and not row["dirty"] and row["commit"] == environment["commit"]:
            print(f"  recorded {name}: it has passed for this commit", flush=True)
            continue
        result = run_check(name, check)
        results.append(result)
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in result.numbers.items() if isinstance(value, float))
        print(f"  {result.status:8} {name} ({result.seconds:.1f} s) {result.detail or numbers}", flush=True)
        rows[name] = {**dataclasses.asdict(result), **environment}  # of the same day, others keep what they had
        path.write_text(json.dumps({"checks": list(rows.values())}, indent=1) + "\n")  # each time: it may be stopped
    counts = {status: sum(result.status == status for result in results) for status in ("passed", "failed", "skipped")}
    print(f"gpu-check: {counts} in {time.perf_counter() - start:.0f} s; {path}")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
