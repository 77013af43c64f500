"""The native engine against diffusers: other architectures, every vector width, and pictures that do not meet."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

import stablerep
from stablerep import native as compiled
from stablerep.config import UserError
from stablerep.engines import Engine, native, select
from stablerep.engines.module import ModuleSpec, module_specs
from stablerep.engines.native.network import FeatureMap, Network
from stablerep.engines.select import open_engine
from stablerep.engines.store import Store, Verification
from stablerep.engines.torch import TorchEngine
from stablerep.generate.pipeline import Pipeline
from stablerep.generate.schedulers import make_schedule
from tests.generate.sampling import sample

CPU = torch.device("cpu")
NOWHERE = Store(Path("/dev/null"))  # nothing is built, nothing is kept
pytestmark = pytest.mark.skipif(compiled.why_not("cpu") is not None, reason=compiled.why_not("cpu") or "")


def lanes_here() -> list[int]:
    found = []
    for lanes in (4, 8, 16):
        try:
            Network().open(lanes)
        except ValueError:
            continue
        found.append(lanes)
    return found


def close(got: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    """As two orders of the same float32 sums."""
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= share * expected.abs().max()


def run(net: Network, x: Tensor, out_shape: tuple[int, int, int], lanes: int, threads: int = 1) -> Tensor:
    """A network of steps on pictures [B, C, H, W]; slot 0 in, slot 1 out."""
    rows = x.permute(0, 2, 3, 1).contiguous()
    channels, height, width = out_shape
    out = torch.full((len(x), height, width, channels), torch.nan)
    net.open(lanes).run(
        input=rows.data_ptr(), output=out.data_ptr(), time_bias=0, keys=[], values=[], text_rows=0, pictures=len(x),
        in_channels=x.shape[1], out_channels=channels, halves=1, threads=threads,
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def network(in_channels: int, out_channels: int, size: tuple[int, int], out_size: tuple[int, int]) -> Network:
    net = Network(shared=False)
    net.slots += [(size[0] * size[1], in_channels, False), (out_size[0] * out_size[1], out_channels, False)]
    return net


@pytest.mark.parametrize("lanes", lanes_here())
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (8, 8), (9, 14)])
@pytest.mark.parametrize("upsample", [False, True])
@torch.inference_mode()
def test_a_convolution_with_what_surrounds_it(lanes: int, size: tuple[int, int], upsample: bool) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(32, 80, 3, padding=1), nn.GroupNorm(4, 32)
    norm.weight.normal_()
    norm.bias.normal_()
    x = 3 + 2 * torch.randn(5, 32, *size)  # a mean, which a sum of squares would drown in
    factor = 2 if upsample else 1
    out_size = (factor * size[0], factor * size[1])
    net = network(32, 80, size, out_size)
    net.conv(conv, FeatureMap(0, 32, *size, False), norm, out=FeatureMap(1, 80, *out_size, False), upsample=upsample)
    hidden = nn.functional.silu(norm(x))
    if upsample:
        hidden = nn.functional.interpolate(hidden, scale_factor=2.0, mode="nearest")
    close(run(net, x, (80, *out_size), lanes), conv(hidden), share=2e-5)


@pytest.mark.parametrize("lanes", lanes_here())
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 9, 70])
@torch.inference_mode()
def test_a_product_of_any_number_of_rows(lanes: int, rows: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 112)
    x = torch.randn(rows, 48, 1, 1)
    net = network(48, 112, (1, 1), (1, 1))
    net.linear([layer], FeatureMap(0, 48, 1, 1, False), out=FeatureMap(1, 112, 1, 1, False))
    close(run(net, x, (112, 1, 1), lanes)[:, :, 0, 0], layer(x[:, :, 0, 0]), share=1e-6)


@pytest.mark.parametrize("lanes", lanes_here())
@torch.inference_mode()
def test_gelu_far_out_and_at_zero(lanes: int) -> None:
    x = torch.cat([torch.linspace(-120, 120, 4796), torch.tensor([0.0, 1e-30, 3e38, -3e38])]).reshape(-1, 16, 1, 1)
    net = network(16, 16, (1, 1), (1, 1))
    one = torch.cat([torch.ones(16), torch.zeros(16)])  # straight is 1: what is left is gelu(gate)
    net.step(
        "geglu", FeatureMap(0, 16, 1, 1, False), FeatureMap(1, 16, 1, 1, False),
        weights=torch.cat([torch.zeros(256), torch.eye(16).flatten()]), bias=one,
    )  # fmt: skip
    expected = nn.functional.gelu(x.double())
    assert ((run(net, x, (16, 1, 1), lanes) - expected).abs() <= 3e-7 * (1 + expected.abs())).all()


@torch.inference_mode()
def test_nan_stays_in_its_picture(pipeline: Pipeline) -> None:
    spec = module_specs(pipeline)["unet"]
    inputs = spec.example_inputs(4)
    inputs["latents"][2, 3, 4, 5] = torch.nan
    output = native.open_module(spec)(inputs)
    assert output[2].isnan().all()
    assert output[[0, 1, 3]].isfinite().all()


UNETS: dict[str, Callable[[], UNet2DConditionModel]] = {
    "as in 1.x: heads of 4 and 8, text at every size, two layers": lambda: UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64, 64), norm_num_groups=8,
        layers_per_block=2, cross_attention_dim=96, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ),
    "as in 2.x: linear projections, heads by block, two transformers; a side that 4 does not divide": lambda: (
        UNet2DConditionModel(
            sample_size=18, in_channels=8, out_channels=8, block_out_channels=(48, 80), norm_num_groups=16,
            layers_per_block=1, cross_attention_dim=96, attention_head_dim=(3, 5), use_linear_projection=True,
            transformer_layers_per_block=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    ),
}  # fmt: skip


def with_unet(pipeline: Pipeline, unet: UNet2DConditionModel) -> ModuleSpec:
    for value in unet.parameters():  # far from what they start as: norms of 1 and 0 hide mistakes
        value.data += 0.02 * torch.randn_like(value)
    unet.eval().requires_grad_(False)
    return module_specs(dataclasses.replace(pipeline, unet=unet))["unet"]


@pytest.mark.parametrize("name", UNETS)
@torch.inference_mode()
def test_other_architectures(pipeline: Pipeline, name: str) -> None:
    torch.manual_seed(0)
    spec = with_unet(pipeline, UNETS[name]())
    unet = native.open_module(spec)
    for rows in (1, 3, 6):
        inputs = spec.example_inputs(rows)
        close(unet(inputs), spec.reference(inputs), 2e-5)
    guided = spec.example_inputs(6)
    guided["latents"][3:] = guided["latents"][:3]  # the way of guidance: every picture twice, with two texts
    guided["text"] = guided["text"][[0, 0, 0, 1, 0, 1]]
    close(unet(guided), spec.reference(guided), 2e-5)


@pytest.mark.parametrize("lanes", lanes_here())
@torch.inference_mode()
def test_every_width_of_vectors(pipeline: Pipeline, lanes: int) -> None:
    for spec in module_specs(pipeline).values():
        inputs = spec.example_inputs(3)
        close(native.open_module(spec, lanes)(inputs), spec.reference(inputs), 2e-5)


@pytest.mark.parametrize("quant", [True, False])
@torch.inference_mode()
def test_a_decoder_with_attention(pipeline: Pipeline, quant: bool) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        latent_channels=8, block_out_channels=(32, 48), norm_num_groups=8, mid_block_add_attention=True,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
        use_post_quant_conv=quant, scaling_factor=0.3,
    ).eval()  # fmt: skip
    spec = module_specs(dataclasses.replace(pipeline, vae=vae))["vae_decoder"]
    inputs = spec.example_inputs(5)
    close(native.open_module(spec)(inputs), spec.reference(inputs), 2e-5)


@torch.inference_mode()
def test_a_picture_is_the_same_whatever_the_batch_and_the_threads(pipeline: Pipeline) -> None:
    specs, before = module_specs(pipeline), torch.get_num_threads()
    for spec in specs.values():
        engine, inputs = native.open_module(spec), spec.example_inputs(45)
        together = engine(inputs)
        try:
            for threads, rows in ((1, slice(44, 45)), (3, slice(7, 26)), (2, slice(0, 2))):
                torch.set_num_threads(threads)
                some = {name: value if name == "timestep" else value[rows] for name, value in inputs.items()}
                assert torch.equal(engine(some), together[rows])
        finally:
            torch.set_num_threads(before)
    inputs = specs["unet"].example_inputs(8)
    doubled = {name: value if name == "timestep" else torch.cat([value, value]) for name, value in inputs.items()}
    doubled["latents"] = torch.cat([inputs["latents"], inputs["latents"]])  # what both halves share is computed once
    unet = native.open_module(specs["unet"])
    assert torch.equal(unet(doubled)[:8], unet(inputs))


@torch.inference_mode()
def test_another_text_and_another_timestep_are_heard(pipeline: Pipeline) -> None:
    spec = module_specs(pipeline)["unet"]
    unet, inputs = native.open_module(spec), spec.example_inputs(4)
    unet(inputs)
    inputs["text"] += 0.3 * torch.randn_like(inputs["text"])  # in place
    close(unet(inputs), spec.reference(inputs), 2e-5)
    inputs["timestep"] = torch.tensor(37.25)
    close(unet(inputs), spec.reference(inputs), 2e-5)
    inputs["latents"] = inputs["latents"].contiguous(memory_format=torch.channels_last)
    close(unet(inputs), spec.reference(inputs), 2e-5)


def paint(engine: Engine, pipeline: Pipeline, guidance_scale: float) -> np.ndarray:
    ids = torch.arange(3)
    encoded = pipeline.encode(["a photo of a dark slim sneaker", "a photo of a white bag", ""]), pipeline.encode([""])
    schedule = make_schedule("dpmsolver++", pipeline.scheduler_config, 12, CPU)
    images = sample(
        engine, schedule, *encoded, ids, ids, latent_shape=pipeline.latent_shape, guidance_scale=guidance_scale, seed=3
    )
    return images.numpy().astype(int)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0, 7.5])
def test_it_paints_the_pictures_of_torch(pipeline: Pipeline, guidance_scale: float) -> None:
    engine = open_engine("native", pipeline, NOWHERE, batch_size=4)
    difference = np.abs(
        paint(engine, pipeline, guidance_scale) - paint(TorchEngine(pipeline), pipeline, guidance_scale)
    )
    assert difference.max() <= 1 and difference.mean() < 0.05  # grey levels: rounding


def test_auto_takes_it_on_the_cpu_and_says_so(pipeline: Pipeline, monkeypatch, caplog) -> None:
    found = Verification(ok=True, engine_ms=5.0, torch_ms=10.0, rows=8)
    monkeypatch.setattr(select, "verify", lambda *_: found)
    with caplog.at_level(logging.INFO, "stablerep.generate"):
        assert open_engine("auto", pipeline, NOWHERE, batch_size=4).name == "native"
    assert "engine auto on cpu: native, measured ahead (5 ms for a UNet step of 8 rows, torch 10 ms)" in caplog.text


def test_what_differs_from_torch_is_never_run(pipeline: Pipeline, monkeypatch) -> None:
    opened = native.open_module
    monkeypatch.setattr(native, "open_module", lambda spec: lambda inputs: opened(spec)(inputs) * 1.01)
    with pytest.raises(UserError, match="--engine native: its unet cannot be used: differs from torch"):
        open_engine("native", pipeline, NOWHERE, batch_size=4)


def test_it_is_verified_once_for_a_model_on_a_machine(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def found(spec: ModuleSpec, *_: object) -> Verification:
        seen.append(spec.name)
        return Verification(ok=True, engine_ms=5.0, torch_ms=10.0, rows=8)

    def verified(store: Store, batch_size: int = 4) -> list[str]:
        seen.clear()
        open_engine("auto", pipeline, store, batch_size)
        return list(seen)

    monkeypatch.setattr(select, "verify", found)
    store, both = Store(tmp_path / "store"), ["unet", "vae_decoder"]
    assert verified(store) == both and verified(store) == []
    assert verified(store, batch_size=2) == both  # a batch of other rows
    assert verified(store, batch_size=64) == both and verified(store, batch_size=640) == []  # it is timed on few
    for path in (tmp_path / "store/.measured").iterdir():
        path.write_text("{half")
    assert verified(store) == both and verified(store) == []
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert verified(store) == both
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(native, "digest", lambda: "other code")
    assert verified(store) == both
    assert store.entries() == []  # none of it is an engine


@pytest.mark.parametrize(("engine_ms", "torch_ms"), [(9.0, 10.0), (10.0, 9.0)])
def test_what_another_moment_could_turn_is_measured_again(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine_ms: float, torch_ms: float
) -> None:
    found = Verification(ok=True, engine_ms=engine_ms, torch_ms=torch_ms, rows=8)
    monkeypatch.setattr(select, "verify", lambda *_: found)
    open_engine("auto", pipeline, Store(tmp_path / "store"), batch_size=4)
    assert not (tmp_path / "store").exists()


def test_generate_names_it_and_keeps_to_it(pipeline: Pipeline, prompts: Path, tmp_path: Path) -> None:
    few = {"num_images_per_prompt": 2, "num_inference_steps": 2, "image_format": "png", "scheduler": "dpmsolver++"}
    for name, batch_size in (("one", 8), ("other", 3)):
        stablerep.generate(prompts=prompts, out=tmp_path / name, engine="native", batch_size=batch_size, **few)
    assert json.loads((tmp_path / "one/dataset.json").read_text())["config"]["engine"] == "native"
    one, other = ((tmp_path / name / "000000.tar").read_bytes() for name in ("one", "other"))
    assert one == other  # other engines may move a pixel by a level with the batch size
    with pytest.raises(UserError, match="--engine is 'native', not 'torch'"):
        stablerep.generate(prompts=prompts, out=tmp_path / "one", engine="torch", **few)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"block_out_channels": (24, 48), "norm_num_groups": 8}, "a residual block of another kind"),
        ({"resnet_time_scale_shift": "scale_shift"}, "a residual block of another kind"),
        ({"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, "a block of another kind: AttnDownBlock2D"),
        ({"dual_cross_attention": True}, "a transformer of another kind: DualTransformer2DModel"),
        ({"class_embed_type": "timestep"}, "class_embed_type timestep"),
        ({"sample_size": 9}, "a size that halving does not divide"),
        ({"downsample_padding": 0}, "a downsampling of another kind"),
    ],
)
def test_what_it_does_not_support_is_named(pipeline: Pipeline, change: dict, reason: str) -> None:
    config = {
        "sample_size": 8, "in_channels": 8, "out_channels": 8, "block_out_channels": (16, 32), "norm_num_groups": 8,
        "layers_per_block": 1, "cross_attention_dim": 96, "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    } | change  # fmt: skip
    other = dataclasses.replace(pipeline, unet=UNet2DConditionModel(**config).eval())
    with pytest.raises(UserError, match=f"--engine native cannot run: the unet has {reason}.*; take --engine torch"):
        open_engine("native", other, NOWHERE, batch_size=1)


def test_another_size_than_it_was_made_for(pipeline: Pipeline) -> None:
    spec = module_specs(pipeline)["vae_decoder"]
    with pytest.raises(ValueError, match=r"made for latents \[8, 8, 8\]"):
        native.open_module(spec)({"latents": torch.zeros(2, 8, 8, 9)})


def test_half_precision_says_why_not(pipeline: Pipeline) -> None:
    spec = dataclasses.replace(module_specs(pipeline)["unet"], dtype=torch.float16)
    assert "computes in float32 on the CPU, not in float16 on cpu" in (native.why_not(spec) or "")
