"""The denoising loop and what becomes of its pictures on a CUDA device that is none: tests/fake_cuda.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stablerep import ops
from stablerep.engines.conditioning import Conditioning
from stablerep.engines.torch import TorchEngine
from stablerep.generate import screen
from stablerep.generate.denoise import BatchInputs, FusedSchedule, denoise, picture_noise
from stablerep.generate.pipeline import Pipeline
from stablerep.generate.schedulers import open_schedule
from tests.fake_cuda import CUDA, NoWaiting, fake_cuda, move, there
from tests.generate import tiny_models

ROWS, STEPS = 2, 3


@pytest.mark.parametrize(("dtype", "guided", "rescale"), [
    (torch.float16, True, 0.0), (torch.bfloat16, True, 0.7), (torch.float32, False, 0.0),
])  # fmt: skip
def test_a_batch_is_painted_without_a_copy_or_a_wait(
    dtype: torch.dtype, guided: bool, rescale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cosines = screen._cosines(torch.device("cpu"))
    monkeypatch.setattr(screen, "_cosines", lambda device: there(cosines))  # brought there once, with the first batch
    built = tiny_models.build("sd")
    unet, vae = built.unet.to(dtype), built.vae.to(dtype)
    schedule = open_schedule("ddim", dict(built.scheduler.config), STEPS, torch.device("cpu"))
    assert isinstance(schedule, FusedSchedule)
    pipeline = Pipeline(None, None, unet, vae, dict(built.scheduler.config), "random")
    engine = TorchEngine(pipeline)
    width, latent = unet.config.cross_attention_dim, pipeline.latent_shape
    with fake_cuda():
        move(unet), move(vae)
        table = {name: there(getattr(schedule, name)) for name in ("timesteps", "table", "steps")}
        schedule = dataclasses.replace(schedule, **table)
        ids = torch.arange(ROWS, device=CUDA)
        text = Conditioning({"text": torch.empty(ROWS, 77, width, device=CUDA, dtype=dtype)})
        with NoWaiting() as painting:
            noise = picture_noise(5, ids, ids, latent, CUDA)
            inputs = BatchInputs(noise, torch.full((ROWS,), 2.0, device=CUDA), text, text)
            decoded = denoise(engine, schedule, inputs, lambda draw: noise, guided=guided, guidance_rescale=rescale)
            pixels = ops.to_pixels(decoded, 16)
            quality = screen.measure(decoded, pixels)
    assert (pixels.shape, pixels.dtype, pixels.device) == ((ROWS, 16, 16, 3), torch.uint8, CUDA)
    assert decoded.dtype == dtype
    assert all(each.device == CUDA and len(each) == ROWS for each in quality.tensors())
    assert painting.launched.count("guided_step") == STEPS
