"""LoRA files in every spelling, against the sum they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import stablerep
from stablerep.config import UserError
from stablerep.generate.lora import fuse_lora, parse_lora
from stablerep.generate.pipeline import Pipeline, open_pipeline

CPU = torch.device("cpu")
RANK = 3


def layers_of(pipeline: Pipeline) -> dict[str, tuple[str, str]]:
    """One layer of each kind: part and name."""
    unet = [name for name, _ in pipeline.unet.named_modules()]
    query = next(name for name in unet if name.endswith("attn2.to_q"))
    text = [name for name, _ in pipeline.text_encoder.named_modules()]
    return {
        "query": ("unet", query),
        "out": ("unet", query.replace("to_q", "to_out.0")),
        "conv": ("unet", next(name for name in unet if name.endswith("resnets.0.conv1"))),
        "text": ("text_encoder", next(name for name in text if name.endswith("self_attn.q_proj"))),
    }


def thin(pipeline: Pipeline, part: str, name: str) -> tuple[Tensor, Tensor]:
    """Matrices down and up for a layer, as PEFT shapes them."""
    weight = getattr(pipeline, part).get_submodule(name).weight
    generator = torch.Generator().manual_seed(len(name))
    down = torch.randn(RANK, *weight.shape[1:], generator=generator) * 0.1
    up = torch.randn(len(weight), RANK, *[1] * (weight.ndim - 2), generator=generator) * 0.1
    return down, up


def peft(part: str, name: str) -> tuple[str, str, str]:
    return f"{part}.{name}.lora_A.weight", f"{part}.{name}.lora_B.weight", f"{part}.{name}.alpha"


def older(part: str, name: str) -> tuple[str, str, str]:
    middle = "lora_linear_layer" if part == "text_encoder" else "lora"
    return tuple(f"{part}.{name}.{middle}.{end}" for end in ("down.weight", "up.weight", "alpha"))  # type: ignore[return-value]


def oldest(part: str, name: str) -> tuple[str, str, str]:
    """The attention processors of diffusers 0.16; other layers had no LoRA then."""
    if "attn" not in name or part != "unet":
        return older(part, name)
    layers, _, last = name.removesuffix(".0").rpartition(".")
    stem = f"{part}.{layers}.processor.{last}_lora"
    return f"{stem}.down.weight", f"{stem}.up.weight", f"{stem}.down.alpha"


def kohya(part: str, name: str) -> tuple[str, str, str]:
    nested = name if part == "unet" or name.startswith("text_model") else "text_model." + name
    stem = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + nested.replace(".", "_")
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("spell", [peft, older, oldest, kohya])
def test_every_spelling_adds_the_same(
    pipeline: Pipeline, tmp_path: Path, spell: Callable[[str, str], tuple[str, str, str]], alpha: float | None
) -> None:
    tensors, expected = {}, {}
    for part, name in layers_of(pipeline).values():
        down, up = thin(pipeline, part, name)
        down_key, up_key, alpha_key = spell(part, name)
        tensors |= {down_key: down, up_key: up} | ({} if alpha is None else {alpha_key: torch.tensor(alpha)})
        weight = getattr(pipeline, part).get_submodule(name).weight
        scale = 0.5 * (1 if alpha is None else alpha / RANK)
        expected[part, name] = weight + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    save_file(tensors, tmp_path / "mine.safetensors")

    fused = open_pipeline("default", CPU, [f"{tmp_path / 'mine.safetensors'}:0.5"])
    assert fused.weights_hash != pipeline.weights_hash
    for (part, name), weight in expected.items():
        torch.testing.assert_close(getattr(fused, part).get_submodule(name).weight, weight)
    touched = {f"{part}.{name}.weight" for part, name in expected}
    for part in ("unet", "text_encoder", "vae"):
        before, after = getattr(pipeline, part).state_dict(), getattr(fused, part).state_dict()
        for key in before.keys() - {key.removeprefix(f"{part}.") for key in touched if key.startswith(part)}:
            assert torch.equal(before[key], after[key]), key


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({"unet.r": RANK, "unet.lora_alpha": 6}, 2.0),
        ({"unet.r": RANK, "unet.lora_alpha": 6, "unet.use_rslora": True}, 6 / RANK**0.5),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {"attn2.to_q": 12}}, 4.0),
        ({"text_encoder.lora_alpha": 6}, 1.0),
    ],
)
def test_alpha_in_the_metadata_as_diffusers_saves_it(
    pipeline: Pipeline, tmp_path: Path, metadata: dict, scale: float
) -> None:
    part, name = layers_of(pipeline)["query"]
    down, up = thin(pipeline, part, name)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(
        dict(zip(peft(part, name), (down, up), strict=False)), path, {"lora_adapter_metadata": json.dumps(metadata)}
    )
    weight = open_pipeline("default", CPU, [str(tmp_path)]).unet.get_submodule(name).weight
    torch.testing.assert_close(weight, pipeline.unet.get_submodule(name).weight + scale * up @ down)


def test_pictures_change_and_the_run_is_another(pipeline: Pipeline, prompts: Path, tmp_path: Path) -> None:
    down, up = thin(pipeline, *layers_of(pipeline)["conv"])
    tensors = dict(zip(peft(*layers_of(pipeline)["conv"]), (down, 20 * up), strict=False))
    save_file(tensors, tmp_path / "a.safetensors")
    few = {"prompts": prompts, "num_images_per_prompt": 1, "num_inference_steps": 1}
    stablerep.generate(out=tmp_path / "plain", **few)
    stablerep.generate(out=tmp_path / "fused", lora=f"{tmp_path}/a.safetensors:1", **few)
    assert (tmp_path / "plain/000000.tar").read_bytes() != (tmp_path / "fused/000000.tar").read_bytes()
    with pytest.raises(UserError, match="--model"):
        stablerep.generate(out=tmp_path / "fused", lora=[f"{tmp_path}/a.safetensors:0.9"], **few)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "is empty"),
        ({"unet.nowhere.lora_A.weight": 4, "unet.nowhere.lora_B.weight": 4}, "its unet has no layer for unet.nowhere"),
        ({"text_encoder_2.x.lora_A.weight": 4}, "text_encoder_2.x.lora_A.weight is for none of its parts"),
        ({"QUERY.lora_A.weight": 4}, "has no other half"),
        ({"QUERY.lora_A.weight": 4, "QUERY.lora_B.weight": 4}, "is for a layer of 4 x 4 weights, and unet"),
        ({"QUERY.lora_A.weight": 4, "QUERY.lora_magnitude_vector": 4}, "lora_magnitude_vector is no weight of a plain"),
        ({"QUERY.weight": 4}, "is no weight of a plain LoRA"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    pipeline: Pipeline, tmp_path: Path, tensors: dict[str, int], message: str
) -> None:
    part, name = layers_of(pipeline)["query"]
    good = dict(zip(peft(*layers_of(pipeline)["conv"]), thin(pipeline, *layers_of(pipeline)["conv"]), strict=False))
    bad = {key.replace("QUERY", f"{part}.{name}"): torch.ones(size, size) for key, size in tensors.items()}
    save_file(good | bad if bad else {}, tmp_path / "a.safetensors")
    before = {key: value.clone() for key, value in pipeline.unet.state_dict().items()}
    with pytest.raises(UserError, match=message) as error:
        fuse_lora({"unet": pipeline.unet}, str(tmp_path / "a.safetensors"))
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[key], value) for key, value in pipeline.unet.state_dict().items())


def test_paths_and_weights(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b:2.safetensors", "c.bin", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"not one")
    assert parse_lora(f"{tmp_path}/a.safetensors") == (tmp_path / "a.safetensors", 1.0)
    assert parse_lora(f"{tmp_path}/a.safetensors:-0.5") == (tmp_path / "a.safetensors", -0.5)
    assert parse_lora(f"{tmp_path}/b:2.safetensors") == (tmp_path / "b:2.safetensors", 1.0)
    (tmp_path / "empty").mkdir()
    for text, message in (
        (f"{tmp_path}/a.safetensors:much", "'much' after the colon is no weight"),
        (f"{tmp_path}/a.safetensors:nan", "is no weight"),
        (f"{tmp_path}/none.safetensors:1", "none.safetensors does not exist"),
        (f"{tmp_path}/c.bin", "pickles are not opened"),
        (f"{tmp_path}/empty", "holds no safetensors file"),
        (f"{tmp_path}", "the folder holds a.safetensors, b.*; name the one file"),
    ):
        with pytest.raises(UserError, match=message):
            parse_lora(text)
    with pytest.raises(UserError, match="cannot be read"):
        fuse_lora({}, f"{tmp_path}/bad.safetensors")
