"""Engines against torch: the same picture to rounding, or a line that says why not."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stablerep
from stablerep.config import UserError
from stablerep.engines import Engine, native, onnx, onnx_export, select, tensorrt
from stablerep.engines.module import ModuleSpec, module_specs, verify
from stablerep.engines.select import open_engine, open_module
from stablerep.engines.store import RECORD, Store
from stablerep.engines.torch import TorchEngine
from stablerep.generate.pipeline import Pipeline
from stablerep.generate.schedulers import make_schedule
from tests.generate.sampling import sample

CPU = torch.device("cpu")
needs_onnx = pytest.mark.skipif(
    onnx_export.why_not() is not None or onnx.why_not(CPU, torch.float32) is not None,
    reason="the onnx extra is missing",
)


class Tiny(nn.Module):
    """Exports in a second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 40, 3, padding=1)
        self.out = nn.Conv2d(40, 3, 1)

    def forward(self, latents: Tensor) -> Tensor:
        return self.out(self.conv(latents).sigmoid())


def tiny_spec(dtype: torch.dtype = torch.float32) -> ModuleSpec:
    torch.manual_seed(0)
    module = Tiny().to(dtype).eval().requires_grad_(False)
    return ModuleSpec("vae_decoder", module, {}, {"latents": (3, 6, 6)}, dtype, CPU)


@pytest.fixture(scope="module")
def embedded(onnx_store: Path, tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline) -> tuple[Store, Engine]:
    """The embedded default's onnx engine and the store it is in."""
    store = Store(Path(shutil.copytree(onnx_store, tmp_path_factory.mktemp("engines") / "store")))
    return store, open_engine("onnx", pipeline, store, batch_size=4)


def paint(engine: Engine, pipeline: Pipeline, guidance_scale: float = 2.0) -> np.ndarray:
    ids = torch.arange(3)
    images = sample(
        engine,
        make_schedule("dpmsolver++", pipeline.scheduler_config, 6, CPU),
        pipeline.encode(["a photo of a dark slim sneaker", "a photo of a white bag", ""]),
        pipeline.encode([""]),
        ids,
        ids,
        latent_shape=pipeline.latent_shape,
        guidance_scale=guidance_scale,
        seed=3,
    )
    return images.numpy().astype(int)


@needs_onnx
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0, 7.5])
def test_onnx_paints_the_pictures_of_torch(
    embedded: tuple[Store, Engine], pipeline: Pipeline, guidance_scale: float
) -> None:
    ours = paint(embedded[1], pipeline, guidance_scale)
    assert np.abs(ours - paint(TorchEngine(pipeline), pipeline, guidance_scale)).max() <= 1  # grey levels: rounding


@needs_onnx
@pytest.mark.parametrize("rows", [1, 2, 5, 16])
@pytest.mark.parametrize("threads", [1, 3])
def test_onnx_takes_any_rows_on_any_threads(embedded: tuple[Store, Engine], pipeline: Pipeline, rows, threads) -> None:
    spec = module_specs(pipeline)["unet"]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run, _ = open_module("onnx", spec, embedded[0], rows=16)
    finally:
        torch.set_num_threads(before)
    inputs = spec.example_inputs(rows)
    inputs["latents"] = inputs["latents"].to(memory_format=torch.channels_last)  # as a sampler may leave them
    torch.testing.assert_close(run(inputs), spec.reference(inputs), rtol=1e-4, atol=1e-4)


@needs_onnx
def test_a_second_opening_builds_and_verifies_nothing(embedded, pipeline: Pipeline, monkeypatch) -> None:
    store, _ = embedded
    monkeypatch.setattr(onnx_export, "export", lambda *_: pytest.fail("built again"))
    monkeypatch.setattr(select, "verify", lambda *_: pytest.fail("verified again"))
    assert open_engine("onnx", pipeline, store, batch_size=7).name == "onnx"
    [unet] = [entry for entry in store.entries() if entry.key.module == "unet"]
    [found] = unet.verified.values()
    assert found.ok and found.cosine > 0.99999 and found.max_error < 1e-4


