"""Encoders of any size, and their way to disk and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_data_config
from torch.nn import functional

from stablerep.config import UserError
from stablerep.models import InputTransform, create_encoder, load_encoder, save_exported


@pytest.mark.parametrize(
    ("arch", "size"),
    [("resnet10t", 32), ("resnet10t", 96), ("vit_tiny_patch16_224", 48), ("mobilenetv3_small_050", 32)],
)
def test_features_are_one_row_of_num_features(arch: str, size: int) -> None:
    encoder = create_encoder(arch, size)
    assert encoder(torch.randn(2, 3, size, size)).shape == (2, encoder.num_features)


@pytest.mark.parametrize(("arch", "size"), [("resnet10t", 32), ("resnet10t", 96), ("vit_tiny_patch16_224", 48)])
def test_export_gives_the_same_features_in_plain_timm(arch: str, size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = create_encoder(arch, size)
    encoder(torch.randn(8, 3, size, size))  # running statistics that are not the initial ones
    encoder.eval()
    transform = InputTransform(size)
    save_exported(encoder, arch, transform, tmp_path / "run" / "exported")
    images = torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8)
    expected = encoder(transform(images))

    by_timm = timm.create_model(f"local-dir:{tmp_path}/run/exported", pretrained=True).eval()
    config = resolve_data_config(by_timm.pretrained_cfg)  # what timm says its input is, and nothing of ours
    pixels = functional.interpolate(images.permute(0, 3, 1, 2) / 255, config["input_size"][1:], mode="bilinear")
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(by_timm((pixels - mean) / std), expected, rtol=1e-4, atol=1e-5)

    for place in ("run", "run/exported", "run/exported/model.safetensors"):
        ours, our_transform = load_encoder(tmp_path / place)
        torch.testing.assert_close(ours(our_transform(images)), expected, rtol=1e-4, atol=1e-5)


def test_resize_of_the_input_transform_averages_what_it_drops() -> None:
    checkers = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    images = checkers[None, :, :, None].expand(1, 64, 64, 3).to(torch.uint8)
    grey = InputTransform(16, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))(images)
    assert grey.shape == (1, 3, 16, 16)
    assert grey.abs().max() < 0.01


def test_an_unknown_arch_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"--arch 'resnet10' is unknown.*resnet1"):
        create_encoder("resnet10", 32)


def test_a_size_the_model_cannot_take_is_one_line() -> None:
    with pytest.raises(UserError, match="--arch vit_tiny_patch16_224 cannot be built for --image-size 50") as error:
        create_encoder("vit_tiny_patch16_224", 50)
    assert "\n" not in str(error.value)


def test_loading_what_is_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no trained encoder"):
        load_encoder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has not ended"):
        load_encoder(tmp_path)
    save_exported(create_encoder("resnet10t", 32), "resnet10t", InputTransform(32), tmp_path / "exported")
    weights = tmp_path / "exported" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged"):
        load_encoder(tmp_path)
