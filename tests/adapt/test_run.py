"""Whole adaptations of a few steps: what they write, who opens it, and how they go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

import stablerep
from stablerep import cli
from stablerep.adapt.run import estimate
from stablerep.config import UserError
from stablerep.generate.pipeline import open_pipeline
from stablerep.generate.samples import paint_samples
from tests.adapt.runs import CPU, LORA, config_for, lines, open_model, paint_grey, run, write_photos
from tests.generate import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize("kind", ["default", "sd", "sdxl"])
def test_a_lora_opens_here_and_in_diffusers_to_the_same_weights(kind: str, photos: Path, tmp_path: Path) -> None:
    model = kind
    if kind != "default":
        model = str(tmp_path / kind)
        tiny_models.save(kind, tmp_path / kind)
    run(config_for(photos, tmp_path / "run", model=model, text_encoder=True, learning_rate=1e-2, alpha=3.0))
    ours = open_pipeline(model, CPU, [f"{tmp_path / 'run'}:1"])
    plain = open_pipeline(model, CPU)
    folder = stablerep.default_generator() if kind == "default" else model
    theirs = DiffusionPipeline.from_pretrained(folder, safety_checker=None) if kind != "sdxl" else (
        DiffusionPipeline.from_pretrained(folder)
    )  # fmt: skip
    theirs.load_lora_weights(str(tmp_path / "run"))
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    parts = ("unet", "text_encoder", "text_encoder_2") if kind == "sdxl" else ("unet", "text_encoder")
    for part in parts:
        found, wanted, before = ((getattr(each, part).state_dict()) for each in (ours, theirs, plain))
        changed = [name for name in found if not torch.equal(found[name], before[name])]
        assert changed and all("attn" in name and name.endswith("weight") for name in changed)
        for name, weight in found.items():
            torch.testing.assert_close(weight, wanted[name].to(weight.dtype), rtol=1e-5, atol=1e-5)


def test_the_file_names_its_model_and_another_one_is_said_or_refused(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    run(config_for(photos, out, steps=1))
    with safe_open(out / LORA, framework="pt") as file:
        about = file.metadata()
    assert about["base_model"] == "default" and about["base_model_hash"] == open_pipeline("default", CPU).weights_hash
    assert json.loads(about["lora_adapter_metadata"])["unet.r"] == 2
    open_pipeline("default", CPU, [str(out)])
    assert "another model" not in caplog.text

    tiny_models.save("sd", tmp_path / "tiny")
    with pytest.raises(UserError, match=r"does not fit the model.*it was made for default$"):
        open_pipeline(str(tmp_path / "tiny"), CPU, [str(out)])
    shutil.copytree(stablerep.default_generator(), tmp_path / "sister")
    scheduler = tmp_path / "sister/scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"beta_end": 0.02', '"beta_end": 0.021'))
    open_pipeline(str(tmp_path / "sister"), CPU, [str(out)])
    assert "is used on another model than its own; it was made for default" in caplog.text


def test_full_writes_a_pipeline_of_its_own_size(photos: Path, tmp_path: Path) -> None:
    summary = run(config_for(photos, tmp_path / "run", full=True, image_size=40, vae_steps=2, steps=2))
    opened = open_pipeline(str(summary.weights), CPU)
    assert opened.latent_shape == (8, 10, 10)
    assert paint_samples(opened, ["a bag"], seed=0, guidance_scale=2, num_inference_steps=2).shape == (1, 40, 40, 3)
    theirs = DiffusionPipeline.from_pretrained(summary.weights)
    for name, weight in opened.unet.state_dict().items():
        assert torch.equal(weight, theirs.unet.state_dict()[name])
    assert opened.vae.config.scaling_factor == theirs.vae.config.scaling_factor != 1.0368179017837031
    assert f"--model {summary.weights}" in str(summary)


def test_it_stops_when_the_photos_held_out_get_worse_and_keeps_the_best(photos: Path, tmp_path: Path) -> None:
    config = config_for(photos, tmp_path / "run", steps=40, learning_rate=0.5, validate_every=1, patience=3, warmup=0.0)
    summary = run(config)
    assert summary.steps < 40 and summary.steps == summary.best_step + 3
    held_out = [line["held_out_loss"] for line in lines(tmp_path / "run")]
    assert summary.best_loss == min(held_out) and summary.first_loss == held_out[0]
    if summary.best_step == 0:
        assert "adapting did not help" in str(summary)


def test_it_learns_what_it_is_shown(photos: Path, tmp_path: Path) -> None:
    config = config_for(photos, tmp_path / "run", full=True, steps=30, batch_size=4, validate_every=30, min_snr_gamma=0)
    summary = run(config)
    assert summary.best_loss < 0.8 * summary.first_loss
    losses = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_pictures_on_the_way_are_those_of_stablerep_gen(photos: Path, tmp_path: Path) -> None:
    from PIL import Image

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a photo of a bag\na photo of a dress\n")
    config = config_for(
        photos, tmp_path / "run", steps=2, sample_every=1, sample_prompts=tuple(prompts.read_text().splitlines())
    )
    run(config, paint=paint_samples)
    assert sorted(file.name for file in (tmp_path / "run/samples").glob("*")) == [
        "000000.png", "000001.png", "000002.png",
    ]  # fmt: skip
    stablerep.generate(
        prompts=prompts, out=tmp_path / "painted", num_images_per_prompt=1, image_format="png", engine="torch",
        num_inference_steps=2, scheduler="dpmsolver++", device="cpu",
    )  # fmt: skip
    from stablerep.shards import read_pictures

    painted = [data for _, data in read_pictures(tmp_path / "painted")]
    with Image.open(tmp_path / "run/samples/000000.png") as grid:
        for number, data in enumerate(painted):
            (tmp_path / "one.png").write_bytes(data)
            with Image.open(tmp_path / "one.png") as picture:
                assert grid.crop((32 * number, 0, 32 * number + 32, 32)).tobytes() == picture.tobytes()


def test_prior_pictures_are_painted_once_before_learning(photos: Path, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def paint(model: Any, prompts: Any, **settings: Any) -> torch.Tensor:
        asked.append(list(prompts))
        return paint_grey(model, prompts, **settings)

    config = config_for(photos, tmp_path / "run", prior_weight=1.0, prior_prompt="a shoe", prior_images=3)
    run(config, paint=paint)
    assert asked[0] == ["a shoe"] * 3 and len(list((tmp_path / "run/prior").glob("*.png"))) == 3
    assert len(asked) == 2  # the other looks for copies
    without = run(config_for(photos, tmp_path / "without"))
    assert lines(tmp_path / "run")[1]["loss"] > lines(tmp_path / "without")[1]["loss"] and without.steps == 4


def test_a_dry_run_writes_nothing(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = estimate(config_for(photos, tmp_path / "run", dry_run=True), open_model, paint_grey)
    assert (found.photos, found.held_out) == (6, 2) and "steps      4 of 2 photos" in str(found)
    assert not (tmp_path / "run").exists()
    cli.adapt(["--photos", str(photos), "--out", str(tmp_path / "run"), "--dry-run", "--full", "--device", "cpu"])
    assert "million learn" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_gradient_checkpointing_changes_nothing_but_memory(photos: Path, tmp_path: Path) -> None:
    for name, on in (("plain", False), ("again", True)):
        run(config_for(photos, tmp_path / name, gradient_checkpointing=on, full=True, steps=3))
    plain, again = (
        load_file(tmp_path / n / "pipeline/unet/diffusion_pytorch_model.safetensors") for n in ("plain", "again")
    )
    for name, weight in plain.items():
        torch.testing.assert_close(again[name], weight, rtol=1e-5, atol=1e-6)


def test_the_function_takes_the_fields(photos: Path, tmp_path: Path) -> None:
    summary = stablerep.adapt(photos=photos, out=tmp_path / "run", steps=1, batch_size=2, rank=1, sample_every=0,
                              num_inference_steps=1, device="cpu")  # fmt: skip
    assert summary.weights.exists() and summary.memorised.pictures == 64


@pytest.mark.parametrize(("kind", "full"), [("default", False), ("default", True), ("sdxl", False)])
def test_half_precision_learns_and_paints(kind: str, full: bool, photos: Path, tmp_path: Path) -> None:
    """As on a GPU: frozen weights in bfloat16, what learns in float32."""
    if kind != "default":
        tiny_models.save(kind, tmp_path / kind)
    model = kind if kind == "default" else str(tmp_path / kind)
    changes: dict[str, Any] = {"model": model, "full": full, "text_encoder": kind == "sdxl", "sample_every": 2}
    exact, rough = (
        run(config_for(photos, tmp_path / precision, precision=precision, **changes), paint=paint_samples)
        for precision in ("fp32", "bf16")
    )
    assert rough.best_loss == pytest.approx(exact.best_loss, rel=0.05) and rough.best_loss != exact.best_loss
    file = "pipeline/unet/diffusion_pytorch_model.safetensors" if full else LORA
    assert {weight.dtype for weight in load_file(tmp_path / "bf16" / file).values()} == {torch.float32}
