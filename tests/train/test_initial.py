"""What a run begins with: random weights, pretrained ones, those of another run."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stablerep import config as configs
from stablerep.config import UserError
from stablerep.models import InputTransform, create_encoder, load_encoder, save_exported
from stablerep.train import checkpoint, loop
from stablerep.train.config import TrainConfig
from stablerep.train.initial import load_initial
from tests.data.pictures import write_folder
from tests.hub_cache import in_cache

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"objective": "simclr", "arch": "test_resnet", "image_size": 32, "batch_size": 4, "steps": 1}
TINY |= {"head_hidden": 8, "head_out": 4, "device": "cpu"}


def config(out: Path, **fields: Any) -> TrainConfig:
    return configs.from_fields(TrainConfig, {"data": (str(out.parent / "photos"),), "out": out} | TINY | fields)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_folder(tmp_path / "photos", 4)
    return tmp_path / "out"


def test_pretrained_weights_are_in_the_export_s_record(out: Path, no_network: Path) -> None:
    model = in_cache(no_network, "test_resnet.r160_in1k")
    asked = config(out, pretrained=True, base_lr=1e-9)
    exported = loop.train(asked)
    assert json.loads((exported / "config.json").read_text())["initialized_from"] == "test_resnet.r160_in1k"
    encoder, transform = load_encoder(exported)
    assert transform == InputTransform(32, (0.5,) * 3, (0.5,) * 3)  # as those weights know pictures
    assert torch.allclose(encoder.state_dict()["conv1.0.weight"], model.state_dict()["conv1.0.weight"], atol=1e-6)
    shutil.rmtree(exported)
    shutil.rmtree(no_network)
    assert load_encoder(loop.train(asked))[1] == transform  # a resumed run needs them no more


def test_without_a_network_no_folder_is_left_behind(out: Path, no_network: Path) -> None:
    with pytest.raises(UserError, match=r"--pretrained: test_resnet.r160_in1k: its weights are not"):
        loop.train(config(out, pretrained=True))
    assert not out.exists()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"arch": "test_resnet.r160_in1k"}, "add --pretrained to begin with them, or give --arch test_resnet to"),
        ({"arch": "test_resnet.r160_in1k", "init": "x"}, "and --init x others; give --arch test_resnet"),
        ({"init": "test_resnett"}, "--init test_resnett is no file, no folder and no model of timm"),
    ],
)
def test_mistakes_name_the_flag(out: Path, fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        loop.train(config(out, **fields))
    assert not out.exists()
    with pytest.raises(UserError, match="--pretrained and --init x both say"):
        config(out, pretrained=True, init="x")


def test_a_run_begun_when_a_tag_meant_nothing_goes_on(out: Path) -> None:
    asked = config(out, arch="test_resnet.r160_in1k")
    out.mkdir()
    configs.save(asked, out / "config.yaml")
    assert json.loads((loop.train(asked) / "config.json").read_text())["initialized_from"] is None


def test_a_run_goes_on_from_another_and_takes_its_head_where_it_fits(out: Path, caplog) -> None:
    caplog.set_level(logging.INFO, "stablerep")
    exported = loop.train(config(out))
    assert json.loads((exported / "config.json").read_text())["initialized_from"] is None
    with pytest.raises(UserError, match=r"its --steps is 1, not 2; it has ended; .* another --out and --init \S+out$"):
        loop.train(config(out, steps=2))

    trained = checkpoint.load_newest(out / "checkpoints", CPU)
    assert trained
    model, _ = loop.build(config(out, seed=5), CPU)
    begun = load_initial(config(out.parent / "next", init=str(out)), model)
    assert begun.initialized_from == str(out) and "the head goes on from" in caplog.text
    assert all(torch.equal(value, trained["model"][name]) for name, value in model.state_dict().items())

    other = config(out.parent / "next", init=str(out), head_out=5)
    load_initial(other, loop.build(other, CPU)[0])
    assert "the head starts new" in caplog.text
    with pytest.raises(UserError, match="is a test_resnet, not --arch test_vit; give --arch test_resnet"):
        load_initial(config(out, arch="test_vit", init=str(out)), loop.build(config(out, arch="test_vit"), CPU)[0])


def test_position_embeddings_are_brought_to_the_new_size(out: Path) -> None:
    encoder = create_encoder("test_vit", 64)
    save_exported(encoder, "test_vit", InputTransform(64), out)
    asked = config(out.parent / "next", arch="test_vit", init=str(out))
    model, _ = loop.build(asked, CPU)
    load_initial(asked, model)
    assert torch.equal(model.get_submodule("encoder").state_dict()["cls_token"], encoder.state_dict()["cls_token"])
