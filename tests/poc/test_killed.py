"""Killed again and again, and gone on with: the numbers of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stablerep.config import to_dict
from stablerep.poc.config import PocConfig

DRIVER = Path(__file__).with_name("kill_driver.py")


def without_costs(poc: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how often it was stopped."""
    arms = [
        {**arm, "seeds": [{**seed, "seconds": None} for seed in arm["seeds"]]}
        for arm in poc["arms"]
        if arm["comparison"] != "equal_cost"  # trained for as long as others took
    ]
    return {"arms": arms, "data": poc["data"], "risks": poc["risks"], "hybrid": poc["chosen_hybrid"]}


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_numbers(tiny: Callable[..., PocConfig], tmp_path: Path) -> None:
    config = tiny(arms=("real", "synthetic"))
    fields = {name: value for name, value in to_dict(config).items() if name != "out" and value is not None}
    command = [sys.executable, str(DRIVER), json.dumps(fields), str(tmp_path / "whole"), str(tmp_path / "killed"), "3"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["killed"] >= 2  # the last moment may lie beyond what was left to do
    whole, killed = (json.loads((tmp_path / name / "poc.json").read_text()) for name in ("whole", "killed"))
    assert json.loads(json.dumps(without_costs(killed)).replace("/killed/", "/whole/")) == without_costs(whole)
    assert all(step["seconds"] > 0 for step in killed["costs"]["steps"])
