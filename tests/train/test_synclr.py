"""A run with a teacher, masked patches and small crops, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from stablerep import config as configs
from stablerep.config import UserError
from stablerep.models import create_encoder, load_encoder
from stablerep.train.config import TrainConfig
from stablerep.train.loop import build, train
from tests.data.pictures import write_shards
from tests.train.test_loop import Interrupted, final_state, interrupt_before, lines, tensors

WHOLE = {"ema_teacher": 0.9, "ibot_weight": 1.0, "ibot_prototypes": 16, "local_crops": 1, "local_crop_size": 16}


def config_of(shards: Path, out: Path, **fields: Any) -> TrainConfig:
    tiny: dict[str, Any] = {"arch": "test_vit", "image_size": 32, "batch_size": 12, "views_per_prompt": 3, "steps": 6}
    tiny |= {"head_hidden": 16, "head_out": 8, "checkpoint_every": 3, "log_every": 3, "base_lr": 0.02, "device": "cpu"}
    return configs.from_fields(TrainConfig, {"data": (str(shards),), "out": out} | tiny | WHOLE | fields)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", prompts=10, per_prompt=4)


def test_a_resumed_run_has_the_same_teacher_and_plain_timm_opens_the_student(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = train(config_of(shards, tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_before(5, patch)
        train(config_of(shards, tmp_path / "cut"))
    train(config_of(shards, tmp_path / "cut"))
    states = [final_state(tmp_path / name) for name in ("cut", "whole")]
    assert all(torch.equal(a, b) for a, b in zip(*map(tensors, states), strict=True))
    model = states[1]["model"]
    assert not torch.equal(model["teacher.encoder.patch_embed.proj.weight"], model["encoder.patch_embed.proj.weight"])
    assert all(math.isfinite(line["loss"]) for line in lines(tmp_path / "whole"))
    plain = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(plain(images), load_encoder(exported)[0](images))


def test_the_teacher_begins_as_the_student_and_follows_as_the_momentum_says(shards: Path, tmp_path: Path) -> None:
    model: Any = build(config_of(shards, tmp_path), torch.device("cpu"))[0]
    student, teacher = model.head.layers[0].weight, model.teacher["head"].layers[0].weight
    with torch.no_grad():
        student.fill_(1.0)  # as pretrained weights come after the teacher was made
    model.update_teacher(None)
    assert torch.equal(teacher, student) and not teacher.requires_grad
    with torch.no_grad():
        student.fill_(2.0)
    model.update_teacher(0.0)
    assert teacher.mean().item() == pytest.approx(1.1)  # 0.9 of the old
    model.update_teacher(0.5)
    assert teacher.mean().item() == pytest.approx(1.1 + 0.05 * 0.9)  # half way, 0.95 of it
    model.update_teacher(1.0)
    assert teacher.mean().item() == pytest.approx(1.1 + 0.05 * 0.9)


def test_an_encoder_for_small_crops_gives_the_same_for_large_ones() -> None:
    torch.manual_seed(0)
    plain = create_encoder("test_vit", 64)
    both = create_encoder("test_vit", 64, 32)
    both.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(both(images), plain(images))
    assert both(images[:, :, :32, :32]).shape == (2, plain.num_features)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"ema_teacher": 0.0}, r"--ibot-weight 1 needs a teacher; add --ema-teacher 0\.994"),
        ({"ema_teacher": 1.0}, r"--ema-teacher must be from 0 to below 1"),
        ({"objective": "simclr"}, r"--ema-teacher, --local-crops and --koleo-weight go with --objective stablerep"),
        ({"koleo_weight": -1.0}, r"--koleo-weight must be at least 0, got -1\.0"),
        ({"koleo_weight": 0.1, "micro_batch_size": 4}, r"--micro-batch-size 4 would train .*otherwise, as small crops"),
        ({"online": "gen.yaml"}, r"do not go with --online; paint shards for that"),
        ({"arch": "test_resnet"}, r"--ibot-weight 1 masks patches, which --arch test_resnet has none of"),
        ({"local_crop_size": 24}, r"--arch test_vit takes no --local-crop-size 24: .*choose a multiple of 16"),
    ],
)
def test_what_cannot_be_is_one_line(shards: Path, tmp_path: Path, fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        build(config_of(shards, tmp_path, **fields), torch.device("cpu"))
    assert "\n" not in str(error.value)
