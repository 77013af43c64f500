"""SDXL and LCM through every engine: their added inputs by name, the pictures torch paints."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stablerep
from stablerep.config import UserError
from stablerep.engines import onnx, onnx_export, tensorrt
from stablerep.engines.memory import out_of_memory_is_torch_s
from stablerep.engines.parts import parts_of
from stablerep.engines.select import CompiledEngine, build_part, load, open_engine
from stablerep.engines.store import Store
from stablerep.engines.torch import TorchEngine
from stablerep.generate.config import GenerateConfig
from stablerep.generate.pipeline import Pipeline, open_pipeline
from tests.generate import tiny_models
from tests.generate.test_pipeline import NAMES, paint

CPU = torch.device("cpu")
needs_onnx = pytest.mark.skipif(
    onnx_export.why_not() is not None or onnx.why_not(CPU, torch.float32) is not None,
    reason="the onnx extra is missing",
)
# One block a way with text, and none without: exporting and compiling take by the operator.
SMALLEST = {
    "block_out_channels": (16,), "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",),
}  # fmt: skip
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None or onnx_export.why_not() is not None, reason="no TensorRT-RTX"
)


@needs_onnx
@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sdxl", "sd-lcm")), "sdxl-lcm"]
)
def test_onnx_paints_the_pictures_of_torch(kind: str, tmp_path: Path) -> None:
    tiny_models.save(kind, tmp_path / "model", unet=SMALLEST, vae={"latents_mean": [0.5] * 4, "latents_std": [1.5] * 4})
    pipeline = open_pipeline(str(tmp_path / "model"), CPU)
    engine = open_engine("onnx", pipeline, Store(tmp_path / "store"), batch_size=4)
    assert engine.name == "onnx"
    got, expected = (
        paint(pipeline, NAMES[kind], 3, [2.0, 7.5], "a coat", each) for each in (engine, TorchEngine(pipeline))
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


@needs_onnx
def test_a_graph_in_half_precision_has_no_mixed_types(tmp_path: Path) -> None:
    onnx_library = pytest.importorskip("onnx")
    tiny_models.save("sdxl-lcm", tmp_path / "model", unet=SMALLEST)
    part = parts_of(open_pipeline(str(tmp_path / "model"), CPU, dtype=torch.float16))["unet"]
    onnx_export.export(part, tmp_path)
    onnx_library.checker.check_model(
        str(tmp_path / onnx_export.GRAPH_FILE), full_check=True
    )  # TensorRT's parser is as strict


@needs_rtx
@pytest.mark.parametrize("kind", ["sd-lcm", "sdxl-lcm"])
def test_trt_builds_plans_in_half_precision(kind: str, tmp_path: Path) -> None:
    tiny_models.save(kind, tmp_path / "model", unet=SMALLEST)
    parts = parts_of(open_pipeline(str(tmp_path / "model"), CPU, dtype=torch.float16))
    assert parts["vae_decoder"].dtype == (torch.float32 if kind.startswith("sdxl") else torch.float16)
    for part in parts.values():
        entry = build_part("trt", part, Store(tmp_path / "store"), rows=4)
        assert set(entry.files) == {tensorrt.PLAN_FILE}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd", "sdxl-lcm"])
def test_compiled_equals_eager(kind: str, tmp_path: Path) -> None:
    tiny_models.save(kind, tmp_path, unet=SMALLEST, vae={"layers_per_block": 1})
    pipeline = open_pipeline(str(tmp_path), CPU)
    engine = open_engine("torch", pipeline, Store(tmp_path), batch_size=4, compiled=True)
    got, expected = (paint(pipeline, NAMES[kind], 3, 2.0, engine=each) for each in (engine, TorchEngine(pipeline)))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


def test_compile_counts_only_where_used(prompts: Path, tmp_path: Path) -> None:
    plain, compiled = (
        GenerateConfig(prompts=prompts, out=tmp_path, engine="torch", compile=each) for each in (False, True)
    )
    assert compiled.picture_fields() == plain.picture_fields() | {"compile": True}
    assert "compile" not in plain.picture_fields()
    with pytest.raises(UserError, match="--compile goes with --engine torch, not onnx"):
        GenerateConfig(prompts=prompts, out=tmp_path, compile=True, engine="onnx")


@needs_onnx
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited in Linux's way")
def test_memory_that_runs_out_halves_the_batch(onnx_store: Path, tmp_path: Path) -> None:
    store = shutil.copytree(onnx_store, tmp_path / "store")
    command = [sys.executable, "-m", "tests.engines.memory_driver", str(store)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # a thread more takes address space of its own
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    fitted, difference = map(int, run.stdout.split())
    assert fitted < 256 and difference <= 1
    said = [line for line in run.stderr.splitlines() if line.startswith("--")]
    assert said[0] == "--batch-size 256 does not fit into the memory of cpu; going on with 128"
    assert all("does not fit into the memory of cpu" in line for line in said)


# As the libraries say it. ONNX Runtime's, torch's and oneDNN's were seen, the others are from their sources.
SAID = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
    "bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to "
    "allocate memory for requested buffer of size 4194304",
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "12582912 bytes. Error code 12 (Cannot allocate memory)",
    "TensorRT could not run the plan: IExecutionContext::enqueueV3: Error Code 2: OutOfMemory (Requested size was ...)",
    "TensorRT could not run the plan: Error Code 1: Cuda Runtime (out of memory)",
    "could not create a primitive",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)


@pytest.mark.parametrize("text", SAID)
def test_every_engine_s_out_of_memory_is_torch_s(text: str, pipeline: Pipeline) -> None:
    def run(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        raise RuntimeError(text)

    engine = CompiledEngine("trt", run, run, torch.float32)
    latents = torch.zeros(1, *pipeline.latent_shape)
    for call in (
        lambda: engine.decode(latents),
        lambda: engine.unet(latents, torch.tensor(1.0), pipeline.encode([""])),
    ):
        with pytest.raises(torch.OutOfMemoryError) as error:
            call()
        cause = error.value.__cause__
        assert cause is error.value.__context__ and cause.__traceback__ is None  # no frames that hold the batch


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes") as error, out_of_memory_is_torch_s():
        raise RuntimeError("shapes do not fit")
    assert type(error.value) is RuntimeError


@needs_onnx
def test_an_engine_that_does_not_fit_at_opening_is_one_line(onnx_store: Path, pipeline: Pipeline, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    part = parts_of(pipeline)["unet"]
    entry = Store(onnx_store).find(onnx.recipe(part, 4))
    monkeypatch.setattr(onnx, "Runner", full)
    with pytest.raises(
        UserError, match="unet for 4 rows does not fit into the memory of cpu; take a smaller --batch-s"
    ):
        load(onnx, part, entry, 4)


@pytest.mark.parametrize("kind", ["sdxl-turbo", "sd-lcm"])
def test_the_command_paints_and_resumes(kind: str, prompts: Path, tmp_path: Path) -> None:
    tiny_models.save(kind, tmp_path / "model")
    fields = {
        "prompts": prompts, "model": str(tmp_path / "model"), "device": "cpu", "num_images_per_prompt": 2,
        "num_inference_steps": 2, "guidance_scale": 1.0, "scheduler": NAMES[kind], "prompts_per_shard": 2,
        "engine": "torch",
    }  # fmt: skip
    stablerep.generate(out=tmp_path / "whole", **fields)
    stablerep.generate(out=tmp_path / "again", **fields)
    (tmp_path / "again/000001_stats.json").unlink()
    stablerep.generate(out=tmp_path / "again", **fields)
    names = ["000000.tar", "000001.tar", "dataset.json"]
    assert all((tmp_path / "whole" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)
