"""Which encoder writes a folder: decided when it is begun, and never another afterwards."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

import stablerep
from stablerep import shards
from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.generate.encode import decide_encoder
from stablerep.generate.identity import as_begun

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FEW = {"num_images_per_prompt": 1, "num_inference_steps": 1, "batch_size": 4}
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def config(out: Path, **fields) -> GenerateConfig:
    return GenerateConfig(prompts=Path("p.txt"), out=out, **fields)


def decide(given: GenerateConfig, device: torch.device) -> GenerateConfig:
    return decide_encoder(as_begun(given), device)


def begin(out: Path, **fields) -> None:
    shards.start_dataset(out, config(out, **fields).picture_fields())


def test_the_encoder_counts_only_where_it_is_not_pil(tmp_path: Path) -> None:
    fields = [config(tmp_path, jpeg_encoder=name).picture_fields() for name in ("auto", "pil", "nvimgcodec")]
    assert fields[0] == fields[1]
    assert fields[2] == fields[1] | {"jpeg_encoder": "nvimgcodec"}


def test_on_the_cpu_pil_encodes_and_a_folder_that_says_nothing_goes_on(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stablerep.generate(prompts=prompts, out=out, device="cpu", **FEW)
    dataset = json.loads((out / "dataset.json").read_text())
    assert "jpeg_encoder" not in dataset["config"]
    assert dataset["run"]["flags"]["jpeg_encoder"] == "pil"
    assert stablerep.generate(prompts=prompts, out=out, device="cpu", jpeg_encoder="pil", **FEW).images_made == 0
    assert decide(config(out), CUDA).jpeg_encoder == "pil"  # on a GPU too


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_other_formats_are_pils(tmp_path: Path, image_format: str, device: torch.device) -> None:
    assert decide(config(tmp_path, image_format=image_format), device).jpeg_encoder == "pil"
    with pytest.raises(UserError, match=f"--jpeg-encoder nvimgcodec cannot run: it writes no {image_format}"):
        decide(config(tmp_path, image_format=image_format, jpeg_encoder="nvimgcodec"), device)


def test_nvimgcodec_by_name_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--jpeg-encoder nvimgcodec cannot run: it needs a CUDA GPU"):
        decide(config(tmp_path, jpeg_encoder="nvimgcodec"), CPU)


def test_a_folder_begun_on_a_gpu_is_not_gone_on_with_by_pil(tmp_path: Path) -> None:
    begin(tmp_path, jpeg_encoder="nvimgcodec")
    with pytest.raises(UserError, match="--jpeg-encoder nvimgcodec cannot run: it needs a CUDA GPU; pil, for another"):
        decide(config(tmp_path), CPU)
    with pytest.raises(UserError, match="--jpeg-encoder is 'nvimgcodec', not the default"):
        begin(tmp_path, jpeg_encoder="pil")


@without_gpu
def test_what_keeps_nvimgcodec_from_a_gpu_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A CUDA device that is not there: nvImageCodec finds no driver."""
    with caplog.at_level(logging.INFO, "stablerep.generate"):
        for _ in range(2):
            assert decide(config(tmp_path), CUDA).jpeg_encoder == "pil"
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("JPEGs are encoded on the host: ") and "pip install 'stablerep[jpeg]'" in said
    with pytest.raises(UserError, match="--jpeg-encoder nvimgcodec cannot run: "):
        decide(config(tmp_path, jpeg_encoder="nvimgcodec"), CUDA)
