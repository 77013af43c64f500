"""The loss against formulas written out in float64, and what steps draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerep.adapt.denoising import Denoiser, draw_batch, held_out_loss
from stablerep.adapt.latents import Captions, Latents, encode_pictures, scaled
from stablerep.engines.torch import Decoder
from stablerep.generate.pipeline import open_pipeline
from tests.adapt.runs import CPU
from tests.data.pictures import random_pixels
from tests.generate import tiny_models


def alphas_of(config: dict[str, Any]) -> torch.Tensor:
    """The signal's share of variance at each timestep: "scaled_linear" betas."""
    ends = [config["beta_start"] ** 0.5, config["beta_end"] ** 0.5]
    betas = torch.linspace(*ends, config["num_train_timesteps"], dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@pytest.mark.parametrize("kind", ["sd", "sd2-v", "sdxl"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_losses(kind: str, gamma: float, tmp_path: Path) -> None:
    tiny_models.save(kind, tmp_path / kind)
    model = open_pipeline(str(tmp_path / kind), CPU)
    denoiser = Denoiser(model, gamma)
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 8, 8)
    timesteps = torch.tensor([3, 420, 990])
    with torch.no_grad():
        text = model.embed(["a bag", "", "a shoe"])
        found = denoiser.losses(clean, noise, timesteps, text)
        alpha = alphas_of(model.scheduler_config)[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean if kind.endswith("-v") else noise
        added = {name: text.inputs[name] for name in ("text_embeds", "time_ids")} if kind == "sdxl" else None
        predicted = model.unet(noisy.float(), timesteps, text.text, added_cond_kwargs=added).sample
        wanted = (predicted.double() - target).square().mean((1, 2, 3))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)

    snr = (alpha / (1 - alpha)).flatten()
    by_paper = snr.clamp(max=gamma) / (snr + 1 if kind.endswith("-v") else snr) if gamma else torch.ones(3)
    torch.testing.assert_close(denoiser.weights(timesteps).double(), by_paper.double(), rtol=1e-4, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(photos=st.integers(1, 30), batch_size=st.integers(1, 12), seed=st.integers(0, 2**40), first=st.integers(0, 50))
def test_batches(photos: int, batch_size: int, seed: int, first: int) -> None:
    steps = [draw_batch(step, batch_size, seed, photos, 3, 1000, 0.5) for step in range(first + 2 * photos)]
    shown = torch.cat([each.photos for each in steps])
    for epoch in range(len(shown) // photos):  # each photo once before any comes again
        assert sorted(shown[epoch * photos : (epoch + 1) * photos].tolist()) == list(range(photos))
    for each in steps:  # every part of the noise levels once
        strata = (each.timesteps * batch_size).div(1000, rounding_mode="floor")
        assert (strata.sort().values - torch.arange(batch_size)).abs().max() <= 1
        assert (
            each.timesteps.min() >= 0 and each.timesteps.max() < 1000 and 0 <= each.views.min() <= each.views.max() < 3
        )
    again = draw_batch(first, batch_size, seed, photos, 3, 1000, 0.5)
    assert torch.equal(again.photos, steps[first].photos) and torch.equal(again.timesteps, steps[first].timesteps)
    assert again.is_bare == steps[first].is_bare


def test_a_look_is_the_same_each_time_and_knows_a_worse_model() -> None:
    model = open_pipeline("default", CPU)
    views = [torch.from_numpy(random_pixels(n).copy()).permute(2, 0, 1)[None] for n in range(3)]
    latents = encode_pictures(model.vae, [("a bag", each) for each in views])
    captions, denoiser = Captions(model, ["a bag"], learns=False), Denoiser(model, 5.0)
    first = held_out_loss(denoiser, latents, captions, 0, CPU)
    assert first == held_out_loss(denoiser, latents, captions, 0, CPU)
    assert first != held_out_loss(denoiser, latents, captions, 1, CPU)
    with torch.no_grad():
        model.unet.conv_out.weight.mul_(-1)  # the opposite of what it says
    assert held_out_loss(denoiser, latents, captions, 0, CPU) > first


@pytest.mark.parametrize("changes", [{}, {"shift_factor": 0.3}, {"latents_mean": [0.1] * 4, "latents_std": [0.7] * 4}])
def test_latents_are_what_the_decoder_undoes(changes: dict[str, Any]) -> None:
    vae = tiny_models.build("sd", vae=changes).vae
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        torch.testing.assert_close(
            Decoder(vae)(scaled(vae, posterior.mean)), vae.decode(posterior.mean).sample, rtol=1e-3, atol=1e-3
        )
        moved = scaled(vae, posterior.mean + posterior.std) - scaled(vae, posterior.mean)
        torch.testing.assert_close(scaled(vae, posterior.std, is_deviation=True), moved, rtol=1e-4, atol=1e-5)


def test_an_empty_caption_is_zeros_where_the_model_was_trained_so(tmp_path: Path) -> None:
    tiny_models.save("sdxl", tmp_path / "xl", force_zeros_for_empty_prompt=True)
    captions = Captions(open_pipeline(str(tmp_path / "xl"), CPU), ["a bag"], learns=False)
    found = captions(["", "a bag"])
    assert not found.text[0].any() and found.text[1].any() and not found.inputs["text_embeds"][0].any()


def test_psnr_of_what_the_vae_draws() -> None:
    vae = open_pipeline("default", CPU).vae
    pixels = torch.from_numpy(random_pixels(5).copy()).permute(2, 0, 1)[None]
    found: Latents = encode_pictures(vae, [("", pixels)])
    with torch.no_grad():
        drawn = vae.decode(vae.encode(pixels / 127.5 - 1).latent_dist.mean).sample.clamp(-1, 1)
    error = ((drawn.double() + 1) / 2 - pixels.double() / 255).square().mean()
    assert found.psnr == pytest.approx(-10 * error.log10().item(), abs=1e-3)
