"""Encoders that people bring: every kind of file gives the features of the model that it was written from."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stablerep.config import UserError
from stablerep.models import InputTransform, load_encoder

IMAGES = torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RESNET = InputTransform(160, (0.5,) * 3, (0.5,) * 3, "bilinear", 0.95, "center")
VIT = InputTransform(160, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.95, "center")


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10).eval()


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=10).eval()


def features(model: nn.Module, transform: InputTransform) -> Tensor:
    with torch.inference_mode():
        return model.forward_head(model.forward_features(transform(IMAGES)), pre_logits=True)  # type: ignore[operator]


def prefixed(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in model.state_dict().items()}


def by_timm_and_torch(model: nn.Module) -> dict[str, Any]:
    """What training scripts write around a state dict."""
    return {
        "plain": model.state_dict(),
        "torch": {"epoch": 3, "state_dict": prefixed(model, "module."), "optimizer": {"state": {}}},
        "timm": {"arch": "test_resnet", "state_dict": model.state_dict(), "args": argparse.Namespace(model="x")},
        "moco": {"state_dict": prefixed(model, "module.encoder_q.") | {"module.queue": torch.zeros(3)}},
        "ours": {"model": prefixed(model, "encoder.") | {"head.layers.0.weight": torch.zeros(3)}, "step": 4},
    }


@pytest.mark.parametrize("kind", ["plain", "torch", "timm", "moco", "ours"])
def test_checkpoints_of_torch(resnet: nn.Module, tmp_path: Path, kind: str) -> None:
    torch.save(by_timm_and_torch(resnet)[kind], tmp_path / "weights.pth")
    encoder, transform = load_encoder(tmp_path / "weights.pth", arch=None if kind == "timm" else "test_resnet")
    assert transform == RESNET and not encoder.training
    with torch.inference_mode():
        torch.testing.assert_close(encoder(transform(IMAGES)), features(resnet, transform))


def test_safetensors_says_its_arch_itself_or_in_a_config_beside_it(resnet: nn.Module, tmp_path: Path) -> None:
    weights = {name: value.contiguous() for name, value in resnet.state_dict().items()}
    save_file(weights, tmp_path / "mine.safetensors", metadata={"architecture": "test_resnet"})
    expected = features(resnet, RESNET)
    assert torch.allclose(load_encoder(tmp_path / "mine.safetensors")[0](RESNET(IMAGES)), expected, atol=1e-5)
    about = {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 0.5}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    save_file(weights, tmp_path / "mine.safetensors")
    encoder, transform = load_encoder(tmp_path / "mine.safetensors")
    assert (transform.image_size, transform.crop_pct) == (64, 0.5)
    assert torch.allclose(encoder(RESNET(IMAGES)), expected, atol=1e-5)
    (tmp_path / "mine.safetensors").rename(tmp_path / "model.safetensors")  # a folder as timm writes it
    assert torch.allclose(load_encoder(tmp_path)[0](RESNET(IMAGES)), expected, atol=1e-5)


@pytest.mark.parametrize("prefix", ["visual.", "module.visual."])
def test_the_reference_code_s_checkpoint(
    vit: nn.Module, tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stablerep")
    dropped = prefix.removesuffix("visual.") + "image_mlp.layer1.weight"
    state = {"model": prefixed(vit, prefix) | {dropped: torch.zeros(2, 2)}, "epoch": 1}
    torch.save(state | {"args": argparse.Namespace(model="test_vit", lr=0.1)}, tmp_path / "cc12m.pth")
    encoder, transform = load_encoder(tmp_path / "cc12m.pth")
    assert transform == InputTransform(160, crop_pct=0.875, crop_mode="center")
    assert torch.allclose(encoder(transform(IMAGES)), features(vit, transform), atol=1e-5)
    assert "image_mlp (1)" in caplog.text and "visual (2)" in caplog.text  # its projector, the classifier


def test_the_reference_s_short_names_are_timm_s_vits(tmp_path: Path) -> None:
    torch.save({"model": {"visual.x": torch.zeros(1)}, "args": argparse.Namespace(model="small")}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="a vit_small_patch16_224"):
        load_encoder(tmp_path / "a.pth")


def test_a_vit_at_another_size_keeps_its_weights(vit: nn.Module, tmp_path: Path, caplog) -> None:
    small = timm.create_model("test_vit", num_classes=0, img_size=64)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    encoder, transform = load_encoder(tmp_path / "small.pth", "test_vit")
    assert transform == VIT and torch.equal(encoder.state_dict()["cls_token"], small.state_dict()["cls_token"])
    assert "position embeddings are resized" in caplog.text


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: {key: value for key, value in state.items() if key != name}


class Harm:
    """What a pickle could be made to run."""


@pytest.mark.parametrize(
    ("change", "arch", "match"),
    [
        (lambda state: state, None, "does not say of which model its weights are; add --arch"),
        (without("layer3.0.conv1.weight"), "test_resnet", r"layer3.0.conv1.weight is missing \(1 such\)"),
        (lambda state: state | {"new.a": torch.zeros(1)}, "test_resnet", "new.a is none of its names"),
        (lambda state: state, "test_vit", "does not hold the weights of a test_vit: blocks"),
        (lambda state: state, "tset_resnet", "did you mean test_resnet"),
        (lambda state: {"arch": "test_resnet", "model": state}, "test_vit", "is a test_resnet, not --arch test_vit"),
        (lambda state: {"a": prefixed_state(state, "a."), "b": 1}, "test_resnet", "holds no weights"),
        (lambda state: prefixed_state(state, "a.") | prefixed_state(state, "b."), "test_resnet", "several encoders"),
        (lambda state: {"model": state, "of": Harm()}, "test_resnet", "other objects beside weights .*Harm"),
    ],
)
def test_what_does_not_fit_is_one_line(
    resnet: nn.Module, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], arch: str | None, match: str
) -> None:
    state = {name: value for name, value in resnet.state_dict().items() if name not in ("fc.weight", "fc.bias")}
    torch.save(change(state), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=match) as error:
        load_encoder(tmp_path / "weights.pth", arch)
    assert "\n" not in str(error.value)


def prefixed_state(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    for name, match in (("a.pth", "no file of weights"), ("a.safetensors", "cannot be read")):
        (tmp_path / name).write_text("hello")
        with pytest.raises(UserError, match=match):
            load_encoder(tmp_path / name, "test_resnet")
    with pytest.raises(UserError, match="no file, no folder and no model of timm; did you mean resnet10t"):
        load_encoder("resnet10tt")
    with pytest.raises(UserError, match=r"b.pth does not exist"):
        load_encoder(tmp_path / "b.pth")