@needs_onnx
@pytest.mark.parametrize("faster", [True, False])
def test_auto_takes_what_was_measured_ahead_and_says_so(
    embedded, pipeline: Pipeline, faster, caplog, monkeypatch
) -> None:
    store, _ = embedded
    monkeypatch.setattr(native, "MOST_WEIGHTS", 1_000_000)
    for entry in store.entries():
        for place, found in entry.verified.items():
            measured = dataclasses.replace(found, torch_ms=10.0, engine_ms=9.0 if faster else 11.0)
            entry.with_verified(place, measured)
    with caplog.at_level(logging.INFO, "stablerep.generate"):
        assert open_engine("auto", pipeline, store, batch_size=4).name == ("onnx" if faster else "torch")
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("engine auto on cpu: " + ("onnx, measured ahead" if faster else "torch; "))
    assert faster or "; onnx was measured behind (11 ms" in line
    assert "--engine native cannot run: the unet has 5 M weights, and it is made for at most 1 M" in line


def test_auto_without_the_extra_is_torch_and_says_so(pipeline: Pipeline, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(native, "MOST_WEIGHTS", 0)
    with caplog.at_level(logging.INFO, "stablerep.generate"):
        assert open_engine("auto", pipeline, Store(tmp_path), batch_size=4).name == "torch"
    assert "pip install 'stablerep[onnx]'" in caplog.text


@needs_onnx
def test_auto_builds_nothing(pipeline: Pipeline, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(native, "MOST_WEIGHTS", 0)
    monkeypatch.setattr(onnx_export, "export", lambda *_: pytest.fail("built"))
    with caplog.at_level(logging.INFO, "stablerep.generate"):
        assert open_engine("auto", pipeline, Store(tmp_path), batch_size=4).name == "torch"
    assert "onnx is not built for this model and batch size; --engine onnx builds it, once" in caplog.text


@needs_onnx
def test_generate_names_its_engine(embedded, prompts: Path, tmp_path: Path) -> None:
    few = {"num_images_per_prompt": 1, "num_inference_steps": 2, "engine_dir": embedded[0].folder}
    stablerep.generate(prompts=prompts, out=tmp_path / "out", engine="onnx", **few)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["config"]["engine"] == "onnx"
    with pytest.raises(UserError, match="--engine is 'onnx', not 'torch'"):
        stablerep.generate(prompts=prompts, out=tmp_path / "out", engine="torch", **few)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@needs_onnx
@pytest.mark.parametrize(
    ("harm", "warning"),
    [
        (lambda folder: flip(folder / "model.onnx"), "damaged"),
        (lambda folder: (folder / "model.onnx").write_bytes(b""), "has 0 bytes"),
        (lambda folder: (folder / "model.onnx").unlink(), "missing"),
        (lambda folder: (folder / RECORD).write_text("{"), None),
        (lambda folder: (folder / RECORD).unlink(), None),
    ],
)
def test_a_damaged_engine_is_built_anew(tmp_path: Path, harm, warning: str | None, caplog) -> None:
    store, spec = Store(tmp_path), tiny_spec()
    _, before = open_module("onnx", spec, store, rows=4)
    harm(before.folder)
    run, entry = open_module("onnx", spec, store, rows=4)
    assert warning is None or warning in caplog.text
    assert entry.folder == before.folder and entry.damage(thorough=True) is None
    torch.testing.assert_close(run(spec.example_inputs(3)), spec.reference(spec.example_inputs(3)))


@needs_onnx
def test_a_file_that_onnxruntime_refuses_is_built_anew(tmp_path: Path, caplog) -> None:
    store, spec = Store(tmp_path), tiny_spec()
    key = onnx.engine_key(spec, 4)
    with store.lock(key.name):  # its digest is right, its content is not
        store.build(key, lambda folder: (folder / "model.onnx").write_bytes(b"no graph" * 9) and None)
    open_module("onnx", spec, store, rows=4)
    assert "cannot be used" in caplog.text and "building it anew" in caplog.text


@needs_onnx
def test_other_weights_and_other_versions_are_other_engines(tmp_path: Path, monkeypatch) -> None:
    store, spec = Store(tmp_path), tiny_spec()
    open_module("onnx", spec, store, rows=4)
    spec.module.conv.bias += 1.0
    run, _ = open_module("onnx", spec, store, rows=4)
    torch.testing.assert_close(run(spec.example_inputs(2)), spec.reference(spec.example_inputs(2)))
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "diffusers" else version(name))
    open_module("onnx", spec, store, rows=4)
    assert len(store.entries()) == 3


@needs_onnx
def test_an_engine_that_differs_from_torch_is_never_run(tmp_path: Path, monkeypatch) -> None:
    store, spec = Store(tmp_path), tiny_spec()
    call = onnx.Runner.__call__
    monkeypatch.setattr(onnx.Runner, "__call__", lambda self, inputs: call(self, inputs) + 0.1)
    with pytest.raises(UserError, match="vae_decoder was built and cannot be used: differs from torch: cosine"):
        open_module("onnx", spec, store, rows=4)


@pytest.mark.parametrize(
    "run",
    [
        lambda expected: expected.half(),
        lambda expected: expected[:, :1],
        lambda expected: expected * 1.01,
        lambda expected: expected.where(expected > expected.mean(), float("nan")),
    ],
)
def test_verify_refuses(run) -> None:
    spec = tiny_spec()
    assert verify(spec, spec.reference, 4).ok
    assert not verify(spec, lambda inputs: run(spec.reference(inputs)), 4).ok


@needs_onnx
@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_the_dtype_is_in_the_graph(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    onnx_export.export(tiny_spec(dtype), tmp_path)  # checks the precision itself
    with pytest.raises(UserError, match=f"fp32 was asked for, but the graph holds {name}, latents .*, output"):
        onnx_export.check_precision(tmp_path, "fp32")


@needs_onnx
def test_weights_of_another_dtype_are_an_error(tmp_path: Path) -> None:
    spec = dataclasses.replace(tiny_spec(torch.float16), dtype=torch.float32)
    spec.module.forward = lambda latents: Tiny.forward(spec.module, latents.half()).float()
    with pytest.raises(UserError, match="fp32 was asked for, but the graph holds fp16"):
        onnx_export.export(spec, tmp_path)


@pytest.mark.parametrize("package", ["onnxruntime", "tensorrt"])
def test_a_missing_extra_is_named(pipeline: Pipeline, tmp_path: Path, monkeypatch, package: str) -> None:
    for name in (package, "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    tensorrt._why_not_import.cache_clear()
    engine = {"onnxruntime": "onnx", "tensorrt": "trt"}[package]
    with pytest.raises(UserError, match=rf"--engine {engine} cannot run: .*pip install 'stablerep\[{engine}\]'"):
        open_engine(engine, pipeline, Store(tmp_path), batch_size=4)
    tensorrt._why_not_import.cache_clear()


def test_onnx_in_half_precision_on_the_cpu_says_why_not() -> None:
    pytest.importorskip("onnxruntime")
    assert "computes in fp32 on the CPU" in (onnx.why_not(CPU, torch.float16) or "")


def test_auto_goes_on_with_the_engine_a_folder_was_begun_with(prompts: Path, tmp_path: Path) -> None:
    fields = {"prompts": prompts, "num_images_per_prompt": 1, "num_inference_steps": 1, "device": "cpu"}
    begun = stablerep.generate(out=tmp_path / "out", engine="torch", **fields)
    again = stablerep.generate(out=tmp_path / "out", **fields)
    assert (begun.engine, again.engine, again.images_made) == ("torch", "torch", 0)
    assert stablerep.generate(out=tmp_path / "new", **fields).engine == "native"
