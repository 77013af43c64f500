"""What a user gets wrong is one line, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stablerep import cli
from stablerep.poc.config import PocConfig
from tests.poc.conftest import CLASSES, write_photos
from tests.test_cli import refused

Tiny = Callable[..., PocConfig]


@pytest.fixture
def argv(tiny: Tiny) -> Callable[..., list[str]]:
    """The flags of a tiny proof of concept; others over them, None leaves one out."""

    def flags(**changes: Any) -> list[str]:
        config = tiny()
        names = ("prompts", "real", "out", "budget_pictures", "num_images_per_prompt", "batch_size", "train")
        values = {name: getattr(config, name) for name in names} | changes
        pairs = ((f"--{name.replace('_', '-')}", value) for name, value in values.items() if value is not None)
        return [
            word for flag, value in pairs for word in (flag, *map(str, value if isinstance(value, tuple) else [value]))
        ]

    return flags


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget_pictures": None}, "--budget-pictures, --budget-seconds or --budget-usd is missing"),
        ({"budget_pictures": 0}, "--budget-pictures must be above 0, got 0"),
        ({"budget_seconds": -1}, "--budget-seconds must be above 0, got -1"),
        ({"budget_usd": 3}, "--budget-usd 3 needs --usd-per-hour"),
        ({"budget_pictures": 3}, "the budget pays for 3 pictures, 0 prompts of 4, too few"),
        ({"prompts": "none.txt"}, "--prompts none.txt does not exist"),
        ({"real": "nowhere"}, "--real nowhere does not exist; give a folder"),
        ({"real": "fashion-mnis"}, "or one of: fashion-mnist"),
        ({"arms": ("synthetic",)}, "--arms lacks real"),
        ({"arms": ("real", "synthetic", "hybird")}, "did you mean hybrid?"),
        ({"real_share": 1.5}, "--real-share must be above 0 and below 1, got 1.5"),
        ({"measure_on": "fashion-mnist"}, "no validation photos to choose the best --real-share"),
        ({"measure_on": "nowhere", "real_share": 0.5}, "--measure-on nowhere: no such folder"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"test_share": 0.7, "validation_share": 0.3}, "leave too few photos to train on"),
        ({"train": "smal-data"}, "did you mean small-data?"),
        ({"generate": "gen.yaml"}, "--generate gen.yaml cannot be read"),
        ({"scheduler": "dddim"}, "did you mean ddim"),
        ({"batch_size": 6}, "--batch-size 6 is no multiple of --views-per-prompt 4"),
    ],
)  # fmt: skip
def test_flags(
    argv: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    said: str,
) -> None:
    assert said in refused(cli.poc, argv(**changes), capsys)
    assert not (tmp_path / "out").exists()


def test_files(argv: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cars.txt").write_text("a red car\n")
    said = refused(cli.poc, argv(prompts=tmp_path / "cars.txt"), capsys)
    assert "none of 1 prompts names a class of the real photos (bag, sneaker, trouser)" in said
    (tmp_path / "empty").mkdir()
    assert "empty has no photos" in refused(cli.poc, argv(real=tmp_path / "empty"), capsys)
    one = write_photos(tmp_path / "one", {"bag": 5})
    assert "has the one class bag" in refused(cli.poc, argv(real=one), capsys)
    few = write_photos(tmp_path / "few", dict(zip(CLASSES, (9, 9, 2), strict=True)))
    assert "class 'trouser' has 2 different photos and the split needs 4" in refused(cli.poc, argv(real=few), capsys)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_command(
    argv: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset.json").write_text("{}")
    assert "holds files that are no run of ours (dataset.json" in refused(cli.poc, argv(), capsys)
    (out / "config.yaml").write_text("checkpoint: pixels\ndata: x\n")
    assert "holds another run, no proof of concept" in refused(cli.poc, argv(), capsys)
    (tmp_path / "file").touch()
    assert "is a file; choose a folder" in refused(cli.poc, argv(out=tmp_path / "file"), capsys)
