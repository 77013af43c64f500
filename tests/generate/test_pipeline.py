"""Every kind of model against diffusers' own pipeline: same latents, same scheduler, same picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stablerep.engines import Engine
from stablerep.engines.conditioning import Conditioning
from stablerep.engines.torch import TorchEngine
from stablerep.generate.denoise import picture_noise
from stablerep.generate.pipeline import Pipeline, open_pipeline
from stablerep.generate.schedulers import open_schedule
from tests.generate import tiny_models
from tests.generate.sampling import sample_decoded

CPU = torch.device("cpu")
PROMPTS = ["a photo of a dark slim sneaker", "a white bag"]
IDS, INDICES = torch.arange(2), torch.full((2,), 3)
# kind -> our name of its scheduler
NAMES = {"sd": "ddim", "sd2-v": "ddim", "sd-turbo": "euler", "sd-lcm": "lcm"}
NAMES |= {"sdxl": "euler", "sdxl-turbo": "euler", "sdxl-v": "ddim", "sdxl-lcm": "lcm"}


def paint(
    pipeline: Pipeline, name: str, steps: int, guidance: float | list[float], negative: str = "",
    engine: Engine | None = None,
) -> Tensor:  # fmt: skip
    """Two pictures [2, H, W, 3] in 0..1."""
    scales = [guidance] * 2 if isinstance(guidance, int | float) else guidance
    decoded = sample_decoded(
        engine or TorchEngine(pipeline),
        open_schedule(name, pipeline.scheduler_config, steps, CPU),
        pipeline.with_guidance(pipeline.encode(PROMPTS), scales),
        pipeline.encode_negative([negative]),
        IDS,
        INDICES,
        latent_shape=pipeline.latent_shape,
        guidance_scale=scales,
        seed=5,
    )
    return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def oracle(theirs: Any, pipeline: Pipeline, steps: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Tensor:
    start, *later = (picture_noise(5, IDS, INDICES, pipeline.latent_shape, CPU, n) for n in range(steps + 1))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *_, **__: later.pop(0))
        images = theirs(PROMPTS, num_inference_steps=steps, latents=start, output_type="np", **settings).images
    return torch.from_numpy(images)


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (4, 1.0), (4, 5.5)])
@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_equals_diffusers(kind: str, steps: int, guidance: float, tmp_path: Path, monkeypatch) -> None:
    theirs = tiny_models.save(kind, tmp_path)
    ours = open_pipeline(str(tmp_path), CPU)
    expected = oracle(theirs, ours, steps, monkeypatch, guidance_scale=guidance)
    assert expected.std() > 0.05
    torch.testing.assert_close(paint(ours, NAMES[kind], steps, guidance), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_a_picture_depends_on_all_that_the_unet_takes(kind: str, tmp_path: Path) -> None:
    tiny_models.save(kind, tmp_path)
    pipeline = open_pipeline(str(tmp_path), CPU)
    conditioning = pipeline.with_guidance(pipeline.encode(PROMPTS), [2.0, 7.5])
    assert set(conditioning.inputs) == {
        "text",
        *(("text_embeds", "time_ids") if kind.startswith("sdxl") else ()),
        *(("timestep_cond",) if kind.endswith("lcm") else ()),
    }
    latents = picture_noise(5, IDS, INDICES, pipeline.latent_shape, CPU)
    expected = TorchEngine(pipeline).unet(latents, torch.tensor(501.0), conditioning)
    for name, value in conditioning.inputs.items():
        other = Conditioning({**conditioning.inputs, name: value.roll(1, dims=0) if name != "time_ids" else value * 2})
        got = TorchEngine(pipeline).unet(latents, torch.tensor(501.0), other)
        assert (got - expected).abs().max() > 0.01, name


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("negative", ["", "a busy dress"])
def test_sdxl_s_negative_prompt(zeros: bool, negative: str, tmp_path: Path, monkeypatch) -> None:
    theirs = tiny_models.save("sdxl", tmp_path, force_zeros_for_empty_prompt=zeros)
    ours = open_pipeline(str(tmp_path), CPU)
    settings = {"guidance_scale": 5.0, "negative_prompt": (negative and [negative] * 2) or None}
    expected = oracle(theirs, ours, 2, monkeypatch, **settings)
    torch.testing.assert_close(paint(ours, "euler", 2, 5.0, negative), expected, rtol=0, atol=5e-5)
    others = paint(ours, "euler", 2, 5.0, "a white coat")
    assert (others - expected).abs().max() > 0.01


def test_sdxl_s_latents_with_mean_and_std(tmp_path: Path, monkeypatch) -> None:
    vae = {"latents_mean": [0.5, -1.0, 0.1, 0.0], "latents_std": [1.5, 0.7, 1.0, 2.0], "scaling_factor": 0.5}
    theirs = tiny_models.save("sdxl", tmp_path, vae=vae)
    ours = open_pipeline(str(tmp_path), CPU)
    expected = oracle(theirs, ours, 2, monkeypatch, guidance_scale=2.0)
    torch.testing.assert_close(paint(ours, "euler", 2, 2.0), expected, rtol=0, atol=5e-5)


def test_a_vae_with_a_shift(tmp_path: Path) -> None:
    tiny_models.save("sd", tmp_path, vae={"shift_factor": 0.3, "scaling_factor": 0.5})
    pipeline = open_pipeline(str(tmp_path), CPU)
    latents = torch.linspace(-1, 1, 2 * 4 * 64).reshape(2, 4, 8, 8)
    expected = pipeline.vae.decode(latents / 0.5 + 0.3).sample  # as diffusers does for the models that have one
    torch.testing.assert_close(TorchEngine(pipeline).decode(latents), expected)


@pytest.mark.parametrize("force_upcast", [True, False])
def test_sdxl_s_vae_overflows_in_half_precision(force_upcast: bool, tmp_path: Path) -> None:
    theirs = tiny_models.build("sdxl", vae={"force_upcast": force_upcast})
    theirs.vae.decoder.conv_in.weight.mul_(3e4)  # group norms take it back; float16 ends at 65504
    theirs.save_pretrained(tmp_path)
    single, half = (open_pipeline(str(tmp_path), CPU, dtype=dtype) for dtype in (torch.float32, torch.float16))
    assert half.unet.dtype == half.encode(PROMPTS).dtype == torch.float16
    got, expected = paint(half, "euler", 2, 2.0).float(), paint(single, "euler", 2, 2.0)
    assert got.isfinite().all() == force_upcast
    assert not force_upcast or (got - expected).abs().mean() < 0.02


@pytest.mark.parametrize("kind", ["sd-lcm", "sdxl-lcm"])
def test_lcm_takes_each_picture_s_own_guidance_and_no_unguided_half(kind: str, tmp_path: Path) -> None:
    class Counting(TorchEngine):
        def unet(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
            assert len(latents) == len(conditioning) == 2
            return super().unet(latents, timestep, conditioning)

    tiny_models.save(kind, tmp_path)
    pipeline = open_pipeline(str(tmp_path), CPU)
    both = paint(pipeline, "lcm", 2, [1.0, 7.5], engine=Counting(pipeline))
    for row, scale in enumerate((1.0, 7.5)):
        torch.testing.assert_close(both[row], paint(pipeline, "lcm", 2, scale)[row], rtol=0, atol=5e-5)
    assert (both[1] - paint(pipeline, "lcm", 2, 1.0)[1]).abs().max() > 0.01
