"""Memory that runs out, in whichever library, is torch's own error: it halves the batch, or ends in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stablerep.config import UserError
from stablerep.engines import onnx, onnx_export
from stablerep.engines.module import module_specs
from stablerep.engines.select import CompiledEngine, load
from stablerep.engines.store import Store
from stablerep.engines.torch import torch_out_of_memory
from stablerep.generate.pipeline import Pipeline

CPU = torch.device("cpu")
needs_onnx = pytest.mark.skipif(
    onnx_export.why_not() is not None or onnx.why_not(CPU, torch.float32) is not None,
    reason="the onnx extra is missing",
)


@needs_onnx
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited in Linux's way")
def test_memory_that_runs_out_halves_the_batch(onnx_store: Path, tmp_path: Path) -> None:
    store = shutil.copytree(onnx_store, tmp_path / "store")
    command = [sys.executable, "-m", "tests.engines.memory_driver", str(store)]
    # A thread more takes address space of its own; a symbol bound when memory is out ends the process (exit code 127).
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LD_BIND_NOW": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    fitted, difference = map(int, run.stdout.split())
    assert fitted < 256 and difference <= 1
    lines = [line for line in run.stderr.splitlines() if line.startswith("--")]
    assert lines[0] == "--batch-size 256 does not fit into the memory of cpu; going on with 128"
    assert all("does not fit into the memory of cpu" in line for line in lines)


# As the libraries word it. ONNX Runtime's, torch's and oneDNN's were seen, the others are from their sources.
OUT_OF_MEMORY_TEXTS = (
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


@pytest.mark.parametrize("text", OUT_OF_MEMORY_TEXTS)
def test_every_library_s_out_of_memory_is_torch_s(text: str, pipeline: Pipeline) -> None:
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
    with pytest.raises(RuntimeError, match="shapes") as error, torch_out_of_memory():
        raise RuntimeError("shapes do not fit")
    assert type(error.value) is RuntimeError


@needs_onnx
def test_an_engine_that_does_not_fit_at_opening_is_one_line(onnx_store: Path, pipeline: Pipeline, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    spec = module_specs(pipeline)["unet"]
    entry = Store(onnx_store).find(onnx.engine_key(spec, 4))
    monkeypatch.setattr(onnx, "Runner", full)
    with pytest.raises(
        UserError, match="unet for 4 rows does not fit into the memory of cpu; take a smaller --batch-s"
    ):
        load(onnx, spec, entry, 4)
