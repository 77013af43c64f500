"""The lines of docs/shards.md run, and see in our shards what we wrote."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stablerep
from stablerep import shards
from stablerep.config import UserError

DOC = Path(__file__).parents[2] / "docs/shards.md"
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n```python\n(.*?)```", DOC.read_text(), re.MULTILINE | re.DOTALL))
FEW = {"num_images_per_prompt": 2, "num_inference_steps": 1, "prompts_per_shard": 2, "device": "cpu"}


@pytest.fixture
def out(prompts: Path, tmp_path: Path) -> Path:
    stablerep.generate(prompts=prompts, out=tmp_path / "OUT", **FEW)
    return tmp_path / "OUT"


def run(lines: str, folder: Path) -> str:
    """What lines print, in a process of their own that has no network and no cache."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    finished = subprocess.run(
        [sys.executable, "-c", lines], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_webdataset(out: Path) -> None:
    pytest.importorskip("webdataset")
    lines = BLOCKS["webdataset"] + "    print(sample['__key__'], prompt, [each.size for each in pictures])"
    assert run(lines, out.parent).splitlines() == [
        f"{number:09} {prompt} [(32, 32), (32, 32)]"
        for number, prompt in enumerate(
            ["a photo of a dark slim sneaker", "a photo of a white bag", "", "a photo of a busy dress"]
        )
    ]


def test_datasets(out: Path) -> None:
    pytest.importorskip("datasets")
    lines = BLOCKS["datasets"] + "print(len(prompts), prompt, [each.size for each in pictures])"
    assert run(lines, out.parent) == "4 a photo of a dark slim sneaker [(32, 32), (32, 32)]\n"
    (out / "README.md").unlink()  # as an earlier version leaves it
    lines = lines.replace('"OUT"', '"webdataset", data_files="OUT/*.tar"')
    assert run(lines, out.parent) == "4 a photo of a dark slim sneaker [(32, 32), (32, 32)]\n"


def test_rows_and_tars(out: Path) -> None:
    lines = BLOCKS["Without either: the rows and the tars"]
    lines += " " * 16 + "print(row['prompt_id'], row['index'], picture.size)"
    assert run(lines, out.parent).splitlines() == [f"{id} {index} (32, 32)" for id in range(4) for index in range(2)]


def test_the_card_is_ours_to_write_and_no_one_elses(prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/README.md").write_text("# My thesis\n")
    with pytest.raises(UserError, match=r"README\.md"):
        shards.start_dataset(tmp_path / "theirs", {})
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/README.md").write_text(shards.CARD[:20])  # a run was stopped here
    shards.start_dataset(tmp_path / "ours", {})
    assert (tmp_path / "ours/README.md").read_text() == shards.CARD
