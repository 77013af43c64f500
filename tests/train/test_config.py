"""What a config refuses, and what it works out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stablerep import config as configs
from stablerep.config import UserError
from stablerep.flag_help import help_text
from stablerep.train.config import PRECISIONS, TrainConfig
from stablerep.train.loop import train
from tests.data.pictures import write_shards


def config(**fields: Any) -> TrainConfig:
    return configs.from_fields(TrainConfig, {"data": ("shards",), "out": Path("runs/a")} | fields)


def test_the_learning_rate_follows_the_batch() -> None:
    assert config(batch_size=8256).peak_lr == pytest.approx(3.2e-3, rel=0.01)  # the paper's


def test_simclr_takes_two_views_whatever_the_flag_says() -> None:
    assert config(objective="simclr", batch_size=10).views == 2
    assert config().views == 6


def test_supcon_takes_two_views_unless_the_flag_says_another_number() -> None:
    assert config(objective="supcon").views == config(objective="supcon").views_per_prompt == 2
    assert [config(objective="supcon", views_per_prompt=views).views for views in (1, 3)] == [1, 3]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"data": ()}, "--data is missing"),
        ({"objective": "simcrl"}, "--objective 'simcrl' is unknown; did you mean simclr"),
        ({"precision": "fp16"}, "--precision 'fp16' is unknown"),
        ({"batch_size": 100}, "--batch-size 100 is no multiple of --views-per-prompt 6; use 96 or 102"),
        ({"objective": "simclr", "batch_size": 101}, "the 2 views of simclr; use 100 or 102"),
        ({"objective": "supcon", "batch_size": 101}, "--views-per-prompt 2; use 100 or 102"),
        ({"objective": "supcon", "views_per_prompt": 0}, "--views-per-prompt must be at least 1, got 0"),
        (
            {"online": "gen.yaml", "objective": "stablerep+"},
            r"--online goes with --objective stablerep, not stablerep\+",
        ),
        ({"text_width": 100, "text_heads": 8}, "--text-width 100 is no multiple of --text-heads 8; use 96"),
        ({"context_length": 2}, "--context-length must be at least 3"),
        ({"views_per_prompt": 1}, "--views-per-prompt must be at least 2"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"warmup": 1.0}, "--warmup must be from 0 to below 1"),
        ({"jitter": 2.0}, "--jitter must be a probability"),
    ],
)
def test_wrong_values_name_the_flag_and_the_mend(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        config(**fields)


def test_flags_and_yaml_give_the_same_config(tmp_path: Path) -> None:
    flags = ["--data", "a:2", "--data", "b", "--out", str(tmp_path), "--min-scale", "0.2", "--precision", PRECISIONS[2]]
    parsed = configs.parse(TrainConfig, flags, "stablerep-train")
    assert parsed.data == ("a:2", "b") and parsed.augment.min_scale == 0.2
    configs.save(parsed, tmp_path / "config.yaml")
    assert configs.to_dict(configs.load(TrainConfig, tmp_path / "config.yaml")) == configs.to_dict(parsed)


def test_what_only_the_run_can_see_is_one_line_too(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", prompts=2, per_prompt=2)
    for number, (fields, match) in enumerate(
        [
            ({"data": (str(tmp_path / "none"),)}, "does not exist"),
            ({"data": (str(shards),)}, r"fewer than --views-per-prompt 6"),
            ({"data": (str(shards),), "views_per_prompt": 2, "arch": "vit_bas_patch16_224"}, "did you mean vit_base"),
            ({"device": "cuda:77"}, "--device cuda:77 is not on this machine"),
            ({"device": "gpu"}, "--device 'gpu' is unknown"),
        ]
    ):
        with pytest.raises(UserError, match=match) as error:
            train(config(out=tmp_path / f"run{number}", **({"device": "cpu"} | fields)))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", configs.presets(TrainConfig))
def test_presets_are_taken_by_name_and_flags_win(name: str, tmp_path: Path) -> None:
    argv = ["--data", "a", "--out", str(tmp_path), "--config", name, "--seed", "3"]
    preset = configs.parse(TrainConfig, argv, "stablerep-train")
    written = yaml.safe_load(configs.presets(TrainConfig)[name].read_text())
    assert {field: configs.to_dict(preset)[field] for field in written} == written
    assert preset.seed == 3 and preset.batch_size % preset.views == 0


def test_the_presets_of_the_paper_have_its_learning_rate(tmp_path: Path) -> None:
    argv = ["--data", "a", "--out", str(tmp_path), "--config=stablerep-cc12m"]
    assert configs.parse(TrainConfig, argv, "stablerep-train").peak_lr == pytest.approx(3.2e-3, rel=0.01)
    told = " ".join(help_text(TrainConfig, "stablerep-train", everything=False).split())
    assert ", ".join(configs.presets(TrainConfig)) in told
    with pytest.raises(UserError, match="--config 'stablerep-cc3m' is unknown; did you mean stablerep-cc12m"):
        configs.parse(TrainConfig, [*argv[:-1], "--config", "stablerep-cc3m"], "stablerep-train")
    with pytest.raises(UserError, match=r"--config cc12m\.yaml cannot be read"):
        configs.parse(TrainConfig, [*argv[:-1], "--config", "cc12m.yaml"], "stablerep-train")
