"""Painting a batch of the embedded default: our engines, and the plain diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from benchmarks.record import Bench
from stablerep import ops
from stablerep.config import UserError
from stablerep.engines import Engine
from stablerep.engines.module import module_specs
from stablerep.engines.select import open_engine
from stablerep.engines.store import Store
from stablerep.engines.torch import TorchEngine
from stablerep.generate.config import GenerateConfig
from stablerep.generate.painter import BatchSize, Painter, PictureId, encode_prompts, paint_batch
from stablerep.generate.pipeline import Pipeline, default_generator, open_pipeline
from stablerep.generate.schedulers import make_schedule
from stablerep.prompts import Prompt


def engines(pipeline: Pipeline, store: Store, batch: int) -> dict[str, Engine]:
    found: dict[str, Engine] = {"torch": TorchEngine(pipeline)}
    for name in ("native", "onnx", "trt"):
        try:
            found[name] = open_engine(name, pipeline, store, batch)
        except UserError as error:
            print(error)
    return found


@pytest.mark.parametrize("module", ["unet", "vae_decoder"])
def test_a_module(bench: Bench, device: str, tmp_path_factory: pytest.TempPathFactory, module: str) -> None:
    if bench.quick:
        pytest.skip("test_a_batch runs both")
    pipeline = open_pipeline("default", torch.device(device))
    spec = module_specs(pipeline)[module]
    inputs = spec.example_inputs(128 if module == "unet" else 64)
    runs: dict[str, Callable[[], torch.Tensor]] = {"torch": lambda: spec.reference(inputs)}
    for name, engine in engines(pipeline, Store(tmp_path_factory.getbasetemp() / "engines"), 64).items():
        if name != "torch":
            run = engine.run_unet if module == "unet" else engine.run_decoder  # type: ignore[attr-defined]
            runs[name] = lambda run=run: run(inputs)
    expected = runs["torch"]()
    for run in runs.values():
        torch.testing.assert_close(run(), expected, rtol=0, atol=0.02)
    bench.compare(f"engine part {module}, {len(inputs['latents'])} rows", device, runs)


def test_a_batch(bench: Bench, device: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    batch, steps = (2, 2) if bench.quick else (64, 12)
    where = torch.device(device)
    pipeline = open_pipeline("default", where)
    prompts = [f"a photo of a dark slim {garment}" for garment in ("sneaker", "bag")] * (batch // 2)
    ids = torch.arange(batch, device=where)
    schedule = make_schedule("dpmsolver++", pipeline.scheduler_config, steps, where)
    config = GenerateConfig(prompts=Path("p.txt"), out=Path("out"), guidance_scale=2.0, seed=1)

    def paint(engine: Engine) -> np.ndarray:
        painter = Painter(pipeline, engine, schedule, config, BatchSize(batch))
        encoded = encode_prompts(painter, [Prompt(number, text) for number, text in enumerate(prompts)])
        return paint_batch(painter, encoded, [PictureId(row, 0) for row in range(batch)]).pixels.cpu().numpy()

    theirs = StableDiffusionPipeline.from_pretrained(default_generator(), dtype=pipeline.unet.dtype).to(where)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(theirs.scheduler.config)
    noise = ops.philox_normal(1, ids, torch.zeros_like(ids), pipeline.latent_shape).to(pipeline.unet.dtype)

    def diffusers() -> np.ndarray:
        settings = {"num_inference_steps": steps, "guidance_scale": 2.0, "output_type": "np"}
        return 255 * theirs(prompts, latents=noise, **settings).images

    opened = engines(pipeline, Store(Path(tmp_path_factory.getbasetemp()) / "engines"), batch)
    runs = {name: lambda engine=engine: paint(engine) for name, engine in opened.items()} | {"diffusers": diffusers}
    expected = diffusers()
    for run in runs.values():
        assert np.abs(run() - expected).mean() < 1
    bench.compare(f"engines {batch} pictures, {steps} steps", device, runs)
