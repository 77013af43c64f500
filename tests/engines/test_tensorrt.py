"""What can be tested of TensorRT without a GPU: its compiler runs, its plans are kept, and running says why not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from stablerep.config import UserError
from stablerep.engines import onnx_export, tensorrt
from stablerep.engines.commands import why_not_here
from stablerep.engines.conditioning import Conditioning
from stablerep.engines.module import ModuleSpec
from stablerep.engines.select import build_module, open_engine
from stablerep.engines.store import Store
from stablerep.engines.torch import Unet
from stablerep.generate.pipeline import Pipeline

CPU = torch.device("cpu")
rtx = pytest.importorskip("tensorrt_rtx")
pytestmark = [
    pytest.mark.skipif(onnx_export.why_not() is not None, reason="the onnx extra is missing"),
    pytest.mark.skipif(tensorrt.why_not_build() is not None, reason="nothing here compiles plans"),
]


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 256, 3, padding=1)
        self.out = nn.Conv2d(256, 8, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        return self.out(self.conv(latents).sigmoid())


def tiny_spec(dtype: torch.dtype = torch.float16) -> ModuleSpec:
    module = Tiny().to(dtype).eval().requires_grad_(False)
    return ModuleSpec("vae_decoder", module, {}, {"latents": (8, 8, 8)}, dtype, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_plan_is_built_and_says_why_it_cannot_run_here(tmp_path: Path, dtype: torch.dtype) -> None:
    store, spec = Store(tmp_path), tiny_spec(dtype)
    entry = build_module("trt", spec, store, rows=4)
    assert set(entry.files) == {"model.plan"}  # the graph is not kept
    assert entry.bytes >= sum(weight.nbytes for weight in spec.module.parameters())
    assert f"tensorrt_rtx {rtx.__version__}" in entry.key.builder
    assert build_module("trt", spec, store, rows=4) == entry
    assert build_module("trt", spec, store, rows=2) == entry  # 1 to 4 rows hold 1 to 2
    assert build_module("trt", spec, store, rows=8) != entry
    if not torch.cuda.is_available():
        assert why_not_here(entry, CPU) == "TensorRT needs a CUDA GPU; use --engine onnx or torch"


def test_a_plan_of_another_version_says_so_and_is_not_taken(tmp_path: Path, monkeypatch) -> None:
    store, spec = Store(tmp_path), tiny_spec()
    entry = build_module("trt", spec, store, rows=4)
    monkeypatch.setattr(tensorrt, "version", lambda: "tensorrt_rtx 99.0")
    monkeypatch.setattr(tensorrt, "why_not", lambda device, dtype: None)  # as if a GPU were here
    assert store.find(tensorrt.engine_key(spec, 4)) is None
    assert "here is tensorrt_rtx 99.0" in (why_not_here(entry, CPU) or "")


def test_a_plan_of_another_gpu_says_so_and_is_not_taken(tmp_path: Path, monkeypatch) -> None:
    store, spec = Store(tmp_path), tiny_spec()
    monkeypatch.setattr(tensorrt, "_is_rtx", lambda: False)  # as the data-centre flavour keys its plans
    monkeypatch.setattr(tensorrt, "why_not_build", lambda: None)
    monkeypatch.setattr(tensorrt, "why_not", lambda device, dtype: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    entry = build_module("trt", spec, store, rows=4)
    assert (entry.key.gpu, entry.key.compute_capability) == ("NVIDIA H100", "9.0")
    assert why_not_here(entry, CPU) == "built for NVIDIA H100, this is cpu"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert store.find(tensorrt.engine_key(spec, 4)) is None


def test_a_plan_in_lower_precision_than_asked_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tensorrt, "compile_graph", lambda *_: SimpleNamespace(nbytes=20_000))  # the weights take 73,000
    store = Store(tmp_path)
    with pytest.raises(UserError, match="in 20000 bytes, too few for weights in the dtype asked for"):
        build_module("trt", tiny_spec(), store, rows=4)
    assert store.entries() == []


def test_a_graph_that_the_parser_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / onnx_export.GRAPH_FILE).write_bytes(b"no graph")
    with pytest.raises(UserError, match="TensorRT cannot read the graph of vae_decoder") as refused:
        tensorrt.compile_graph("vae_decoder", tmp_path / onnx_export.GRAPH_FILE, tiny_spec().row_shapes, 4)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_running_without_a_gpu_is_refused_in_one_line(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--engine trt cannot run: TensorRT needs a CUDA GPU"):
        open_engine("trt", pipeline, Store(tmp_path), batch_size=4)


@pytest.mark.slow
def test_the_unet_of_stable_diffusion_1_5_compiles(tmp_path: Path) -> None:
    """860 M random weights in fp16: what a real model takes of time and memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        ).half()  # the other fields' defaults are Stable Diffusion's
    unet.to_empty(device="cpu").eval().requires_grad_(False)
    for weight in unet.parameters():
        weight.normal_(0, 0.02)
    assert 8.5e8 < sum(weight.numel() for weight in unet.parameters()) < 8.7e8
    shapes = {"latents": (4, 64, 64), "timestep": (), "text": (77, 768)}
    conditioning = Conditioning({"text": torch.randn(2, 77, 768).half()})
    spec = ModuleSpec("unet", Unet(unet).eval(), dict(unet.config), shapes, torch.float16, CPU, conditioning)
    entry = build_module("trt", spec, Store(tmp_path), rows=32)
    assert entry.bytes == pytest.approx(1.74e9, rel=0.05)
