"""LoRA files in every spelling, against the sum they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from safetensors.torch import save_file
from torch import Tensor

import stablerep
from stablerep.config import UserError
from stablerep.generate.lora import fuse_lora, parse_lora
from stablerep.generate.pipeline import Pipeline, open_pipeline
from tests.generate import compvis, tiny_models

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
        ({"QUERY.lora_A.weight": 4, "QUERY.lora_magnitude_vector": 4}, "has no other half"),
        ({"QUERY.hada_w1_a": 4, "QUERY.hada_w1_b": 4, "QUERY.hada_w2_a": 4}, "has no other half"),
        ({f"QUERY.hada_{role}": 4 for role in ("w1_a", "w1_b", "w2_a", "w2_b")}, "is for a layer of 4 x 4 weights"),
        ({f"QUERY.hada_{role}": 4 for role in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")}, "has no other half"),
        ({"QUERY.lokr_w1": 4}, "is no weight of a LoRA, LoHa or DoRA"),
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


def test_the_names_of_sgm(tmp_path: Path) -> None:
    unet = tiny_models.build("sdxl", unet={"layers_per_block": 2}).unet
    layers = {
        name: layer for name, layer in unet.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }
    original = compvis.unet_name(unet)
    tensors, expected = {}, {}
    for number, (name, layer) in enumerate(layers.items()):
        down = torch.full((1, *layer.weight.shape[1:]), 0.01 * (number + 1))
        up = torch.ones(len(layer.weight), 1, *[1] * (layer.weight.ndim - 2))
        stem = "lora_unet_" + original(name).replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1.0)}
        expected[name] = layer.weight + 0.01 * (number + 1)
    assert "lora_unet_input_blocks_4_1_proj_in.alpha" in tensors and "lora_unet_label_emb_0_2.alpha" in tensors
    save_file(tensors, tmp_path / "sgm.safetensors")
    fuse_lora({"unet": unet}, f"{tmp_path}/sgm.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(layers[name].weight, weight)

    # diffusers' converter agrees on what stands in which block
    keys = {key: key for key in tensors if "blocks" in key and key.endswith("lora_down.weight")}
    theirs = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(dict(keys), unet.config)
    assert len(theirs) == len(keys) > 20
    by_sgm = {"lora_unet_" + original(name).replace(".", "_"): name.replace(".", "_") for name in layers}
    for new, sgm in theirs.items():
        if "_transformer_blocks_" in sgm:  # it converts the names within a resnet, and the sides', in another place
            for side, ours in (("input_blocks", "down_blocks"), ("middle_block", "mid_block"), ("output_", "up_")):
                new = new.replace(side, ours)
            assert new == f"lora_unet_{by_sgm[sgm.partition('.')[0]]}.lora_down.weight"


def hadamard(weight: Tensor, *, cores: bool) -> tuple[dict[str, Tensor], Tensor]:
    """The matrices of a LoHa, and what they stand for in float64, element by element."""
    generator = torch.Generator().manual_seed(weight.ndim)
    out, rest = len(weight), weight[0].numel()
    shapes: dict[str, tuple[int, ...]] = {"w1_a": (out, RANK), "w1_b": (RANK, rest)}
    if cores:
        shapes = {"w1_a": (RANK, out), "w1_b": (RANK, weight.shape[1]), "t1": (RANK, RANK, *weight.shape[2:])}
    shapes |= {name.replace("1", "2"): shape for name, shape in shapes.items()}
    part = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    product = torch.ones(weight.shape, dtype=torch.float64)
    for n in (1, 2):
        a, b = part[f"w{n}_a"].double(), part[f"w{n}_b"].double()
        factor = torch.zeros(weight.shape, dtype=torch.float64)
        for i in range(RANK):
            if not cores:
                factor += (a[:, i, None] * b[i]).reshape(weight.shape)
            for j in range(RANK if cores else 0):
                factor += a[i][:, None, None, None] * b[j][:, None, None] * part[f"t{n}"][i, j].double()
        product *= factor
    return part, product


@pytest.mark.parametrize(("layer", "cores"), [("query", False), ("conv", False), ("conv", True)])
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_loha(layer: str, cores: bool, alpha: float | None, pipeline: Pipeline, tmp_path: Path) -> None:
    part, name = layers_of(pipeline)[layer]
    weight = getattr(pipeline, part).get_submodule(name).weight
    matrices, product = hadamard(weight, cores=cores)
    stem = f"lora_unet_{name.replace('.', '_')}"
    tensors = {f"{stem}.hada_{role}": matrix for role, matrix in matrices.items()}
    save_file(tensors | ({} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)}), tmp_path / "a.safetensors")
    fused = open_pipeline("default", CPU, [f"{tmp_path}/a.safetensors:0.5"])
    expected = weight.double() + 0.5 * (1 if alpha is None else alpha / RANK) * product
    got = getattr(fused, part).get_submodule(name).weight
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)
    assert (got - weight).abs().max() > 0.01


@pytest.mark.parametrize("layer", ["query", "conv"])
@pytest.mark.parametrize("spelling", ["peft", "peft_weight", "lycoris", "lycoris_per_input", "lycoris_loha"])
def test_dora(layer: str, spelling: str, pipeline: Pipeline, tmp_path: Path) -> None:
    part, name = layers_of(pipeline)[layer]
    weight = getattr(pipeline, part).get_submodule(name).weight
    down, up = thin(pipeline, part, name)
    kept = 1 if spelling == "lycoris_per_input" else 0
    magnitude = torch.linspace(0.5, 2, weight.shape[kept])
    shape = [1] * weight.ndim
    shape[kept] = len(magnitude)
    stem = f"lora_unet_{name.replace('.', '_')}"
    change = (up.double().flatten(1) @ down.double().flatten(1)).reshape(weight.shape)
    if spelling.startswith("peft"):
        tensors = dict(zip(peft(part, name), (down, up), strict=False))
        key = f"{part}.{name}.lora_magnitude_vector" + ".weight" * (spelling == "peft_weight")
        tensors[key] = magnitude if layer == "query" else magnitude.reshape(shape)
    elif spelling == "lycoris_loha":
        matrices, change = hadamard(weight, cores=False)
        tensors = {f"{stem}.hada_{role}": matrix for role, matrix in matrices.items()}
        tensors[f"{stem}.dora_scale"] = magnitude.reshape(shape)
    else:
        tensors = dict(zip(kohya(part, name), (down, up), strict=False))
        tensors[f"{stem}.dora_scale"] = magnitude.reshape(shape)
    save_file(tensors, tmp_path / "a.safetensors")
    fused = open_pipeline("default", CPU, [f"{tmp_path}/a.safetensors:0.5"])
    changed = weight.double() + 0.5 * change
    got = getattr(fused, part).get_submodule(name).weight.double()
    lengths = got.transpose(0, kept).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, magnitude.double(), rtol=1e-5, atol=0)
    directions = [torch.nn.functional.normalize(each.transpose(0, kept).flatten(1)) for each in (got, changed)]
    torch.testing.assert_close(directions[0], directions[1], rtol=0, atol=1e-6)
