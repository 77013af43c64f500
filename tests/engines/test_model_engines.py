"""SDXL and LCM through every engine: their added inputs by name, the pictures torch paints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import stablerep
from stablerep.config import UserError
from stablerep.engines import onnx, onnx_export, tensorrt
from stablerep.engines.module import module_specs
from stablerep.engines.select import build_module, open_engine
from stablerep.engines.store import Store
from stablerep.engines.torch import TorchEngine
from stablerep.generate.config import GenerateConfig
from stablerep.generate.pipeline import open_pipeline
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
    spec = module_specs(open_pipeline(str(tmp_path / "model"), CPU, dtype=torch.float16))["unet"]
    onnx_export.export(spec, tmp_path)
    onnx_library.checker.check_model(
        str(tmp_path / onnx_export.GRAPH_FILE), full_check=True
    )  # TensorRT's parser is as strict


@needs_rtx
@pytest.mark.parametrize("kind", ["sd-lcm", pytest.param("sdxl-lcm", marks=pytest.mark.slow)])
def test_trt_builds_plans_in_half_precision(kind: str, tmp_path: Path) -> None:
    tiny_models.save(kind, tmp_path / "model", unet=SMALLEST)
    specs = module_specs(open_pipeline(str(tmp_path / "model"), CPU, dtype=torch.float16))
    assert specs["vae_decoder"].dtype == (torch.float32 if kind.startswith("sdxl") else torch.float16)
    for spec in specs.values():
        entry = build_module("trt", spec, Store(tmp_path / "store"), rows=4)
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
