"""`make gpu-check`: everything that needs a CUDA GPU; a line per check, and the numbers as JSON.

Four parts, in order of worth: ops, painting, training, profiles. `--part` runs one, `--only` runs some, `--list` says
what there is and how long each is predicted to take, from the records of earlier runs. `--minutes` begins none that
would end later. What is not installed is skipped by name, and what has passed for this commit is not run again. Each
check's line is in the record as soon as it ends. Without a GPU every check is listed as skipped and the exit code is 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_generate, gpu_modules, gpu_ops, gpu_profiles, gpu_tools, gpu_train, record
from benchmarks.checks import ROOT, SEED, Numbers, Skip
from benchmarks.watchdog import MOST_SECONDS, Check, run_check

RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("ops", "painting", "training", "profiles")
OPS = ("multi_positive_loss", "image_text_loss", "strong_augment", "guided_step", "to_pixels", "philox_normal")


NEEDS = {  # beyond the GPU, torch and the extension: modules, and the tools of gpu_tools by their commands
    **dict.fromkeys(("painting_tests", "sd15_compiled_rate", "turbo_compiled_rate", "turbo_rate"), "diffusers"),
    **dict.fromkeys(("sd15_rate", "generation", "unet_kernels", "sd15_modules", "online_training"), "diffusers"),
    **dict.fromkeys(("training", "training_by_nvjpeg", "benchmark_training"), "nvidia.dali"),
    "jpeg_rates": "nvidia.nvimgcodec",
    "loss_kernels": "ncu",
    **dict.fromkeys(("memory_checked", "races_checked"), "compute-sanitizer"),
}


def missing(name: str) -> list[str]:
    """What the check lacks here, the GPU first."""
    lacks = [] if torch.cuda.is_available() else ["no CUDA GPU"]
    for module in ("stablerep._native", NEEDS.get(name, "torch")):
        is_tool = module in ("ncu", "compute-sanitizer")
        if not (shutil.which(module) if is_tool else _has_module(module)):
            lacks.append(f"no {module}")
    return lacks


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


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


def online_training() -> Numbers:
    """Pictures per second of training on what is painted meanwhile, the last half of 30 steps."""
    return train_online("cuda", steps=30, batch_size=384)


def train_online(device: str, steps: int, batch_size: int) -> Numbers:
    """A ResNet-18 at 32, six views a prompt, each prompt shown four times, from the embedded default."""
    from stablerep.generate.online import opener
    from stablerep.train.config import TrainConfig
    from stablerep.train.loop import train

    with tempfile.TemporaryDirectory() as folder:
        prompts, generate, out = (Path(folder, name) for name in ("prompts.txt", "generate.yaml", "run"))
        prompts.write_text("".join(f"a photo of a plain slim ankle boot, number {i}\n" for i in range(512)))
        generate.write_text(f"prompts: {prompts}\nnum_images_per_prompt: 8\nnum_inference_steps: 12\nbatch_size: 256\n")
        config = TrainConfig(
            online=str(generate), out=out, arch="resnet18", image_size=32, batch_size=batch_size, views_per_prompt=6,
            pool_uses=4, steps=steps, log_every=max(1, steps // 3), device=device,
        )  # fmt: skip
        train(config, opener(str(generate), out))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    late = lines[len(lines) // 2 :]
    names = ("images_per_second", "data_wait_share", "paint_share")
    return {name: float(np.mean([line[name] for line in late])) for name in names}


def training_by_nvjpeg() -> Numbers:
    """The same where nvJPEG decodes, as it does where a rank has few cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stablerep.data.decode.FEW_THREADS", 10**6)
        return training()


def parts_of(out: Path) -> list[dict[str, Check]]:
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
        gpu_tools.memory_checked,
        gpu_tools.races_checked,
        online_training,
        gpu_profiles.training_kernels,
        gpu_profiles.unet_kernels,
        gpu_modules.sd15_modules,
        gpu_modules.vit_step,
    )
    of_ops, of_painting, of_training, of_profiles = (
        {check.__name__: check for check in checks} for checks in (ops, painting, networks, profiles)
    )
    of_profiles = {"loss_kernels": functools.partial(gpu_tools.loss_kernels, out), **of_profiles}
    of_ops |= {f"benchmark_{op}": functools.partial(benchmark, f"ops/test_{op}", out) for op in OPS}
    of_training["benchmark_training"] = functools.partial(benchmark, "train/test_training", out)
    return [of_ops, of_painting, of_training, of_profiles]


