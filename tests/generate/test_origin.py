"""What a sample's JSON says of how its pictures were made: enough to paint them again. Of older folders, nothing."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

import stablerep
from stablerep import shards
from stablerep.generate.config import GenerateConfig
from stablerep.generate.identity import _model_name
from stablerep.generate.verify import verify
from stablerep.generate.worker import Block, RunSpec, Worker
from stablerep.prompts import Prompt
from tests.generate.folders import digests

FEW = {"num_images_per_prompt": 2, "num_inference_steps": 2, "prompts_per_shard": 2, "scheduler": "dpmsolver++"}


def samples(out: Path) -> list[tuple[dict[str, Any], list[bytes]]]:
    """By prompt, the JSON and the pictures."""
    found: dict[str, list[bytes]] = {}
    for tar_path in sorted(out.glob("*.tar")):
        with tarfile.open(tar_path) as tar:
            for member in tar:
                found.setdefault(member.name.split(".")[0], []).append(tar.extractfile(member).read())
    return [(json.loads(about), pictures) for about, *pictures in found.values()]


def paint_again(about: dict[str, Any]) -> list[bytes]:
    """The pictures of a sample, from its JSON alone and the model that it names."""
    known = set(GenerateConfig.__dataclass_fields__)
    fields = {name: value for name, value in about.items() if name in known and name != "prompt"}
    config = GenerateConfig(prompts=Path(), out="", num_images_per_prompt=about["num_images"], **fields)
    worker = Worker(config, torch.device(config.device))
    assert worker.pipeline.weights_hash == about["model_hash"]
    worker.begin(RunSpec(config, guided=about["guidance_scale"] != 1))
    block = Block(0, [Prompt(about["prompt_id"], about["prompt"])])
    [sample] = worker.encode(block, worker.paint(block, lambda painted: None))
    return [picture.data for picture in sample.pictures]


@pytest.mark.parametrize("changes", [{}, {"image_format": "png", "image_size": 24, "seed": 5, "guidance_scale": 3.5}])
def test_a_sample_can_be_painted_again_from_its_json(prompts: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    stablerep.generate(prompts=prompts, out=tmp_path / "out", device="cpu", negative_prompt="a shirt", **FEW | changes)
    about, pictures = samples(tmp_path / "out")[3]
    assert about["prompt_id"] == 3 and about["model"] == "default" and about["stablerep"] == stablerep.__version__
    assert paint_again(about) == pictures
    assert len(json.dumps(about)) < 520


def without_origin(out: Path) -> None:
    """Make a folder one of a version whose samples did not say how they were made."""
    dataset = json.loads((out / "dataset.json").read_text())
    del dataset["run"]["origin"]
    (out / "dataset.json").write_text(json.dumps(dataset, indent=1))
    (out / "README.md").unlink()


@pytest.mark.parametrize("lost", [False, True])
def test_a_folder_of_an_earlier_version_goes_on_as_it_began(prompts: Path, tmp_path: Path, lost: bool) -> None:
    out = tmp_path / "out"
    stablerep.generate(prompts=prompts, out=out, **FEW)
    for path in out.glob("0*"):
        path.unlink()
    without_origin(out)
    stablerep.generate(prompts=prompts, out=out, **FEW)
    assert [sorted(about) for about, _ in samples(out)] == [
        ["guidance_scale", "negative_prompt", "num_images", "prompt", "prompt_id", "seed"]
    ] * 4
    assert not verify(out).problems
    whole = digests(out)
    for path in out.glob("000001*"):
        path.unlink()
    if lost:
        (out / "dataset.json").unlink()
    stablerep.generate(prompts=prompts, out=out, **FEW)
    assert {name: digest for name, digest in digests(out).items() if name[0] == "0"} == {
        name: digest for name, digest in whole.items() if name[0] == "0"
    }


def test_a_lost_dataset_json_comes_back_with_what_the_samples_say(prompts: Path, tmp_path: Path) -> None:
    out, one_each = tmp_path / "out", FEW | {"prompts_per_shard": 1}
    stablerep.generate(prompts=prompts, out=out, **one_each)
    whole = digests(out)
    (out / "dataset.json").unlink()
    (out / "000002_stats.json").unlink()
    stablerep.generate(prompts=prompts, out=out, **one_each)
    assert digests(out) == whole
    assert shards.first_sample(out)["stablerep"] == stablerep.__version__


@pytest.mark.parametrize(
    ("model", "name"),
    [("default", "default"), ("owner/name", "owner/name"), ("/home/me/sd15", "sd15"), ("../models/sd15", "sd15")],
)
def test_a_model_is_named_without_the_path_of_a_machine(model: str, name: str) -> None:
    assert _model_name(model) == name
