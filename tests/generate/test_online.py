"""What the trainer is handed are the pictures that stablerep-gen would store."""

from __future__ import annotations

import dataclasses
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import stablerep
from stablerep.config import UserError
from stablerep.engines.torch import TorchEngine
from stablerep.generate import screen
from stablerep.generate.config import GenerateConfig
from stablerep.generate.online import open_online, opener, paint_prompts
from stablerep.generate.painter import BatchSize, Painter
from stablerep.generate.pipeline import Pipeline
from stablerep.generate.schedulers import make_schedule
from stablerep.generate.screen import BatchQuality
from stablerep.prompts import read_prompts
from stablerep.shards import read_pictures

CPU = torch.device("cpu")
FEW: dict[str, Any] = {"num_inference_steps": 2, "scheduler": "dpmsolver++", "device": "cpu"}


def config(prompts: Path, **fields: Any) -> GenerateConfig:
    return GenerateConfig(**({"prompts": prompts, "out": Path("nowhere"), "num_images_per_prompt": 2} | FEW | fields))


def test_pictures_are_those_of_the_shards(tmp_path: Path) -> None:
    prompts = tmp_path / "p.csv"
    prompts.write_text("prompt,guidance_scale,negative_prompt,seed\na bag,,,\na coat,4,a dress,\na shirt,,,9\n")
    stored = {"num_images_per_prompt": 6, "image_format": "png", "screen": "keep", "image_size": 24}
    stablerep.generate(prompts=prompts, out=tmp_path / "shards", **FEW, **stored)
    expected = {
        (row["prompt_id"], row["index"]): np.asarray(Image.open(io.BytesIO(data)))
        for row, data in read_pictures(tmp_path / "shards")
    }
    assert len(expected) == 18

    generator = open_online(config(prompts, image_size=24, batch_size=3), CPU)
    assert list(generator.prompt_ids) == [0, 1, 2] and generator.prompts_per_batch == 1
    pixels, good = generator.paint([2, 0, 1], [1, 0, 2])
    assert pixels.shape == (3, 2, 24, 24, 3) and good.all()
    for row, (prompt_id, round_) in enumerate([(2, 1), (0, 0), (1, 2)]):
        for i in range(2):
            theirs = expected[prompt_id, 2 * round_ + i].astype(int)
            assert np.abs(pixels[row, i].numpy() - theirs).max() <= 1  # another batch rounds otherwise


def test_captions_that_say_the_same_share_a_label(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a bag\n\nA  bag.\na coat\n\na bag\n")
    assert open_online(config(tmp_path / "p.txt"), CPU).labels == {2: 0, 5: 0}


@dataclasses.dataclass(frozen=True)
class Spoiled(TorchEngine):
    """Decodes the first picture of a batch to NaN and the second to a grey."""

    def decode(self, latents: Tensor) -> Tensor:
        images = super().decode(latents).clone()
        images[0], images[1] = float("nan"), 0.3
        return images


@pytest.mark.parametrize(("policy", "flat_is_good"), [("keep", True), ("flag", False), ("drop", False)])
def test_what_shows_nothing_is_not_good(prompts: Path, pipeline: Pipeline, policy: str, flat_is_good: bool) -> None:
    asked = config(prompts, num_images_per_prompt=3, screen=policy)
    schedule = make_schedule(asked.scheduler, pipeline.scheduler_config, asked.num_inference_steps, CPU)
    painter = Painter(pipeline, Spoiled(pipeline), schedule, asked, BatchSize(asked.batch_size))
    read = read_prompts(prompts)
    _, good = paint_prompts(painter, [read[0], read[3]], [0, 0])
    assert good.tolist() == [[False, flat_is_good, True], [True, True, True]]


def test_verdicts_are_those_of_the_shards(prompts: Path) -> None:
    random = np.random.default_rng(0)
    values = {
        "contrast": random.uniform(0, 8, 300),
        "clip_score": random.uniform(0, 60, 300),
        "nsfw_score": random.random(300),
    }
    for name in ("clip_score", "nsfw_score"):
        values[name][random.random(300) < 0.2] = np.nan
    scores = {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
    quality = BatchQuality(finite=torch.arange(300) % 5 > 0, phash=torch.arange(300), **scores)
    limits = {"clip_score_model": "m", "clip_score_below": 20.0, "nsfw_model": "n", "nsfw_above": 0.7}
    for each in ({}, limits):
        asked = config(prompts, **each)
        limits = screen.limits_of(asked)
        expected = [not screen.judge([picture], limits)[0] for picture in quality.split()]
        assert 20 < sum(expected) < 280
        assert screen.are_good(quality, limits).tolist() == expected


def test_rows_without_text_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a bag"}\n{"prompt": ["a coat"]}\n"a shirt"\n')
    with caplog.at_level(logging.WARNING):
        generator = open_online(config(tmp_path / "p.jsonl"), CPU)
    assert list(generator.prompt_ids) == [0, 2]
    assert "1 of 3 rows hold no text" in caplog.text


def test_identity_changes_with_pictures_and_not_with_files(prompts: Path) -> None:
    def identity(**fields: Any) -> dict[str, Any]:
        return dict(open_online(config(prompts, **fields), CPU).identity)

    usual = identity()
    assert usual == identity(out=Path("elsewhere"), image_format="png", prompts_per_shard=7, device="cuda:3")
    assert all(usual != identity(**{name: value}) for name, value in {"seed": 1, "num_inference_steps": 3}.items())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, r"--online .*gen\.yaml does not exist; give a YAML file"),
        ("prompts: p.txt\nguidance_scale: [1, 2]\n", r"takes one guidance_scale, got \(1\.0, 2\.0\)"),
        ("prompts: p.txt\ndry_run: true\n", r"sets dry_run; leave it out"),
        ("promts: p.txt\n", r"did you mean prompts"),
        ("prompts: p.txt\nscheduler: dimm\n", r"did you mean ddim"),
    ],
)
def test_a_file_that_makes_no_run_is_refused_in_one_line(tmp_path: Path, text: str | None, match: str) -> None:
    path = tmp_path / "gen.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=match) as error:
        opener(f"{path}:2", tmp_path)
    assert "\n" not in str(error.value)
