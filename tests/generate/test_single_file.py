"""Models in one file: the same pictures as of the folder with the same weights."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import stablerep
from stablerep.config import UserError
from stablerep.generate.pipeline import open_pipeline
from stablerep.shards import read_pictures
from tests.generate import compvis, tiny_models

CPU = torch.device("cpu")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def save(kind: str, folder: Path) -> Path:
    """A file, and beside it a folder with the configs and the tokenizer of its pipeline, and one with all."""
    built = tiny_models.save(kind, folder / "whole")
    shutil.copytree(folder / "whole", folder / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(compvis.checkpoint(built), folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_same_model_as_of_the_folder(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    file = save(kind, tmp_path)
    ours = open_pipeline(str(file), CPU, dtype=dtype, model_config=str(tmp_path / "configs"))
    theirs = open_pipeline(str(tmp_path / "whole"), CPU, dtype=dtype)
    for part in PARTS:
        mine, yours = getattr(ours, part), getattr(theirs, part)
        assert (mine is None) == (yours is None) == (part == "text_encoder_2" and kind == "sd")
        if mine is not None:
            assert mine.dtype == yours.dtype
            assert mine.state_dict().keys() == yours.state_dict().keys()
            assert all(torch.equal(weight, yours.state_dict()[name]) for name, weight in mine.state_dict().items())
    assert ours.scheduler_config == theirs.scheduler_config
    assert ours.force_zeros_for_empty_prompt == theirs.force_zeros_for_empty_prompt


def test_pictures_are_the_folder_s_and_the_weights_identify_the_run(prompts: Path, tmp_path: Path) -> None:
    file, few = save("sd", tmp_path), {"prompts": prompts, "num_images_per_prompt": 1, "num_inference_steps": 2}
    config = tmp_path / "configs"
    stablerep.generate(out=tmp_path / "one", model=str(file), model_config=str(config), **few)
    stablerep.generate(out=tmp_path / "other", model=str(tmp_path / "whole"), **few)
    pictures = [[data for _, data in read_pictures(tmp_path / name)] for name in ("one", "other")]
    assert pictures[0] == pictures[1] and len(set(pictures[0])) == 4
    weights = load_file(file)
    weights["model.diffusion_model.out.2.bias"] += 1
    save_file(weights, file)
    with pytest.raises(UserError, match="--model"):
        stablerep.generate(out=tmp_path / "one", model=str(file), model_config=str(config), **few)


def refused(model: Path, config: Any = None) -> str:
    with pytest.raises(UserError) as error:
        open_pipeline(str(model), CPU, model_config=None if config is None else str(config))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_open_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file, configs = save("sd", tmp_path), tmp_path / "configs"
    assert refused(tmp_path / "none.safetensors").endswith("none.safetensors: no such file")
    assert f"{configs} is for a --model of one file" in refused(tmp_path / "whole", configs)
    assert "add --model-config FOLDER, a pipeline's folder of its kind" in refused(file)
    assert "HF_HUB_OFFLINE is set" in refused(file)
    assert "no such folder" in refused(file, tmp_path / "nowhere")
    assert "is no pipeline's folder" in refused(file, tmp_path / "whole/unet")
    shutil.rmtree(configs / "tokenizer")
    assert "has no tokenizer/ with its files" in refused(file, configs)
    tiny_models.save("sdxl", tmp_path / "xl")
    assert "do not go together" in refused(file, tmp_path / "xl")
    weights = load_file(file)
    for part, name in (("unet", "model.diffusion_model.out.2.bias"), ("text_encoder", "cond_stage_model.")):
        left = {key: weight for key, weight in weights.items() if not key.startswith(name)}
        save_file(left, tmp_path / "part.safetensors")
        assert re.search(
            rf"of the \d+ weights of a {part} |do not go together",
            refused(tmp_path / "part.safetensors", tmp_path / "whole"),
        )
    save_file({"lora_unet_x.lora_up.weight": torch.ones(1)}, tmp_path / "lora.safetensors")
    assert "is no whole model" in refused(tmp_path / "lora.safetensors", configs)
    file.write_bytes(file.read_bytes()[:999])
    assert "cannot be read" in refused(file, configs)


def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    file = save("sd", tmp_path)
    weights = load_file(file)
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "mine.ckpt")
    message = refused(tmp_path / "mine.ckpt", tmp_path / "configs")
    assert "is a pickle, which could run code; convert it: python -c" in message
    code = message.partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", code], check=True)
    converted = load_file(tmp_path / "mine.safetensors")
    assert converted.keys() == weights.keys() and all(torch.equal(converted[name], weights[name]) for name in weights)
