"""What `make gpu-check` asks of a training step: that it never waits, and what compilation and micro-batches cost."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.checks import Numbers, run_tests
from benchmarks.gpu_generate import CUDA
from benchmarks.gpu_modules import milliseconds

BATCH = 384


def step_tests() -> Numbers:
    """A save does not wait for the device, and a step as one graph is the eager step: the tests that the CPU skips."""
    return run_tests("tests/train/test_checkpoint.py", "tests/train/test_step.py")


def training_steps() -> Numbers:
    """ViT-B/16 at 224, bfloat16, 384 resident pictures a step: rate and peak memory, each with no wait asserted."""
    from stablerep.train.step import WARM_UP

    numbers: Numbers = {}
    cases: dict[str, dict[str, Any]] = {
        "eager": {"compile": "off"},
        "compiled": {"compile": "on"},
        "compiled_graph": {"compile": "on", "cuda_graph": True},
        "compiled_micro_96": {"compile": "on", "micro_batch_size": 96},
        "checkpointed": {"compile": "off", "activation_checkpointing": True},
    }
    for name, fields in cases.items():
        step = training_step(**fields)
        for _ in range(WARM_UP + 1):  # compiles, allocates, captures
            step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        numbers[f"images_per_second_{name}"] = BATCH * 1e3 / milliseconds(step, 10)
        numbers[f"peak_gib_{name}"] = torch.cuda.max_memory_allocated() / 2**30
        del step
        torch.cuda.empty_cache()
    return numbers


def training_step(**fields: Any) -> partial[None]:
    from stablerep.data.loader import Batch
    from stablerep.train import loop
    from stablerep.train.config import TrainConfig
    from stablerep.train.metrics import Metrics
    from stablerep.train.step import open_step

    config = TrainConfig(data=("none",), out=Path("none"), batch_size=BATCH, device="cuda", **fields)
    images = torch.randn(BATCH, 3, 224, 224, device=CUDA).to(memory_format=torch.channels_last)
    batch = Batch(images, torch.arange(BATCH, device=CUDA) // config.views)
    model, optimiser = loop.build(config, CUDA)
    backward = loop.Backward(model, CUDA, config.micro_batch_size, Path(tempfile.gettempdir()))
    take_step = open_step(config, backward, optimiser, CUDA)
    metrics = Metrics(CUDA, BATCH)

    def step() -> None:
        torch.manual_seed(0)
        metrics.add(*take_step(batch, config.peak_lr))

    return partial(step)
