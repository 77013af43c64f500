"""Which encoder writes a folder, decided when it is begun and never another afterwards; what its files are."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stablerep
from stablerep import shards
from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.generate.cuda import StreamOverlap
from stablerep.generate.encode import EncodedPicture, ImageCodec, decide_encoder
from stablerep.generate.identity import resume_choices
from stablerep.generate.painter import HostBatch, PaintedBatch, Painter, download_batch
from tests.generate.folders import digests

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FEW = {"num_images_per_prompt": 1, "num_inference_steps": 1, "batch_size": 4}
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
HAS_NVIMGCODEC = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.nvimgcodec")
with_nvimgcodec = pytest.mark.skipif(not HAS_NVIMGCODEC, reason="nvImageCodec is not installed")


def config(out: Path, **fields) -> GenerateConfig:
    return GenerateConfig(prompts=Path("p.txt"), out=out, **fields)


def decide(given: GenerateConfig, device: torch.device) -> GenerateConfig:
    return decide_encoder(resume_choices(given), device)


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


@with_nvimgcodec
def test_a_run_whose_pictures_come_down_as_files(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU, with nvImageCodec's encoder for the CPU, which is the one that PIL has too."""
    fields = {"num_images_per_prompt": 3, "num_inference_steps": 2, "prompts_per_shard": 2, "batch_size": 4}
    stablerep.generate(prompts=prompts, out=tmp_path / "host", device="cpu", **fields)
    downloaded: list[int] = []
    launched: list[int] = []

    def download(batch: PaintedBatch) -> HostBatch:
        downloaded.append(len(launched))
        return download_batch(batch, ImageCodec(CPU))

    class Counted(StreamOverlap):
        def submit(self, paint):
            launched.append(1)
            return super().submit(paint)

    overlap = Counted(CPU, download)
    monkeypatch.setattr(Painter, "overlap", overlap)
    summary = stablerep.generate(prompts=prompts, out=tmp_path / "files", device="cpu", **fields)
    assert summary.images == 12 and len(downloaded) == len(launched) == 4
    assert digests(tmp_path / "files") == digests(tmp_path / "host")


@with_nvimgcodec
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (63, 127), (200, 256)])
def test_nvimgcodec_writes_what_pil_writes(size: tuple[int, int]) -> None:
    height, width = size
    ramp = torch.linspace(0, 255, width).expand(height, width)
    picture = torch.stack([ramp, 255 - ramp, torch.full_like(ramp, 30)], -1).byte()  # channels that cannot be mixed up
    pictures = torch.stack([picture, picture.flip(1)])
    files = ImageCodec(CPU)(pictures)
    assert [(each.height, each.width) for each in files] == [size] * 2
    for file, pixels in zip(files, pictures, strict=True):
        image = Image.open(io.BytesIO(file.data))
        assert image.size == (width, height) and image.mode == "RGB"
        error = np.asarray(image).astype(float) - pixels.numpy()
        assert 10 * np.log10(255**2 / (error**2).mean()) > 38  # dB
        assert image.layer == [(1, 2, 2, 0), (2, 1, 1, 1), (3, 1, 1, 1)]  # 4:2:0
        theirs = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(theirs, "JPEG", quality=95)
        assert image.quantization == Image.open(theirs).quantization
        assert file == EncodedPicture(theirs.getvalue(), height, width)  # libjpeg-turbo both
