"""The scripts that make the embedded generator: small, but the whole way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from examples.fashion import resumable, train
from examples.fashion.sharpen import sharpen
from examples.fashion.vae import new_vae
from stablerep.data.labelled import LabelledSet, fashion_mnist


def test_a_stopped_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    def weights(checkpoint: Path, stop_at: int | None = None) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        calls = 0

        def loss_of(indices: Tensor, noise: torch.Generator) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise KeyboardInterrupt
            return (model(torch.randn(len(indices), 4, generator=noise)) - indices[:, None] / 100).square().mean()

        settings = {"num_photos": 100, "steps": 10, "batch_size": 8, "learning_rate": 0.1, "ema_decay": 0.9, "seed": 3}
        resumable.train(model, loss_of, checkpoint=checkpoint, title="line", save_every=3, **settings)
        return model.weight.detach()

    undisturbed = weights(tmp_path / "a.pt")
    with pytest.raises(KeyboardInterrupt):
        weights(tmp_path / "b.pt", stop_at=9)
    assert torch.equal(weights(tmp_path / "b.pt"), undisturbed)


def test_the_critic_moves_the_decoder_and_leaves_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = new_vae()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    sharpen(vae, pixels, steps=2, seed=1, checkpoint=tmp_path / "decoder.pt")
    moved = {name.split(".")[0] for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"decoder", "post_quant_conv"}


def test_the_script_makes_a_pipeline_that_diffusers_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(split: str) -> LabelledSet:
        photos = fashion_mnist(split)  # type: ignore[arg-type]
        return LabelledSet(photos.images[:300], photos.labels[:300], photos.class_names)

    monkeypatch.setattr(train, "fashion_mnist", few)
    steps = ["--vae-steps", "2", "--decoder-steps", "2", "--unet-steps", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["train", "--out", str(tmp_path), *steps])
    train.main()
    train.main()  # finished: opens what is there
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a photo of a dark bag", num_inference_steps=2).images[0]
    assert np.asarray(picture).shape == (32, 32, 3)


@pytest.mark.slow
def test_the_tokenizer_is_the_same_in_every_process() -> None:
    # Numbers given in the order of a hash map once differed from run to run, and a resumed training with them.
    program = (
        "from examples.fashion.text import train_tokenizer;"
        "print(train_tokenizer(['a dark t-shirt', 'a light coat', 'a bag']).backend_tokenizer.to_str())"
    )
    run = [sys.executable, "-c", program]
    first, second = (subprocess.run(run, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second
    assert len(first) > 1000