def recorded(folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """What runs of checks have left, the oldest first."""
    paths = {path.resolve() for folder in folders for path in folder.glob("*_gpu_check.jsonl")}
    for path in sorted(paths, key=lambda path: path.name):
        yield from (json.loads(line) for line in path.read_text().splitlines())


def predicted_seconds(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How long each check took when it last passed."""
    return {row["name"]: row["seconds"] for row in rows if row["status"] == "passed"}


def is_recorded(rows: Sequence[Mapping[str, Any]], name: str, environment: Mapping[str, Any]) -> bool:
    """Whether the check has passed for this commit and device, and nothing was changed beside it."""
    same = {name: environment[name] for name in ("commit", "device")} | {"status": "passed", "dirty": False}
    return not environment["dirty"] and any(row["name"] == name and same.items() <= row.items() for row in rows)


def run_all(checks: Mapping[str, Check], out: Path, rows: Sequence[Mapping[str, Any]], most_seconds: float) -> int:
    """Run them in order; how many failed."""
    start, seconds = time.perf_counter(), predicted_seconds(rows)
    environment = record.environment("cuda")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{datetime.date.today()}_{record.device_slug('cuda')}_gpu_check.jsonl"
    counts = dict.fromkeys(("passed", "failed", "skipped", "recorded", "left"), 0)
    for name, check in checks.items():
        if is_recorded(rows, name, environment):
            counts["recorded"] += 1
            print(f"  recorded {name}: it has passed for this commit", flush=True)
            continue
        left = most_seconds - (time.perf_counter() - start)
        if seconds.get(name, 0.0) > left:
            counts["left"] += 1
            print(f"  left     {name}: {seconds[name]:.0f} s are predicted, {left:.0f} are left", flush=True)
            continue
        result = run_check(name, check, min(MOST_SECONDS, left))
        counts[result.status] += 1
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in result.numbers.items() if isinstance(value, float))
        print(f"  {result.status:8} {name} ({result.seconds:.1f} s) {result.detail or numbers}", flush=True)
        with path.open("a") as file:  # a line each, at once: the run may be stopped
            file.write(json.dumps({**dataclasses.asdict(result), **environment}) + "\n")
    print(f"gpu-check: {counts} in {time.perf_counter() - start:.0f} s; {path}")
    return counts["failed"]


def show(parts: Sequence[Mapping[str, Check]], names: set[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A line a check, part by part: what it is predicted to take, and what it lacks here."""
    seconds = predicted_seconds(rows)
    for number, part in enumerate(parts, start=1):
        shown = [name for name in part if name in names]
        if not shown:
            continue
        new = sum(name not in seconds for name in shown)
        unknown = f", and {new} that have no record, of at most {MOST_SECONDS} s each" if new else ""
        print(f"PART={number} ({PARTS[number - 1]}): {sum(seconds.get(name, 0.0) for name in shown):.0f} s{unknown}")
        for name in shown:
            known = f"{seconds[name]:4.0f} s" if name in seconds else "     ?"
            reasons = missing(name)
            print(f"  {'skipped' if reasons else '':8} {name:30} {known}  {', '.join(reasons)}".rstrip())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument(
        "--part", type=int, choices=range(1, 5), help="; ".join(f"{n} {name}" for n, name in enumerate(PARTS, start=1))
    )
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="run these alone")
    parser.add_argument("--list", action="store_true", help="name the checks and how long they take, and run none")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end by then, and begin none that cannot")
    arguments = parser.parse_args()
    parts = parts_of(arguments.out)
    checks = {name: check for part in parts for name, check in part.items()}
    if unknown := set(arguments.only or ()) - set(checks):
        parser.error(f"there is no check {', '.join(sorted(unknown))}; there are {', '.join(checks)}")
    wanted = parts[arguments.part - 1] if arguments.part else checks
    checks = {name: check for name, check in wanted.items() if name in (arguments.only or wanted)}
    rows = list(recorded([RESULTS, arguments.out]))
    if arguments.list:
        show(parts, set(checks), rows)
        return 0
    if not torch.cuda.is_available():
        print("gpu-check: there is no CUDA GPU that torch can use; nothing was checked")
        show(parts, set(checks), rows)
        return 0
    return 1 if run_all(checks, arguments.out, rows, 60 * arguments.minutes) else 0


if __name__ == "__main__":
    sys.exit(main())
