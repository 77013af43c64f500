from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import stablerep
from stablerep import shards
from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.shards import index_shards
from tests.generate.folders import digests

FEW = {"num_images_per_prompt": 2, "num_inference_steps": 2, "prompts_per_shard": 1, "batch_size": 3}


def test_shards_hold_k_pictures_of_every_prompt(prompts: Path, tmp_path: Path) -> None:
    summary = stablerep.generate(prompts=prompts, out=tmp_path / "out", **FEW)
    assert (summary.images, summary.images_made, summary.prompts_empty) == (8, 8, 1)
    index = index_shards(tmp_path / "out")
    assert index.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    row = pq.read_table(tmp_path / "out/000003.parquet").to_pylist()[1]
    assert (row["prompt"], row["index"], row["width"], row["kept"]) == ("a photo of a busy dress", 1, 32, True)


def test_a_second_run_makes_nothing_and_a_lost_shard_comes_back_the_same(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stablerep.generate(prompts=prompts, out=out, **FEW)
    whole = digests(out)
    assert stablerep.generate(prompts=prompts, out=out, **FEW).images_made == 0
    (out / "000001_stats.json").unlink()
    (out / "000002.tar").write_bytes(b"half")
    summary = stablerep.generate(prompts=prompts, out=out, **FEW | {"batch_size": 3})
    assert summary.images_made == 4
    assert digests(out) == whole


def test_long_prompts_are_cut_and_counted(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a photo of a bag\n" + "very " * 100 + "long\n")
    summary = stablerep.generate(prompts=tmp_path / "p.txt", out=tmp_path / "out", **FEW)
    assert (summary.prompts_cut, summary.images) == (1, 4)
    assert "longer than the tokenizer takes" in str(summary)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "torhc"}, "--engine 'torhc' is unknown; did you mean torch"),
        ({"scheduler": "dpm++"}, "--scheduler .* did you mean dpmsolver"),
        ({"num_images_per_prompt": 0}, "--num-images-per-prompt must be at least 1, got 0"),
        ({"guidance_scale": -1.0}, "--guidance-scale"),
        ({"guidance_scale": float("nan")}, "--guidance-scale"),
        ({"image_format": "gif"}, "--image-format"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_a_config_cannot_be_built_wrong(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerateConfig(prompts=Path("p.txt"), out=Path("o"), **changes)


def test_another_run_in_the_folder_refuses(prompts: Path, tmp_path: Path) -> None:
    stablerep.generate(prompts=prompts, out=tmp_path / "out", **FEW)
    before = digests(tmp_path / "out")
    with pytest.raises(UserError, match=r"--guidance-scale is 2.0, not 3.0"):
        stablerep.generate(prompts=prompts, out=tmp_path / "out", guidance_scale=3.0, **FEW)
    prompts.write_text("something else\n")
    with pytest.raises(UserError, match="--prompts"):
        stablerep.generate(prompts=prompts, out=tmp_path / "out", **FEW)
    assert digests(tmp_path / "out") == before


@pytest.mark.parametrize("model", ["nowhere", "."])
def test_a_model_that_is_none(prompts: Path, tmp_path: Path, model: str) -> None:
    with pytest.raises(UserError, match="--model"):
        stablerep.generate(prompts=prompts, out=tmp_path / "out", model=model, **FEW)
    assert not (tmp_path / "out").exists()


def test_the_dtype_makes_another_run_where_it_is_given(prompts: Path, tmp_path: Path) -> None:
    fields = {
        "prompts": prompts,
        "num_images_per_prompt": 1,
        "num_inference_steps": 2,
        "device": "cpu",
        "engine": "torch",
    }
    stablerep.generate(out=tmp_path / "auto", **fields)
    stablerep.generate(out=tmp_path / "bf16", dtype="bf16", image_format="png", **fields)
    stablerep.generate(out=tmp_path / "fp32", dtype="fp32", image_format="png", **fields)
    with pytest.raises(UserError, match=r"its --dtype is the default, not 'bf16'"):
        stablerep.generate(out=tmp_path / "auto", dtype="bf16", **fields)
    half, whole = (
        [np.asarray(Image.open(io.BytesIO(data)), float) for _, data in shards.read_pictures(tmp_path / name)]
        for name in ("bf16", "fp32")
    )
    difference = np.abs(np.stack(half) - np.stack(whole))
    assert 0 < difference.mean() < 4  # grey levels: the same pictures, but for the rounding
