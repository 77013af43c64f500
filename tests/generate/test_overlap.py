"""Painting goes on while what was painted is encoded."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stablerep
from stablerep.generate import painter as batch
from stablerep.generate.encode import Encoded, ImageCodec
from stablerep.generate.overlap import Overlap
from stablerep.generate.painter import Painter
from tests.generate.folders import digests

pytest.importorskip("nvidia.nvimgcodec")
CPU = torch.device("cpu")


def test_a_batch_is_launched_before_the_one_before_it_is_there() -> None:
    release, order = threading.Event(), []

    def bring(outputs: dict[str, torch.Tensor]) -> int:
        assert release.wait(10)
        order.append(f"brought {int(outputs['x'])}")
        return int(outputs["x"])

    overlap = Overlap(CPU, bring)
    waiting = []
    for number in range(2):
        waiting.append(overlap(lambda number=number: {"x": torch.tensor(number)}))
        order.append(f"launched {number}")
    release.set()
    assert [each.result(10) for each in waiting] == [0, 1]
    assert order == ["launched 0", "launched 1", "brought 0", "brought 1"]


def test_what_fails_while_bringing_surfaces_where_it_is_waited_for() -> None:
    def bring(outputs: dict[str, torch.Tensor]) -> None:
        raise RuntimeError("nvImageCodec could not encode a picture")

    with pytest.raises(RuntimeError, match="could not encode"):
        Overlap(CPU, bring)(dict).result(10)


def test_a_run_whose_pictures_come_down_as_files(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU, with nvImageCodec's encoder for the CPU, which is the one that PIL has too."""
    fields = {"num_images_per_prompt": 3, "num_inference_steps": 2, "prompts_per_shard": 2, "batch_size": 4}
    stablerep.generate(prompts=prompts, out=tmp_path / "host", device="cpu", **fields)
    brought: list[int] = []
    launched: list[int] = []

    def bring(outputs: dict[str, torch.Tensor]) -> batch.Brought:
        brought.append(len(launched))
        return batch.bring(outputs, ImageCodec(CPU))

    overlap = Overlap(CPU, bring)

    def counted(paint_batch):
        launched.append(1)
        return overlap(paint_batch)

    monkeypatch.setattr(Painter, "overlap", property(lambda self: counted))
    summary = stablerep.generate(prompts=prompts, out=tmp_path / "files", device="cpu", **fields)
    assert summary.images == 12 and len(brought) == len(launched) == 4
    assert digests(tmp_path / "files") == digests(tmp_path / "host")


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
        assert file == Encoded(theirs.getvalue(), height, width)  # libjpeg-turbo both
