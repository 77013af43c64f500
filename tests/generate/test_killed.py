"""Killed at any moment, and run again: every prompt has its K pictures, no shard is half, no byte is another one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import stablerep
from stablerep.generate.verify import verify
from tests.generate.folders import digests

pytestmark = pytest.mark.usefixtures("one_thread")
DRIVER = Path(__file__).with_name("kill_driver.py")
FEW = {"num_images_per_prompt": 2, "num_inference_steps": 1, "prompts_per_shard": 1, "batch_size": 3, "device": "cpu"}


def drive(mode: str, prompts: Path, out: Path, times: int = 0, seed: int = 0, **changes: int) -> tuple[list[Path], int]:
    fields = json.dumps({"prompts": str(prompts), "out": str(out), **FEW, **changes})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(DRIVER), mode, fields, str(times), str(seed)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    printed = json.loads(run.stdout)
    return [Path(folder) for folder in printed["folders"]], printed["killed"]


def check(folders: list[Path], prompts: Path, tmp_path: Path, **changes: int) -> None:
    stablerep.generate(prompts=prompts, out=tmp_path / "whole", **FEW | changes)
    whole = digests(tmp_path / "whole")
    for folder in folders:
        assert digests(folder) == whole, folder
        assert not list(verify(folder).problems)
        rows = [row for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        pictures = sorted((row["prompt_id"], row["index"]) for row in rows if row["kept"])
        assert pictures == [(prompt, index) for prompt in range(4) for index in range(2)]


def test_killed_at_random_moments(prompts: Path, tmp_path: Path) -> None:
    folders, killed = drive("random", prompts, tmp_path, times=8, seed=1)
    assert killed == 8
    check(folders, prompts, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_killed_at_random_moments_fifty_times(prompts: Path, tmp_path: Path, seed: int) -> None:
    folders, killed = drive("random", prompts, tmp_path, times=50, seed=seed)
    assert killed == 50
    check(folders, prompts, tmp_path)


def test_one_of_three_that_share_a_folder(prompts: Path, tmp_path: Path) -> None:
    folders, killed = drive("shared", prompts, tmp_path, times=6, seed=4)
    assert killed >= 4  # the others were done already
    check(folders, prompts, tmp_path)
    for folder in folders:
        lines = folder.with_name(f"{folder.name}.made").read_text().splitlines()
        made = [tuple(map(int, line.split())) for line in lines]
        assert {images for images, _ in made} == {8}  # whoever ended knows of all
        assert sum(made_here for _, made_here in made) <= 8  # the killed one's are missing: none was painted twice


@pytest.mark.slow
def test_killed_before_each_file_operation(prompts: Path, tmp_path: Path) -> None:
    two_shards = {"prompts_per_shard": 2}
    folders, killed = drive("steps", prompts, tmp_path, **two_shards)
    assert killed >= 2 * 9  # opening, renaming and syncing three files a shard
    check(folders, prompts, tmp_path, **two_shards)
